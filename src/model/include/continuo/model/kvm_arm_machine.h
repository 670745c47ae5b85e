// The clocks of a VM on the model of KVM on arm64, as a machine::Machine. One offset moves both
// counters of all vCPUs and no call reads it, so the machine owns it from before the first vCPU on
// and holds each map that it hands out against the registers; on a kernel that has no such call, or
// where it is told to leave the counter to the kernel, the virtual counter goes by value.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "continuo/machine/machine.h"
#include "continuo/model/kvm_arm.h"
#include "continuo/model/two_hosts.h"

namespace continuo::model {

/// What calls cost: host ticks before and after the instant at which the kernel acts, each at most
/// this, drawn from a generator of their own. 0: calls take no time.
struct ArmCallCost {
    std::uint64_t ticks_max = 0;
    std::uint64_t seed = 1;
};

class KvmArmMachine final : public machine::Machine {
  public:
    /// Creates the VM's vCPUs; `vm` is new. own_counter: KVM_ARM_SET_COUNTER_OFFSET before the
    /// first of them, so that the guest's counters begin at 0; where it fails the counter goes by
    /// value. host and vm outlive the machine.
    KvmArmMachine(ArmHost& host, KvmArm& vm, unsigned vcpus, bool own_counter, ArmCallCost cost);

    std::size_t vcpu_count() const override { return vm_.vcpus(); }
    Result<machine::HostFacts> host_facts() override;
    time::Count<time::HostCounter> now() override;
    Result<state::Anchor<time::HostCounter>> anchor() override;

    Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override;
    /// KVM_REG_ARM_TIMER_CNT.
    Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override;
    /// The map that was set, held against the vCPU's counter registers: kKernel where they
    /// contradict it.
    Result<time::TscMap> tsc_map(std::size_t vcpu) override;
    /// `offset` is that of the map, guest = host + offset, of all vCPUs. The writes for different
    /// vCPUs between two anchors must be of one offset: kInvalidArgument where they are not.
    Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) override;
    /// The virtual counter of all vCPUs, by value; the writes for different vCPUs between two
    /// anchors belong together, and the first moves all. kUnsupported once an offset was set.
    Result<machine::WriteBracket> write_tsc_by_value(
        std::size_t vcpu, time::Count<time::GuestCounter> value) override;
    /// Takes the host's own frequency; kUnsupported for any other: nothing scales the counter.
    Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override;
    Status settle() override { return {}; }

    /// x86-64's alone: kUnsupported, and no page.
    Result<std::optional<time::PvclockLine>> pvclock_page(std::size_t vcpu) override;
    Result<machine::KvmclockReading> kvmclock() override;
    Status set_kvmclock(time::Instant<time::Kvmclock> clock) override;
    Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override;
    Status signal_guest_stopped(std::size_t vcpu) override;

  private:
    /// The writes for the vCPUs of one plan: one prescription for the whole VM.
    struct Round {
        std::uint64_t offset = 0;
        std::uint32_t written = 0;  ///< a bit for each vCPU
        machine::WriteBracket bracket;
    };

    Status known(std::size_t vcpu) const;
    bool by_value() const { return !owned_; }
    time::Hz stated() const;
    void pass_time();
    Result<machine::BracketedTsc> read_register(std::size_t vcpu, std::uint64_t id);
    Status confirm(std::size_t vcpu, std::uint64_t id);
    /// The open round, where a write for this vCPU belongs to it.
    Round* round_of(std::size_t vcpu);
    Status disagree(std::size_t vcpu, std::uint64_t offset) const;

    ArmHost& host_;
    KvmArm& vm_;
    Random random_;
    std::uint64_t call_ticks_max_;
    std::optional<time::TscMap> owned_;  ///< what was set; none where the counter is the kernel's
    std::optional<Round> round_;
};

}  // namespace continuo::model
