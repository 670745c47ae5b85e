// The port: what a plan needs of a machine, and nothing more. A machine is one VM whose vCPUs are
// stopped, on one host. kvm/ has one on Linux KVM, model/ one in memory; capture(), apply() and
// verify() cannot tell them apart, and the contract tests (contract.h) say what both must do.
// Values go in and out in the host's and guest's own counters; all policy is elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "continuo/state/error.h"
#include "continuo/state/plan.h"
#include "continuo/state/record.h"
#include "continuo/time/point.h"

namespace continuo::machine {

using state::Anchor;
using state::HostIdentity;
using state::Quirks;
using state::Result;
using state::Status;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Hz;
using time::Instant;
using time::Kvmclock;
using time::PvclockLine;
using time::Realtime;
using time::TscMap;

/// What a host is and can do. Facts of the host and kernel, not of one VM's state.
struct HostFacts {
    state::Architecture architecture{};
    HostIdentity identity;
    Hz counter_frequency =
        *Hz::from_hz(time::kNanosPerSecond);  ///< whole kHz where the kernel says kHz
    std::optional<int> scaling_frac_bits;
    bool masterclock = true;  ///< this VM can have it: host clocksource is TSC-based
    Quirks quirks = 0;        ///< as proven by doctor, or as told by the caller
};

/// The per-vCPU state that capture needs, as the kernel gives it. One batch of ioctls.
struct VcpuClockState {
    std::optional<TscMap>
        map;  ///< host counter -> guest counter; none where the offset cannot be read
    std::int64_t tsc_adjust = 0;
    Hz frequency = *Hz::from_hz(time::kNanosPerSecond);
    std::uint64_t system_time_msr = 0;
    bool guest_stopped_pending =
        false;  ///< asked for through signal_guest_stopped() and not published yet, or unseen
};

/// A guest counter read by value, between two readings of the host's counter.
struct BracketedTsc {
    Count<HostCounter> before;
    Count<GuestCounter> value;
    Count<HostCounter> after;
};

/// The bracket of a write: it took effect somewhere between the two.
struct WriteBracket {
    Count<HostCounter> before;
    Count<HostCounter> after;
};

/// KVM_GET_CLOCK: kvmclock and the host counter at one instant.
struct KvmclockReading {
    Instant<Kvmclock> clock;
    std::optional<Count<HostCounter>> host;     ///< KVM_CLOCK_HOST_TSC
    std::optional<Instant<Realtime>> realtime;  ///< KVM_CLOCK_REALTIME
    bool stable = false;                        ///< KVM_CLOCK_TSC_STABLE: one line for all vCPUs
};

/// A stopped VM's clocks. Not thread-safe; the caller serialises, and no vCPU is in guest mode
/// during any call. Every call fails with kKernel and the ioctl's name, or with kUnsupported where
/// the control is absent.
class Machine {
  public:
    Machine() = default;
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;
    virtual ~Machine() = default;

    virtual std::size_t vcpu_count() const = 0;
    virtual Result<HostFacts> host_facts() = 0;

    /// The host counter now, ordered after everything before it.
    virtual Count<HostCounter> now() = 0;
    /// Counter and TAI at one instant: the narrowest of several brackets.
    virtual Result<Anchor<HostCounter>> anchor() = 0;

    virtual Result<VcpuClockState> vcpu_state(std::size_t vcpu) = 0;
    virtual Result<BracketedTsc> read_tsc_by_value(std::size_t vcpu) = 0;
    /// The line in the guest's own pvclock page of a vCPU. nullopt: the guest has not enabled it.
    /// kGuest: the page is outside memory, misaligned, being updated, or holds what KVM never
    /// writes.
    virtual Result<std::optional<PvclockLine>> pvclock_page(std::size_t vcpu) = 0;
    virtual Result<KvmclockReading> kvmclock() = 0;

    /// KVM_SET_TSC_KHZ of one vCPU, in whole kHz, read back.
    virtual Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) = 0;
    virtual Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) = 0;
    /// KVM_VCPU_TSC_OFFSET; the caller reads it back through tsc_map().
    virtual Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) = 0;
    /// The map that is in force now, read from the kernel.
    virtual Result<TscMap> tsc_map(std::size_t vcpu) = 0;
    /// A host write of IA32_TSC: the guest reads `value` at the moment of the write. KVM's
    /// synchronisation heuristics may turn it into something else (facts in docs/kernel-facts.md);
    /// the caller reads back.
    virtual Result<WriteBracket> write_tsc_by_value(std::size_t vcpu,
                                                    Count<GuestCounter> value) = 0;
    /// KVM_SET_CLOCK without flags: kvmclock reads `clock` at some moment of the call.
    virtual Status set_kvmclock(Instant<Kvmclock> clock) = 0;
    /// KVM_KVMCLOCK_CTRL: GUEST_STOPPED in the page of this vCPU at its next update.
    virtual Status signal_guest_stopped(std::size_t vcpu) = 0;
    /// Has the kernel carry out what earlier writes left for the next guest entry, without running
    /// guest code: afterwards nothing is pending that would move kvmclock's line. The guest's pages
    /// show that line after a second call, where the first one found the line to be moved.
    virtual Status settle() = 0;
};

}  // namespace continuo::machine
