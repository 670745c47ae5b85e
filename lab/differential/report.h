// What a run found, for people and for programs.
#pragma once

#include <string>

#include "campaign.h"

namespace continuo::differential {

struct About {
    std::string kernel;  ///< "Linux 6.12.9 x86_64"
    std::string rules;   ///< whose rules the model had: "6.12"
    double seconds = 0;
};

std::string text_report(const About& about, const CampaignOptions& options, const Tally& tally);
/// Schema continuo/differential/1.
std::string json_report(const About& about, const CampaignOptions& options, const Tally& tally);
std::string text(const Finding& finding);

}  // namespace continuo::differential
