// One run: a scenario, a strategy, a seed, at most one planted bug. The same four give the same
// result, to the hash.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "continuo/sim/bug.h"
#include "continuo/sim/oracle.h"
#include "continuo/sim/scenario.h"
#include "continuo/sim/site.h"
#include "continuo/sim/strategy.h"

namespace continuo::sim {

/// How a run ended.
enum class Ending : std::uint8_t {
    kMoved,    ///< every move was carried out
    kRefused,  ///< the strategy refused one with a reason: the guest is where it was
    kFailed,   ///< a control failed with an error that the strategy reported
    kLimit,    ///< a limit of the scenario was reached: no verdicts
};
std::string_view name(Ending ending);

/// What a run showed. Fixed size, no heap; the worst over all moves of the run.
struct RunResult {
    Ending ending = Ending::kMoved;
    /// Static text: why it was refused, which control failed, which limit was reached.
    std::string_view reason;
    std::uint64_t seed = 0;
    Verdicts verdicts;
    ProbeSet probes = 0;
    std::uint32_t steps = 0;  ///< of the VMM's threads
    TrueTime ended;
    std::int64_t tsc_skew_ns =
        0;  ///< the farthest two vCPUs' counters came apart, beyond what they were
    std::int64_t tsc_seam_ns =
        0;  ///< counter at the resume instant less what was promised, the largest
    std::int64_t kvmclock_seam_ns = 0;  ///< the same of kvmclock
    std::int64_t forward_jump_ns =
        0;  ///< MONOTONIC, first read after less last read before, less time in guest
    std::int64_t lost_time_ns =
        0;  ///< what REALTIME was behind the truth at the first read (ahead: negative)
    std::int64_t stale_exposure_ns =
        0;                     ///< how long REALTIME could be read wrong by more than 1 ms
    std::int64_t held_ns = 0;  ///< how long REALTIME reads were held for a notice
    std::int64_t entry_late_ns =
        0;  ///< from the instant that the clocks were set for to the first entry
    std::int64_t blackout_ns = 0;         ///< from the first vCPU's stop to the last one's entry
    std::int64_t certified_bound_ns = 0;  ///< of vCPU 0's counter, where there is a certificate
    std::int64_t tsc_error_ns = 0;  ///< true error of vCPU 0's counter against the policy's promise
    std::uint64_t hash = 0;         ///< xxHash of everything observed
};

/// Runs it. Never throws, allocates only where the strategy does. Domain: scenario came from
/// parse_scenario().
RunResult run(const Scenario& scenario, const Strategy& strategy, std::uint64_t seed,
              Bug bug = Bug::kNone);

}  // namespace continuo::sim
