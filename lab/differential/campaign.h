// Many sequences from one seed, what came of them, and the smallest sequence that still shows a
// mismatch.
#pragma once

#include <functional>
#include <map>

#include "judge.h"

namespace continuo::differential {

struct CampaignOptions {
    std::uint64_t seed = 1;  ///< sequence i is drawn from seed + i
    std::uint64_t sequences = 1000;
    std::int64_t seconds_max = 0;  ///< 0: no limit
    unsigned ops_max = 24;         ///< drawn for a sequence, beside the pages' first writes
    unsigned mismatches_max = 3;   ///< then it ends
    model::KernelRules rules;
    HostFacts host;
    Abilities abilities;
};

/// A mismatch, made small.
struct Finding {
    Sequence drawn;
    Sequence smallest;
    Mismatch mismatch;               ///< of the smallest
    std::vector<std::string> story;  ///< of the smallest, step by step
    /// It was seen once and in none of the repetitions: the drawn sequence's own story is told.
    bool seen_again = true;
};

struct Tally {
    std::uint64_t sequences = 0;
    std::uint64_t ops = 0;
    std::uint64_t comparisons = 0;
    std::uint64_t ambiguous = 0;
    std::uint64_t pinned = 0;
    std::uint64_t hidden = 0;
    std::map<OpKind, std::uint64_t> by_kind;
    std::vector<Finding> findings;
};

/// Told after each sequence.
using ToldProgress = std::function<void(const Tally&)>;

/// Fails where the subject did.
Result<Tally> run_campaign(Subject& subject, const CampaignOptions& options,
                           const ToldProgress& progress);

/// Leaves out operations and makes numbers plain as long as `fails` holds. At most so many tries.
Sequence shrink(const Sequence& failing, const std::function<bool(const Sequence&)>& fails,
                unsigned tries_max = 400);

}  // namespace continuo::differential
