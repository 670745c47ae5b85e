// Puts an Image, its initrd and the device tree into memory, and vCPU 0 at its entry, as
// Documentation/arch/arm64/booting.rst has it. The others wait for PSCI's CPU_ON.
#include "continuo/vmm/guest_kernel.h"

#include "boot_plan.h"
#include "continuo/vmm/core_registers.h"
#include "guest_writer.h"
#include "time_devices.h"

namespace continuo::vmm {

namespace {

Status set_boot_registers(kvm::Vcpu& vcpu, std::uint64_t entry) {
    const std::pair<std::uint64_t, std::uint64_t> values[] = {
        {general_register(0), arm64::kDeviceTree},
        {general_register(1), 0},
        {general_register(2), 0},
        {general_register(3), 0},
        {kRegisterPstate, kPstateEl1hMasked},
        {kRegisterPc, entry},
    };
    for (const auto& [id, value] : values) {
        if (auto set = vcpu.set_one_reg(id, value); !set) return set;
    }
    return {};
}

Status set_vcpus(std::vector<kvm::Vcpu>& vcpus, std::uint64_t entry) {
    for (kvm::Vcpu& vcpu : vcpus) {
        const bool first = &vcpu == &vcpus.front();
        if (first) {
            if (auto set = set_boot_registers(vcpu, entry); !set) return set;
        }
        const std::uint32_t state = first ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_STOPPED;
        if (auto set = vcpu.set_mp_state(kvm_mp_state{state}); !set) return set;
    }
    return {};
}

Status add_time_devices(VirtualMachine& machine, const GuestKernel& kernel) {
    const arm64::GuestPages pages = arm64::pages_of(machine);
    arm64::TimeDevices& devices = machine.board().time_devices();
    if (kernel.notice) {
        auto device = NoticeDevice::create(devices.notice_wiring(pages), arm64::kNoticePage,
                                           kernel.release_after_ns);
        if (!device) return tl::unexpected(std::move(device.error()));
        devices.add(std::move(*device));
    }
    if (!kernel.vmclock) return {};
    auto device = VmclockDevice::create(devices.vmclock_wiring(pages), {arm64::kVmclockPage, {}});
    if (!device) return tl::unexpected(std::move(device.error()));
    devices.add(std::move(*device));
    return devices.vmclock()->start(std::nullopt);
}

}  // namespace

Result<KernelFormat> load_guest_kernel(VirtualMachine& machine, const GuestKernel& kernel) {
    if (machine.cpu_model().interrupts != InterruptController::kGicV3) {
        return state::fail(state::ErrorCode::kUnsupported, kernel.name,
                           "this host cannot give a VM a GICv3 (KVM_CREATE_DEVICE)",
                           "boot it on a host that has one");
    }
    const auto plan =
        arm64::plan_boot(kernel, machine.config().vcpus, machine.config().memory_bytes);
    if (!plan) return tl::unexpected(plan.error());
    GuestWriter out{machine.memory()};
    out.put_bytes(arm64::kDeviceTree, arm64::device_tree(plan->machine));
    out.put_bytes(plan->entry, plan->image);
    out.put_bytes(plan->machine.initrd, kernel.initrd);
    if (auto written = out.status(); !written) return tl::unexpected(std::move(written.error()));
    if (auto added = add_time_devices(machine, kernel); !added)
        return tl::unexpected(std::move(added.error()));
    if (auto set = set_vcpus(machine.vcpus(), plan->entry); !set)
        return tl::unexpected(std::move(set.error()));
    return KernelFormat::kArm64Image;
}

}  // namespace continuo::vmm
