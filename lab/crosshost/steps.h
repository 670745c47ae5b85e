// What the two hosts are to do together: a list of steps, the same file on both. README.md has the
// keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/state/policy.h"
#include "host_clock.h"

namespace continuo::crosshost {

/// Sets both hosts' clocks, then moves the VM from where it is to the other host `moves` times.
struct Step {
    std::string name;
    std::uint32_t moves = 1;
    state::Policy policy = state::Policy::kAdvance;
    std::int64_t offset_ns = 0;  ///< b's REALTIME less a's
    bool exchange = true;        ///< false: elapsed time by TAI alone
    NtpState ntp_a;
    NtpState ntp_b;
};

/// Reads a JSON array of steps. kMalformed names the step and the key.
Result<std::vector<Step>> parse_steps(std::string_view text);

}  // namespace continuo::crosshost
