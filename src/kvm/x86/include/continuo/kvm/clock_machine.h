// The clocks of a VM on Linux KVM (x86-64) as a machine::Machine: values in, values out, each read
// from the kernel at the call. Which control has any effect on this host is doctor's to find out
// (doctor.h); its quirks are handed in. Facts of KVM behind each call: docs/kernel-facts.md.
#pragma once

#include <functional>
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
    /// it is empty, the thread that calls settle() does all of them; on kernels up to 6.12 the
    /// first KVM_RUN on another thread then costs an RCU grace period (settle.h).
    std::function<Status(std::size_t vcpu)> settle_on_its_thread;
};

class ClockMachine final : public machine::Machine {
  public:
    /// `vm`, the vCPUs and `memory` must outlive it. `host` is examine_host()'s answer. vCPU i of
    /// the machine is *vcpus[i].
    ClockMachine(Vm& vm, std::span<Vcpu* const> vcpus, GuestMemory& memory, HostClock host,
                 ClockMachineOptions options = {});

    std::size_t vcpu_count() const override { return vcpus_.size(); }
    Result<machine::HostFacts> host_facts() override;
    time::Count<time::HostCounter> now() override;
    Result<state::Anchor<time::HostCounter>> anchor() override;

    /// One KVM_GET_DEVICE_ATTR, one KVM_GET_MSRS, one KVM_GET_TSC_KHZ.
    Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override;
    /// The narrowest of three brackets.
    Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override;
    Result<std::optional<time::PvclockLine>> pvclock_page(std::size_t vcpu) override;
    Result<machine::KvmclockReading> kvmclock() override;

    /// kUnsupported, and nothing is asked of the kernel, for a frequency that only KVM's catch-up
    /// mode could give: that mode moves the guest's counter at every exit. kKernel where the kernel
    /// refuses; it keeps the refused value as its answer to KVM_GET_TSC_KHZ, so the one before is
    /// put back.
    Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override;
    Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override;
    Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) override;
    Result<time::TscMap> tsc_map(std::size_t vcpu) override;
    Result<machine::WriteBracket> write_tsc_by_value(
        std::size_t vcpu, time::Count<time::GuestCounter> value) override;
    Status set_kvmclock(time::Instant<time::Kvmclock> clock) override;
    /// kGuest where the guest has no pvclock page, kUnsupported where the kernel has no
    /// KVM_KVMCLOCK_CTRL.
    Status signal_guest_stopped(std::size_t vcpu) override;
    /// settle_vcpu() of every vCPU in turn. The masterclock update of a later vCPU makes the pages
    /// of earlier ones a sample old; they are current after a call that finds no such update
    /// pending, as the one that ends apply() does.
    Status settle() override;

  private:
    /// What is known of a GUEST_STOPPED that was asked for: the page's version then. KVM publishes
    /// the flag with its next update of the page, which changes the version.
    struct StoppedRequest {
        bool asked = false;
        std::uint32_t version = 0;
    };

    Status known(std::size_t vcpu) const;
    Result<std::uint64_t> system_time_msr(std::size_t vcpu) const;
    Result<std::uint64_t> offset_of(std::size_t vcpu) const;
    time::TscMap map_of(std::uint32_t khz, std::uint64_t offset) const;
    bool stopped_pending(std::size_t vcpu, std::uint64_t system_time) const;
    Status settle_here();

    Vm& vm_;
    std::vector<Vcpu*> vcpus_;
    GuestMemory& memory_;
    HostClock host_;
    ClockMachineOptions options_;
    std::vector<bool> has_offset_;
    std::vector<StoppedRequest> stopped_;
};

}  // namespace continuo::kvm
