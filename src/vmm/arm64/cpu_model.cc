#include "continuo/vmm/cpu_model.h"

#include <linux/kvm.h>

#include <algorithm>
#include <string>

#include "continuo/kvm/host.h"
#include "continuo/kvm/vm.h"

namespace continuo::vmm {

using state::ErrorCode;
using state::Result;
using state::Status;

Result<CpuModel> host_cpu_model(const kvm::System& system, const VmConfig&) {
    const auto host = kvm::examine_host(system);
    if (!host) return tl::unexpected(host.error());
    const auto vm = kvm::Vm::create(system);
    if (!vm) return tl::unexpected(vm.error());
    const auto target = vm->preferred_target();
    if (!target) return tl::unexpected(target.error());
    CpuModel model;
    model.target = target->target;
    std::copy(std::begin(target->features), std::end(target->features), model.features.begin());
    model.features[KVM_ARM_VCPU_PSCI_0_2 / 32] |= 1u << (KVM_ARM_VCPU_PSCI_0_2 % 32);
    model.counter_hz = host->frequency().hz();
    const auto gic = kvm::Device::create(*vm, KVM_DEV_TYPE_ARM_VGIC_V3);
    if (!gic && gic.error().code != ErrorCode::kUnsupported) return tl::unexpected(gic.error());
    if (gic) model.interrupts = InterruptController::kGicV3;
    return model;
}

Status check_cpu_model(const CpuModel& wanted, const CpuModel& offered) {
    const auto refuse = [](const char* where, const std::string& what) {
        return state::fail(ErrorCode::kUnsupported, where, what,
                           "the hosts' CPUs or kernels differ: choose another destination");
    };
    if (wanted.counter_hz != offered.counter_hz) {
        return refuse("CNTFRQ_EL0",
                      "the guest's counters run at " + std::to_string(wanted.counter_hz) +
                          " Hz and this host's at " + std::to_string(offered.counter_hz) +
                          " Hz, and arm64 has no scaling");
    }
    if (wanted.target != offered.target) {
        return refuse("KVM_ARM_VCPU_INIT",
                      "the guest was given target " + std::to_string(wanted.target) +
                          ", this host prefers " + std::to_string(offered.target));
    }
    if (wanted.features != offered.features)
        return refuse("KVM_ARM_VCPU_INIT", "the guest was given other vCPU features");
    // A guest without one needs none.
    if (wanted.interrupts == InterruptController::kGicV3 && offered.interrupts != wanted.interrupts)
        return refuse("KVM_CREATE_DEVICE", "the guest has a GICv3, and this host can give none");
    return {};
}

}  // namespace continuo::vmm
