// Planted bugs: each is a mistake that somebody made, or that the threads warn of, switched on by
// name in one run to prove that an oracle catches it. None is on otherwise.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace continuo::sim {

enum class Bug : std::uint8_t {
    kNone,
    // capture
    kHostGuestTickMix,       ///< host ticks added to guest ticks under scaling (published recipe)
    kSequentialCapture,      ///< each vCPU's counter read by value in turn, taken for one instant
    kAnchorNotBracketed,     ///< counter and TAI read apart, and the distance not in the bound
    kKvmclockAtAnotherTime,  ///< kvmclock read at one instant, the counter at another
    kPageTrusted,            ///< the guest's page is believed whatever it says
    kTscAdjustForgotten,     ///< IA32_TSC_ADJUST is not carried
    kStoppedFlagLost,        ///< GUEST_STOPPED asked for and not carried by the snapshot
    // carry
    kTruncatedDecodeAccepted,   ///< what the stream lacks is taken as zero
    kIntegrityIgnored,          ///< the hash of the record is not looked at
    kUtcInsteadOfTai,           ///< the gap measured on REALTIME across a leap second
    kSuspendForgotten,          ///< BOOTTIME - MONOTONIC is not in the anchor
    kTaiOffsetForgotten,        ///< a host that was never told TAI - UTC is taken at its word
    kUnsyncIgnored,             ///< STA_UNSYNC of a host is not looked at
    kRateTermMissing,           ///< the bound without what the counters may be off their rates
    kClockReadErrorMissing,     ///< the bound without the hosts' own maxerror
    kNegativeGapAccepted,       ///< a destination clock behind the source's: the gap goes backwards
    kExchangeRoundTripIgnored,  ///< one-way time of the exchange taken as zero
    // apply
    kGetClockHandedBack,    ///< KVM_GET_CLOCK's struct given to KVM_SET_CLOCK as it is
    kNoSettleBeforeTrim,    ///< masterclock update left pending before kvmclock is set
    kOffsetWriteSkipsVcpu,  ///< the last vCPU's offset is not written
    kOffsetFromWrongVcpu,   ///< vCPU 0's offset on every vCPU
    kWriteZeroTsc,          ///< 0 written to IA32_TSC as if it were a value
    kFrequencyNotSet,       ///< KVM_SET_TSC_KHZ forgotten
    kEntryBeforeApply,      ///< vCPU 0 enters before the last vCPU's clock is written
    kReadbackIgnored,       ///< what the kernel answers after a write is not compared
    // guest
    kReaderWithoutRetry,      ///< pvclock read without looking at the version
    kReaderWithoutFallback,   ///< no global compare-and-exchange where the stable bit is off
    kSchedClockUnderflow,     ///< S4.3: unsigned difference not guarded
    kNoticeSequenceEven,      ///< the notice's sequence is not odd while it is pending
    kSecondNoticeOverwrites,  ///< a second notice overwrites the first one's delta
    kAgentForgetsUnsync,      ///< STA_UNSYNC and maxerror are left as they were
    kAgentRaisesFirst,        ///< the sequence is raised before REALTIME is repaired
    kTimersNotCancelled,      ///< REALTIME is repaired without TFD_TIMER_CANCEL_ON_SET
    kDeltaWithoutLead,        ///< the notice's gap ends at the plan, not at the resume instant
    kCount,
};
inline constexpr std::size_t kBugs = static_cast<std::size_t>(Bug::kCount);
/// "host_guest_tick_mix", ...
std::string_view name(Bug bug);
/// One sentence: the mistake and where it comes from.
std::string_view meaning(Bug bug);
std::optional<Bug> bug_from_name(std::string_view name);

}  // namespace continuo::sim
