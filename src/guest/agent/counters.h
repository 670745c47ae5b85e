// What the agent has done since it started, in Prometheus' text form for node_exporter's textfile
// collector.
#pragma once

#include <cstdint>

#include "system.h"

namespace continuo::guest {

struct Counters {
    std::uint64_t wakeups = 0;         ///< returns of poll(2)
    std::uint64_t notices = 0;         ///< notices repaired
    std::uint64_t answers = 0;         ///< and answered
    std::uint64_t overtaken = 0;       ///< answers that came after a newer notice
    std::uint64_t disruptions = 0;     ///< told by vmclock alone
    std::uint64_t jumps = 0;           ///< found by comparing clocks
    std::uint64_t steps = 0;           ///< of REALTIME
    std::uint64_t late = 0;            ///< notices whose step was left to NTP
    std::uint64_t clock_sets = 0;      ///< of REALTIME, by others
    std::uint64_t resynchronised = 0;  ///< an NTP daemon did as asked
    std::uint64_t failures = 0;        ///< of any call; the journal names each
    std::int64_t last_step_ns = 0;     ///< the last step
    std::uint64_t last_pass_ns = 0;    ///< from waking up to the answer
    std::int64_t last_repair_ns = 0;   ///< REALTIME after the last repair
};

/// Writes them to `path` by way of a file beside it, so that nobody reads half of them. 0 or
/// -errno.
int write_counters(System& system, const Counters& counters, const char* path);

}  // namespace continuo::guest
