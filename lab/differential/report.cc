#include "report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace continuo::differential {

std::string text(const Finding& finding) {
    std::string out =
        fmt::format("MISMATCH  seed {}: {} operations, smallest {} on {} vCPUs{}\n",
                    finding.drawn.seed, finding.drawn.ops.size(), finding.smallest.ops.size(),
                    finding.smallest.vcpus, finding.seen_again ? "" : "; not seen again");
    for (const Op& op : finding.smallest.ops)
        out += fmt::format("  op  {}\n", text(op));
    for (const std::string& line : finding.story)
        out += line + "\n";
    for (const Difference& one : finding.mismatch.differences)
        out += fmt::format("  step {}: {}: model {}, kernel {}\n", finding.mismatch.step, one.what,
                           one.model, one.kernel);
    return out;
}

std::string text_report(const About& about, const CampaignOptions& options, const Tally& tally) {
    std::string out;
    for (const Finding& finding : tally.findings)
        out += text(finding);
    out += fmt::format(
        "{}, model with the rules of {}: {} sequences from seed {}, {} acts, "
        "{} comparisons in {:.1f} s\n",
        about.kernel, about.rules, tally.sequences, options.seed, tally.ops, tally.comparisons,
        about.seconds);
    out += fmt::format(
        "instants: {} to the tick, {} to their bracket; ambiguous {}; "
        "mismatches {}\n",
        tally.pinned, tally.hidden, tally.ambiguous, tally.findings.size());
    return out;
}

std::string json_report(const About& about, const CampaignOptions& options, const Tally& tally) {
    nlohmann::ordered_json report{
        {"schema", "continuo/differential/1"},
        {"kernel", about.kernel},
        {"rules", about.rules},
        {"seed", options.seed},
        {"sequences", tally.sequences},
        {"acts", tally.ops},
        {"comparisons", tally.comparisons},
        {"pinned", tally.pinned},
        {"hidden", tally.hidden},
        {"ambiguous", tally.ambiguous},
        {"milliseconds", static_cast<std::int64_t>(about.seconds * 1000)}};
    for (const auto& [kind, count] : tally.by_kind)
        report["by_act"][std::string{name(kind)}] = count;
    report["mismatches"] = nlohmann::ordered_json::array();
    for (const Finding& finding : tally.findings) {
        nlohmann::ordered_json one{{"seed", finding.drawn.seed},
                                   {"seen_again", finding.seen_again},
                                   {"vcpus", finding.smallest.vcpus},
                                   {"step", finding.mismatch.step}};
        for (const Op& op : finding.smallest.ops)
            one["smallest"].push_back(text(op));
        for (const Difference& difference : finding.mismatch.differences)
            one["differences"].push_back({{"what", difference.what},
                                          {"model", difference.model},
                                          {"kernel", difference.kernel}});
        one["story"] = finding.story;
        report["mismatches"].push_back(std::move(one));
    }
    return report.dump(2);
}

}  // namespace continuo::differential
