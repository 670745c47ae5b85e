// The axes that clocks are drawn on. A counter is an axis that a machine counts along (TSC ticks,
// CNTVCT ticks); a timeline is an axis in nanoseconds. A tag has no now(): ambient time cannot be
// spelled. Two axes never mix: the published KVM recipe adds host ticks to guest ticks under
// scaling, and that must not compile here.
#pragma once

#include <concepts>
#include <string_view>

namespace continuo::time {

/// The counter of the host that this code runs on: TSC (x86-64) or CNTPCT (arm64).
struct HostCounter {
    static constexpr std::string_view name = "host counter";
    static constexpr bool is_counter = true;
};

/// The counter of the host where a record was captured. It becomes a HostCounter only through
/// same_boot_counter(), for a caller who has proof that both are one boot of one host.
struct SourceCounter {
    static constexpr std::string_view name = "source counter";
    static constexpr bool is_counter = true;
};

/// The counter that a guest reads: RDTSC or CNTVCT_EL0 in guest mode. One line for each vCPU.
struct GuestCounter {
    static constexpr std::string_view name = "guest counter";
    static constexpr bool is_counter = true;
};

/// What holds of a timeline whatever its readings are.
struct TimelineTraits {
    bool runs_while_paused;  ///< goes on while the VM's vCPUs are stopped
    bool counts_blackout;    ///< a reader after a migration finds the blackout in it
    bool may_step;           ///< may be set, forwards or backwards, while it runs
    bool guest_writable;     ///< the guest can move it
};

/// The host's CLOCK_TAI, ns since 1970-01-01 TAI. Unsigned 64 bits reach to the year 2554.
struct Tai {
    static constexpr std::string_view name = "TAI";
    static constexpr bool is_counter = false;
    static constexpr TimelineTraits traits{true, true, true, false};
};

/// The host's CLOCK_REALTIME, ns since 1970-01-01 UTC; leap seconds step it.
struct Realtime {
    static constexpr std::string_view name = "REALTIME";
    static constexpr bool is_counter = false;
    static constexpr TimelineTraits traits{true, true, true, false};
};

/// A guest's kvmclock, ns since an arbitrary start: what its pvclock pages say, one timeline for
/// the VM.
struct Kvmclock {
    static constexpr std::string_view name = "kvmclock";
    static constexpr bool is_counter = false;
    static constexpr TimelineTraits traits{true, false, false, false};
};

template <class A>
concept Axis = requires {
    { A::name } -> std::convertible_to<std::string_view>;
    { A::is_counter } -> std::convertible_to<bool>;
};
template <class A>
concept CounterAxis = Axis<A> && A::is_counter;
template <class A>
concept TimelineAxis = Axis<A> && !A::is_counter;

}  // namespace continuo::time
