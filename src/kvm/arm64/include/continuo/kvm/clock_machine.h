// The clocks of a VM on Linux KVM (arm64) as a machine::Machine. A guest has two counters, virtual
// and physical, and KVM has one offset for both on all vCPUs: guest CNTVCT = guest CNTPCT = host
// CNTPCT - offset. No call reads it back, so the Vm owns it from before its first vCPU on (vm.h),
// and each map that is handed out is confirmed by a bracketed read of the vCPU's own registers.
// Where the kernel has no offset to be set (before Linux 6.4), the virtual counter goes by value,
// and the physical one is the host's. Facts of KVM behind each call: docs/kernel-facts.md.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "continuo/kvm/host.h"
#include "continuo/kvm/memory.h"
#include "continuo/kvm/vcpu.h"
#include "continuo/machine/machine.h"

namespace continuo::kvm {

struct ClockMachineOptions {
    /// What doctor found on this host.
    state::Quirks quirks = 0;
    /// Runs settle_vcpu() for one vCPU, on the thread that runs this vCPU, and waits for it. Where
    /// it is empty, settle() does nothing: nothing is pending on arm64 (settle.h).
    std::function<Status(std::size_t vcpu)> settle_on_its_thread;
};

class ClockMachine final : public machine::Machine {
  public:
    /// `vm` and the vCPUs must outlive it, and are of one VM. `host` is examine_host()'s answer.
    /// vCPU i of the machine is *vcpus[i]. No clock is in guest memory on arm64: `memory` is there
    /// for the sake of one call on all architectures.
    ClockMachine(Vm& vm, std::span<Vcpu* const> vcpus, GuestMemory& memory, HostClock host,
                 ClockMachineOptions options = {});

    std::size_t vcpu_count() const override { return vcpus_.size(); }
    Result<machine::HostFacts> host_facts() override;
    time::Count<time::HostCounter> now() override;
    Result<state::Anchor<time::HostCounter>> anchor() override;

    /// The map is none where the counter goes by value. kKernel where a counter register of the
    /// vCPU contradicts the offset.
    Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override;
    /// KVM_REG_ARM_TIMER_CNT; the narrowest of three brackets.
    Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override;
    /// Always none: kvmclock is x86-64's.
    Result<std::optional<time::PvclockLine>> pvclock_page(std::size_t vcpu) override;
    /// kUnsupported, as all that is x86-64's alone: kvmclock, IA32_TSC_ADJUST, GUEST_STOPPED.
    Result<machine::KvmclockReading> kvmclock() override;
    Status set_kvmclock(time::Instant<time::Kvmclock> clock) override;
    Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override;
    Status signal_guest_stopped(std::size_t vcpu) override;
    /// Takes the host's own frequency; kUnsupported for any other: nothing scales the counter.
    Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override;

    /// Moves the counters of all vCPUs: `offset` is that of the map, guest = host + offset. The
    /// writes for different vCPUs between two anchors belong together and must be of one offset:
    /// kInvalidArgument, which names the vCPUs and their difference, where they are not, and
    /// nothing is moved.
    Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) override;
    Result<time::TscMap> tsc_map(std::size_t vcpu) override;
    /// The virtual counter of all vCPUs, by KVM_REG_ARM_TIMER_CNT. The writes for different vCPUs
    /// between two anchors belong together: the first one moves all of them, and the others are
    /// done by it, where they are for the same line to a second, which is what KVM on x86-64 takes
    /// for one; kInvalidArgument where they are not.
    Result<machine::WriteBracket> write_tsc_by_value(
        std::size_t vcpu, time::Count<time::GuestCounter> value) override;
    /// Has each vCPU's own thread claim it, where the options say how; nothing is pending.
    Status settle() override;

  private:
    /// One prescription for the whole VM, spelt as one write for each vCPU.
    struct Round {
        std::size_t first_vcpu = 0;
        std::uint64_t offset = 0;
        machine::WriteBracket bracket;  ///< of the write by value
    };

    Status known(std::size_t vcpu) const;
    bool by_value() const { return !vm_.counter_offset(); }
    /// What the guest's counters are according to the offset that was set.
    time::TscMap owned_map() const { return time::TscMap{0 - vm_.counter_offset().value_or(0)}; }
    Status confirm(std::size_t vcpu) const;
    Result<machine::BracketedTsc> read_register(std::size_t vcpu, std::uint64_t id) const;
    /// Whether a write for this vCPU belongs to the round that is open. A second one for the same
    /// vCPU does not: it opens another.
    bool continues_round(std::size_t vcpu) const { return round_ && !in_round_[vcpu]; }
    void open_round(std::size_t vcpu, std::uint64_t offset);
    tl::unexpected<state::Error> disagree(std::size_t vcpu, std::uint64_t offset) const;

    Vm& vm_;
    std::vector<Vcpu*> vcpus_;
    HostClock host_;
    ClockMachineOptions options_;
    bool has_physical_;  ///< PTIMER_CNT can be read: Linux 6.4 and later
    std::optional<Round> round_;
    std::vector<bool> in_round_;  ///< the vCPUs of which a write belongs to it
};

}  // namespace continuo::kvm
