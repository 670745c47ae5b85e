// The clocks of a VM on the model of KVM on x86-64, as a machine::Machine: what capture, apply and
// verify do on real KVM, they do here in the same calls and with the same answers. It knows of the
// kernel what user space can know; the truth is the KvmVm's.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "continuo/machine/machine.h"
#include "continuo/model/kvm_vm.h"

namespace continuo::model {

/// What a host says of itself beside its counter.
struct KvmMachineHost {
    state::HostIdentity identity{{1}, "kvm model"};
    std::uint64_t tai_bound_ns = 0;  ///< that its REALTIME is off true UTC
    std::int32_t tai_offset_sec = 37;
    bool synchronised = true;
    std::uint32_t rate_bound_ppb = state::kRateBoundUnknownPpb;
};

/// A stopped VM. Each call takes the time that the Platform lets pass at its readings.
class KvmMachine final : public machine::Machine {
  public:
    /// Lifetime: `vm` outlives the machine.
    explicit KvmMachine(KvmVm& vm, KvmMachineHost host = {}) : vm_{vm}, host_{std::move(host)} {}

    std::size_t vcpu_count() const override { return vm_.vcpu_count(); }
    /// Quirks are those of the VM's rules, as doctor would find them.
    Result<machine::HostFacts> host_facts() override;
    time::Count<time::HostCounter> now() override;
    Result<state::Anchor<time::HostCounter>> anchor() override;

    Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override;
    Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override;
    Result<std::optional<time::PvclockLine>> pvclock_page(std::size_t vcpu) override;
    Result<machine::KvmclockReading> kvmclock() override;

    Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override;
    Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override;
    Status set_tsc_offset(std::size_t vcpu, std::uint64_t offset) override;
    /// From KVM_GET_TSC_KHZ and the offset, as user space must: another tsc_tolerance_ppm than 250
    /// goes unnoticed.
    Result<TscMap> tsc_map(std::size_t vcpu) override;
    Result<machine::WriteBracket> write_tsc_by_value(
        std::size_t vcpu, time::Count<time::GuestCounter> value) override;
    Status set_kvmclock(time::Instant<time::Kvmclock> clock) override;
    Status signal_guest_stopped(std::size_t vcpu) override;
    Status settle() override;

  private:
    /// GUEST_STOPPED was asked for while the page had this version.
    struct StoppedRequest {
        bool asked = false;
        std::uint32_t version = 0;
    };

    Status known(std::size_t vcpu) const;
    bool scalable(std::uint64_t khz) const;
    bool stopped_pending(unsigned vcpu) const;

    KvmVm& vm_;
    KvmMachineHost host_;
    std::array<StoppedRequest, KvmVm::kVcpusMax> stopped_{};
};

}  // namespace continuo::model
