// A machine whose controls do exactly what their documentation says, on a host that is a number
// which grows. It is the first machine of the model: what capture, apply and verify do on it is
// what the arithmetic alone does. Faults (missing controls, jitter, a guest's damaged page) are
// switched on one at a time. KVM's own behaviour, with its synchronisation heuristics and
// masterclock, is not here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "continuo/machine/machine.h"

namespace continuo::model {

using machine::Machine;
using state::Result;
using state::Status;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::Hz;
using time::Instant;
using time::Kvmclock;
using time::PvclockLine;
using time::TscMap;

/// A host: a counter, TAI, and what each look at a clock costs. Shared by the machines on it.
struct IdealHost {
    std::uint64_t counter = 1'000'000;
    std::uint64_t boot_tai_ns = 1'700'000'000'000'000'000;  ///< TAI at counter 0
    Hz frequency = *Hz::from_khz(2'000'000);
    std::uint64_t tai_bound_ns = 0;
    state::HostIdentity identity{{1}, "ideal"};
    std::optional<int> scaling_frac_bits;
    state::Quirks quirks = 0;
    /// A write of IA32_TSC within a second of the line of the one before takes that line, as KVM
    /// has it.
    bool synchronises_writes = false;
    /// IA32_TSC_ADJUST takes writes and drops them, as KVM does where the guest's CPUID has none.
    bool drops_tsc_adjust = false;
    /// KVM_GET_CLOCK counts the host's ticks since kvmclock was set, as KVM does, and not those of
    /// a scaled guest, whose page then parts from it.
    bool clock_counts_host_ticks = false;
    /// Ticks that the next call takes, at most this, drawn from a generator of its own; 0: calls
    /// take no time.
    std::uint64_t call_ticks_max = 0;
    std::uint64_t seed = 1;

    /// The counter after the next call has taken its time.
    std::uint64_t step();
    void sleep(std::uint64_t ticks) { counter += ticks; }
};

/// A stopped VM on an ideal host.
class IdealMachine final : public Machine {
  public:
    /// Lifetime: `host` outlives the machine. guest: the frequency that the guest was created with.
    IdealMachine(IdealHost& host, std::size_t vcpus, Hz guest);

    std::size_t vcpu_count() const override { return vcpus_.size(); }
    Result<machine::HostFacts> host_facts() override;
    Count<HostCounter> now() override;
    Result<state::Anchor<HostCounter>> anchor() override;
    Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override;
    Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override;
    Result<std::optional<PvclockLine>> pvclock_page(std::size_t vcpu) override;
    Result<machine::KvmclockReading> kvmclock() override;
    Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override;
    Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override;
    Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) override;
    Result<TscMap> tsc_map(std::size_t vcpu) override;
    Result<machine::WriteBracket> write_tsc_by_value(std::size_t vcpu,
                                                     Count<GuestCounter> value) override;
    Status set_kvmclock(Instant<Kvmclock> clock) override;
    Status signal_guest_stopped(std::size_t vcpu) override;
    Status settle() override;

    /// What the guest would read now: the truth that certificates are held against.
    Count<GuestCounter> guest_tsc(std::size_t vcpu, Count<HostCounter> at) const;
    /// kvmclock as the guest computes it at a host counter value.
    Instant<Kvmclock> guest_kvmclock(Count<HostCounter> at) const;
    /// The guest writes its page: what pvclock_page() then gives.
    void scribble_page(std::size_t vcpu, std::optional<PvclockLine> line) {
        vcpus_[vcpu].page = line;
        vcpus_[vcpu].page_damaged = !vcpus_[vcpu].page.has_value();
    }
    /// The guest enables kvmclock on every vCPU.
    void enable_kvmclock();

  private:
    struct Vcpu {
        TscMap map{0};
        Hz frequency = *Hz::from_hz(1);
        std::int64_t tsc_adjust = 0;
        std::uint64_t system_time_msr = 0;
        bool guest_stopped = false;
        std::optional<PvclockLine> page;
        bool page_damaged = false;
    };

    Status check(std::size_t vcpu) const;
    bool lacks(state::Quirk quirk) const { return state::has(host_.quirks, quirk); }
    PvclockLine line_of(const Vcpu& vcpu) const;
    Instant<Kvmclock> kernel_kvmclock(Count<HostCounter> at) const;
    bool stable() const;
    void publish();

    IdealHost& host_;
    std::vector<Vcpu> vcpus_;
    std::optional<TscMap> last_written_;
    Count<HostCounter> kvmclock_anchor_;
    Instant<Kvmclock> kvmclock_at_anchor_;
};

}  // namespace continuo::model
