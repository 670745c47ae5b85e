// The record: every clock of a stopped guest, expressed through ONE host counter value, with what
// is needed to carry it to another host and to say how well that is known. capture() in machine/
// makes it, the wire format and JSON (docs/formats/record.md) carry it, the planner reads it.
// Device state and memory are not in it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "continuo/time/point.h"
#include "continuo/time/pvclock_scale.h"
#include "continuo/time/rate.h"

namespace continuo::state {

using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Hz;
using time::Instant;
using time::Kvmclock;
using time::Nanos;
using time::PvclockLine;
using time::PvclockScale;
using time::RateError;
using time::Realtime;
using time::SourceCounter;
using time::Tai;
using time::Ticks;

/// Most vCPUs of one record: KVM_MAX_VCPUS of x86-64.
inline constexpr std::size_t kVcpusMax = 4096;

enum class Architecture : std::uint8_t { kX86_64 = 1, kArm64 = 2 };

/// One boot of one host, and what runs there.
struct HostIdentity {
    /// /proc/sys/kernel/random/boot_id: equal if and only if it is one boot of one host. All zero:
    /// unknown, and equal to nothing.
    std::array<std::uint8_t, 16> boot_id{};
    /// For people: "Linux 6.12.41+deb12-amd64 x86_64".
    std::string kernel;

    bool known() const { return boot_id != std::array<std::uint8_t, 16>{}; }
    friend bool operator==(const HostIdentity&, const HostIdentity&) = default;
};

/// What is assumed of a counter of which nothing better is known, 500 ppm: the most that Linux's
/// NTP lets a clock be off its stated rate (MAXFREQ).
inline constexpr std::uint32_t kRateBoundUnknownPpb = 500'000;

/// Two values of Anchor::suspended_ns are taken for one up to here: far more than the two clocks'
/// readings are apart, far less than any suspend takes.
inline constexpr std::int64_t kSuspendedSlackNs = 100'000;

/// A host's counter and TAI at one instant. D is SourceCounter in a record, HostCounter on this
/// host.
template <time::CounterAxis D>
struct Anchor {
    Count<D> counter;
    Instant<Tai> tai;
    /// |true TAI at `counter` - tai| is at most this: half the bracket of the two reads plus what
    /// the kernel's clock admits (adjtimex maxerror).
    std::uint64_t tai_bound_ns = 0;
    /// What the kernel was told of TAI - UTC; 0 means that nobody told it, and then `tai` is really
    /// UTC.
    std::int32_t tai_offset_sec = 0;
    /// False where adjtimex reports STA_UNSYNC: tai_bound_ns then means little.
    bool synchronised = true;
    /// Frequency of the counter, as the kernel states it (KVM: whole kHz, truncated).
    Hz frequency = *Hz::from_hz(time::kNanosPerSecond);
    /// The counter's true frequency is within this of the stated one, in 10^-9 of it; the truncated
    /// kHz come on top. At most kRateBoundPpbMax.
    std::uint32_t rate_bound_ppb = kRateBoundUnknownPpb;
    /// How long this boot had been suspended by then, CLOCK_BOOTTIME - CLOCK_MONOTONIC; none:
    /// unknown. The counter may stand still, go on or start again in a suspend, so it measures time
    /// only between two anchors that agree in this.
    std::optional<std::uint64_t> suspended_ns;

    friend bool operator==(const Anchor&, const Anchor&) = default;
};

/// The clocks of one vCPU at the record's anchor.
struct VcpuClock {
    /// What the guest would have read at anchor.counter.
    Count<GuestCounter> counter;
    /// |true value - counter| is at most this: 0 where it comes from the offset attribute.
    std::uint64_t counter_bound_ticks = 0;
    /// The offset KVM had (KVM_VCPU_TSC_OFFSET), for information and the same-boot identity; none
    /// by value.
    std::optional<std::uint64_t> tsc_offset;
    /// IA32_TSC_ADJUST as the guest reads it.
    std::int64_t tsc_adjust = 0;
    /// KVM's user_tsc_khz * 1000 (x86-64), CNTFRQ (arm64).
    Hz frequency = *Hz::from_hz(time::kNanosPerSecond);
    /// MSR_KVM_SYSTEM_TIME(_NEW): bit 0 enabled, the rest the page's GPA; 0 where the guest uses no
    /// kvmclock.
    std::uint64_t system_time_msr = 0;
    /// A GUEST_STOPPED that the guest has not seen yet: set in its page, or asked for and not yet
    /// published.
    bool guest_stopped_pending = false;

    friend bool operator==(const VcpuClock&, const VcpuClock&) = default;
};

/// Where a kvmclock line was read.
enum class KvmclockOrigin : std::uint8_t {
    kPage = 1,  ///< vCPU 0's pvclock page: what the guest saw, to the bit
    kKernel =
        2,  ///< KVM_GET_CLOCK and the kernel's scale: no guest page, or one that the guest damaged
};

/// kvmclock at the anchor, as a line from vCPU 0's counter.
struct KvmclockState {
    PvclockLine line{Count<GuestCounter>{}, Instant<Kvmclock>{},
                     *PvclockScale::make(0x80000000U, 1)};
    KvmclockOrigin origin = KvmclockOrigin::kKernel;
    /// The kernel had one line for all vCPUs (KVM_CLOCK_TSC_STABLE).
    bool masterclock = false;
    /// |what the guest saw - line| is at most this at the anchor, on any vCPU, as far as the line
    /// goes: the bound of vCPU 0's counter, which it is read by, comes on top.
    std::uint64_t bound_ns = 0;
    /// KVM_GET_CLOCK's answer less the line at that instant: what the kernel would have published
    /// next.
    Nanos<Kvmclock> kernel_minus_line;
};

bool operator==(const KvmclockState&, const KvmclockState&);

/// Everything that the planner knows of the guest.
struct Record {
    Architecture architecture = Architecture::kX86_64;
    HostIdentity source;
    Anchor<SourceCounter> anchor;
    std::vector<VcpuClock> vcpus;
    std::optional<KvmclockState> kvmclock;  ///< none on arm64, and where the VM never had one
    /// How often this guest has moved, plus one for each notice: the sequence of S1.3; even means
    /// that none is open.
    std::uint64_t notice_sequence = 0;

    friend bool operator==(const Record&, const Record&) = default;
};

}  // namespace continuo::state
