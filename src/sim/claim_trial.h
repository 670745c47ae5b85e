// What decides a claim: trials, which are runs in a scenario of the claim's own in which one thing
// is varied, and the words that its figures are printed with. Private to the claims.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "continuo/sim/claims.h"

namespace continuo::sim {

/// Names of strategies that claims are about; all_strategies() has every one of them.
inline constexpr std::string_view kByValue = "by-value";
inline constexpr std::string_view kKvmclockApart = "by-value-kvmclock-apart";
inline constexpr std::string_view kHostAccess = "host-access-quirk";
inline constexpr std::string_view kTuple = "precise-tuple";
inline constexpr std::string_view kOffset = "offset-attribute";
inline constexpr std::string_view kFreeze = "continuo-freeze";
inline constexpr std::string_view kAdvance = "continuo-advance";
inline constexpr std::string_view kFreezeNotify = "continuo-freeze-and-notify";
inline constexpr std::string_view kAdvanceNotify = "continuo-advance-and-notify";
inline constexpr std::string_view kFixMonotonic = "advance-and-fix-monotonic";
inline constexpr std::string_view kFromZero = "counts-from-zero";
inline constexpr std::string_view kQuiesced = "quiesced";
inline constexpr std::string_view kForced = "forced";

/// Two hosts that both state 2 GHz and whose clocks agree, counters that drift by up to 40 ppm,
/// four vCPUs, a blackout of 100 ms, steps of 0.2 to 2 us, no preemption, no faults: what a claim
/// varies is all that can go wrong. Its agent answers in 200 us.
Scenario plain_scenario();

/// 200 runs of one strategy, seeds 1 to 200.
Tally trial(const Scenario& scenario, std::string_view strategy, Bug bug = Bug::kNone);

/// All runs of a strategy in a comparison. Nothing where it was not run.
Tally everywhere(const Comparison& comparison, std::string_view strategy);

/// "412 ns", "5.186 us", "1.500 s": three digits behind the point, cut off.
std::string in_units(std::uint64_t ns);
/// "200 of 200 runs".
std::string of_runs(std::uint64_t part, std::uint64_t whole);
/// "median 5.100 us, at most 7.300 us".
std::string spread_text(const Spread& spread);
/// "broken in 200 of 200 runs, by up to 1.500 s" or "kept in 200 of 200 runs".
std::string tally_text(const InvariantTally& tally);

/// Broken in every run that was checked, and there were some.
inline bool always_broken(const InvariantTally& tally) {
    return tally.checked > 0 && tally.broken == tally.checked;
}
/// Checked, and never broken.
inline bool always_kept(const InvariantTally& tally) {
    return tally.checked > 0 && tally.broken == 0;
}

/// Reproduced where it holds, else not, and `otherwise` says why that may be.
Ruling ruling(bool holds, std::string figures, std::string otherwise);
/// No run decides it.
Ruling undecided(std::string why);

// One list for each thread, in claims_*.cc.
std::span<const Claim> nesting_claims();
std::span<const Claim> notice_claims();
std::span<const Claim> idempotent_claims();
std::span<const Claim> precise_claims();
std::span<const Claim> masterclock_claims();
std::span<const Claim> kvmclock_claims();

}  // namespace continuo::sim
