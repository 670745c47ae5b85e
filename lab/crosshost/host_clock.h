// Sets the clocks of the pair's hosts as a test wants them: b's REALTIME a given time off a's, and
// on each host what its kernel says of its own clock (adjtimex).
#pragma once

#include <cstdint>
#include <optional>

#include "shared_page.h"

namespace continuo::crosshost {

/// What a host's kernel is to say of its clock.
struct NtpState {
    bool synchronised = false;
    /// adjtimex maxerror in us; the kernel raises it by 500 us each second and keeps no more than
    /// 16 s (NTP_PHASE_LIMIT).
    std::uint32_t maxerror_us = 16'000'000;
    std::int32_t tai_offset_sec = 0;
    std::int32_t frequency_ppb = 0;  ///< what NTP corrects of the clock's rate; at most 500 ppm
};

/// adjtimex(ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR | ADJ_FREQUENCY, and ADJ_TAI), read back.
/// kKernel.
Status set_ntp_state(const NtpState& ntp);

/// Both sides call it. Steps b's REALTIME to a's plus `offset_ns`, by ADJ_SETOFFSET, which leaves
/// STA_UNSYNC behind on b. On b: how far off b's clock is then found to be, b - a, from one more
/// reading; good to the widths of a pairing and of two readings of the clock. kKernel, kTimeout.
Result<std::optional<std::int64_t>> set_realtime_offset(SharedPage& page, std::int64_t offset_ns);

}  // namespace continuo::crosshost
