// What this host is: which boot of which kernel, its counter's frequency and scaling, and where TAI
// stands against the counter. Sources: /proc/sys/kernel/random/boot_id, clock_gettime(CLOCK_TAI),
// adjtimex(2), KVM_GET_TSC_KHZ and KVM_CAP_TSC_CONTROL (x86-64), CNTFRQ_EL0 (arm64).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "continuo/kvm/system.h"
#include "continuo/state/record.h"

namespace continuo::kvm {

/// A boot_id in its usual spelling, "0f7d3b1e-....", 36 characters. nullopt for anything else.
std::optional<std::array<std::uint8_t, 16>> parse_boot_id(std::string_view text);

/// This boot of this host. An unreadable boot_id gives an identity that is not known().
state::HostIdentity host_identity();

/// The kernel's clocksource: "tsc", "kvm-clock", "arch_sys_counter", ... Empty where sysfs does not
/// say.
std::string host_clocksource();

/// Facts of the host that do not change while it runs, asked once.
struct HostClock {
    state::HostIdentity identity;
    /// The counter's frequency. x86-64: the TSC's as KVM has it, whole kHz, the kernel's own
    /// calibration truncated. arm64: CNTFRQ_EL0.
    time::Hz counter_frequency = *time::Hz::from_hz(time::kNanosPerSecond);
    /// Fractional bits of the guest's TSC multiplier: 48 (VMX), 32 (SVM); none: no scaling
    /// (KVM_CAP_TSC_CONTROL is 0; arm64 has none).
    std::optional<int> scaling_frac_bits;
    /// host_clocksource()'s answer.
    std::string clocksource;
    /// KVM's condition for a masterclock: clocksource tsc, or Hyper-V's TSC page.
    bool tsc_based() const {
        return clocksource == "tsc" || clocksource == "hyperv_clocksource_tsc_page";
    }

    time::Hz frequency() const { return counter_frequency; }
    /// The same in whole kHz, truncated; in 32 bits, as KVM has it on x86-64.
    std::uint32_t tsc_khz() const {
        return static_cast<std::uint32_t>(counter_frequency.floor_khz());
    }
};

/// x86-64 asks KVM, through a VM that is created and thrown away: a VM's own answer could have been
/// changed; some milliseconds, and kKernel where KVM knows no frequency. arm64 reads CNTFRQ_EL0,
/// and kKernel where firmware left it 0.
Result<HostClock> examine_host(const System& system);

/// How far the counter's true frequency may be from the stated one, in 10^-9, by what adjtimex says
/// of the clock that is made from it. Synchronised: the correction that NTP has found necessary
/// (`freq`, in 2^-16 ppm, and `tick`, nominally 10000 us) plus 15 ppm, the rate at which RFC 5905
/// lets any clock wander (PHI). Else 500 ppm, what the kernel itself assumes (MAXFREQ). A daemon
/// that is slewing a time error away by `freq` at this moment hides as much as it slews.
std::uint32_t rate_bound_ppb(bool synchronised, long freq, long tick);

/// Counter and TAI at one instant: the narrowest of `brackets` readings of CLOCK_TAI between two of
/// the counter. The bound is half that bracket plus what the kernel admits (adjtimex maxerror).
/// Where nobody told the kernel TAI - UTC, tai_offset_sec is 0 and `tai` is really UTC.
Result<state::Anchor<time::HostCounter>> tai_anchor(time::Hz frequency, int brackets = 9);

/// An anchor, and by how much the kernel has a second of the counter's stated frequency be longer
/// than that (adjtimex freq and tick), in 10^-9: what CLOCK_TAI advances by.
struct DisciplinedAnchor {
    state::Anchor<time::HostCounter> anchor;
    std::int64_t correction_ppb = 0;
};
/// The kernel's correction in 10^-9: `freq` is in 2^-16 ppm, `tick` nominally 10000 us.
std::int64_t rate_correction_ppb(long freq, long tick);
Result<DisciplinedAnchor> disciplined_tai_anchor(time::Hz frequency);

}  // namespace continuo::kvm
