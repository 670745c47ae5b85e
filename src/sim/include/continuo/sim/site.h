// Where something can happen: the steps of a VMM's threads, between any two of which it can be
// preempted; the faults that a scenario switches on; and the probes, situations that a set of runs
// must reach to be worth anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace continuo::sim {

/// One step of a VMM thread. Before and after each the scheduler may take the processor away.
enum class Site : std::uint8_t {
    kStopVcpu,       ///< kicking one vCPU out of guest mode
    kReadAnchor,     ///< host counter and host clock at one instant
    kReadVcpu,       ///< a vCPU's offset, frequency, TSC_ADJUST, MSRs
    kReadTsc,        ///< IA32_TSC by value
    kReadPage,       ///< the guest's pvclock page
    kGetClock,       ///< KVM_GET_CLOCK
    kEncode,         ///< the record to bytes
    kDecode,         ///< bytes to the record
    kPlan,           ///< the decision
    kCreateVcpu,     ///< KVM_CREATE_VCPU on the destination
    kWriteMsr,       ///< a clock MSR of the guest
    kSetTscKhz,      ///< KVM_SET_TSC_KHZ
    kSetTscAdjust,   ///< IA32_TSC_ADJUST
    kSetTscOffset,   ///< KVM_VCPU_TSC_OFFSET
    kWriteTsc,       ///< IA32_TSC by value
    kSetClock,       ///< KVM_SET_CLOCK
    kKvmclockCtrl,   ///< KVM_KVMCLOCK_CTRL
    kSettle,         ///< one vCPU's requests
    kPublishNotice,  ///< the notice in the shared page
    kBeforeEntry,    ///< between the last control and KVM_RUN: the window of S3.8
    kCount,
};
inline constexpr std::size_t kSites = static_cast<std::size_t>(Site::kCount);
/// "stop_vcpu", "read_anchor", ... as in [vmm.site.*] of a scenario.
std::string_view name(Site site);
std::optional<Site> site_from_name(std::string_view name);

/// What a scenario can have go wrong, each with a probability of its own.
enum class Fault : std::uint8_t {
    kWireFlip,       ///< a bit of the saved state is flipped under way
    kWireTruncate,   ///< its end is lost
    kGuestPage,      ///< the guest writes nonsense into its own pvclock page
    kClockAnswer,    ///< KVM_GET_CLOCK's host_tsc is nonsense
    kOffsetIgnored,  ///< a write of an offset answers 0 and does nothing
    kRestoreTwice,   ///< the restore is carried out again, after a delay
    kPublishRace,    ///< a reader meets the page while it is being written
    kNoticeLate,     ///< the notice's interrupt is late by seconds
    kVcpuMoves,      ///< vCPUs come back on other processors of the host
    kCount,
};
inline constexpr std::size_t kFaults = static_cast<std::size_t>(Fault::kCount);
/// "wire_flip", ... as in [fault] of a scenario.
std::string_view name(Fault fault);
std::optional<Fault> fault_from_name(std::string_view name);

/// Situations that must be reached by the scenarios together; a probe that no run hits is a failing
/// test.
enum class Probe : std::uint8_t {
    kPreemptedBetweenReads,   ///< while the source's clocks were being read
    kPreemptedBetweenWrites,  ///< while the destination's were being written
    kPreemptedBeforeEntry,    ///< between setting and entry
    kReplanned,               ///< the resume instant had passed before the plan was carried out
    kRefused,                 ///< a strategy refused, and said why
    kMasterclockOff,          ///< the guest went on without a masterclock
    kScaled,                  ///< the destination scales
    kTolerated,               ///< it runs the guest at a frequency that is not its own
    kExchangeUsed,            ///< the gap went by the exchange
    kTaiUsed,                 ///< the gap went by TAI
    kSameBoot,                ///< the gap went by the counter
    kUnsynchronised,          ///< a host said STA_UNSYNC
    kLeapInGap,               ///< UTC stepped while the guest was away
    kNtpStepInGap,            ///< a host's clock was stepped while the guest was away
    kNoticeWhileOdd,          ///< a second notice before the first was handled
    kReadBlocked,             ///< a REALTIME read waited for the notice to be handled
    kTimerCancelled,          ///< TFD_TIMER_CANCEL_ON_SET fired
    kTornPage,                ///< a reader met a page in the middle of its update
    kFallbackReader,          ///< a reader went through the global compare-and-exchange
    kWireDamageCaught,        ///< damaged bytes were refused
    kPageDamageCaught,        ///< a damaged page was not believed
    kKernelLieCaught,         ///< an impossible answer of the kernel was noticed
    kRestoredTwice,           ///< a restore was repeated
    kVcpuPlugged,             ///< a vCPU came in after the move
    kQuiesced,                ///< the guest was suspended to idle before the move
    kLargeDelta,              ///< the guest's timekeeper met a delta beyond its multiplication
    kClocksourceLost,         ///< the host went from tsc to hpet
    kHostSuspended,           ///< the host slept while the guest was away
    kWriteSnapped,            ///< KVM took a written TSC for an attempt to synchronise
    kAgentRepaired,           ///< the agent repaired REALTIME
    kNtpRepaired,             ///< the NTP daemon did, alone
    kNotTrimmed,              ///< the closed loop on kvmclock ended before it was within its target
    kCount,
};
inline constexpr std::size_t kProbes = static_cast<std::size_t>(Probe::kCount);
static_assert(kProbes <= 64, "a run's probes are one word");
std::string_view name(Probe probe);

/// A set of probes: one bit each.
using ProbeSet = std::uint64_t;
constexpr ProbeSet bit(Probe probe) {
    return ProbeSet{1} << static_cast<unsigned>(probe);
}

}  // namespace continuo::sim
