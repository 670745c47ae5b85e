// Puts an Image, its initrd and the device tree into memory, and vCPU 0 at its entry, as
// Documentation/arch/arm64/booting.rst has it. The others wait for PSCI's CPU_ON.
#include "continuo/vmm/guest_kernel.h"

#include <algorithm>

#include "continuo/vmm/core_registers.h"
#include "device_tree.h"
#include "guest_writer.h"
#include "kernel_image.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

// The device tree lies in the first 2 MiB and the kernel behind them. Not at 0: Linux takes that
// for no tree.
constexpr std::uint64_t kDeviceTree = 0x1'0000;
constexpr std::uint64_t kKernelBase = 2ull << 20;
/// The initrd and the kernel lie in a window of 32 GiB.
constexpr std::uint64_t kInitrdEndMax = 32ull << 30;
constexpr std::size_t kCommandLineMax = 2047;  // COMMAND_LINE_SIZE, the end not counted

tl::unexpected<state::Error> no_room(const GuestKernel& kernel, std::string what) {
    return state::fail(ErrorCode::kInvalidArgument, kernel.name, std::move(what),
                       "give the VM more memory (--memory)");
}

/// The highest whole pages.
Result<std::uint64_t> place_initrd(const GuestKernel& kernel, std::uint64_t kernel_end,
                                   std::uint64_t memory_bytes) {
    const std::uint64_t limit = std::min(memory_bytes, kInitrdEndMax);
    const std::uint64_t bytes = kernel.initrd.size();
    if (bytes <= limit) {
        const std::uint64_t at = (limit - bytes) / kvm::kPageSize * kvm::kPageSize;
        if (at >= kernel_end) return at;
    }
    return no_room(kernel, std::to_string(bytes) +
                               " bytes of initrd do not fit between the kernel's end, " +
                               std::to_string(kernel_end) + ", and " + std::to_string(limit));
}

Result<arm64::MachineDescription> describe(const GuestKernel& kernel, std::uint64_t kernel_end,
                                           const VmConfig& config) {
    if (kernel_end > config.memory_bytes)
        return no_room(kernel, "it needs memory up to " + std::to_string(kernel_end) + " bytes");
    if (kernel.command_line.size() > kCommandLineMax) {
        return state::fail(ErrorCode::kInvalidArgument, "command line",
                           std::to_string(kernel.command_line.size()) +
                               " characters; this kernel takes " + std::to_string(kCommandLineMax));
    }
    const auto initrd = place_initrd(kernel, kernel_end, config.memory_bytes);
    if (!initrd) return tl::unexpected(initrd.error());
    return arm64::MachineDescription{config.vcpus, config.memory_bytes, kernel.command_line,
                                     *initrd, kernel.initrd.size()};
}

Status set_boot_registers(kvm::Vcpu& vcpu, std::uint64_t entry) {
    const std::pair<std::uint64_t, std::uint64_t> values[] = {
        {general_register(0), kDeviceTree},
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

}  // namespace

Result<KernelFormat> load_guest_kernel(VirtualMachine& machine, const GuestKernel& kernel) {
    if (machine.cpu_model().interrupts != InterruptController::kGicV3) {
        return state::fail(ErrorCode::kUnsupported, kernel.name,
                           "this host cannot give a VM a GICv3 (KVM_CREATE_DEVICE)",
                           "boot it on a host that has one");
    }
    auto image = arm64::parse_kernel_image(kernel.image);
    if (!image) {
        image.error().where = kernel.name + ": " + image.error().where;
        return tl::unexpected(std::move(image.error()));
    }
    const std::uint64_t entry = kKernelBase + image->text_offset;
    const auto described = describe(kernel, entry + image->memory_bytes, machine.config());
    if (!described) return tl::unexpected(described.error());
    GuestWriter out{machine.memory()};
    out.put_bytes(kDeviceTree, arm64::device_tree(*described));
    out.put_bytes(entry, image->bytes);
    out.put_bytes(described->initrd, kernel.initrd);
    if (auto written = out.status(); !written) return tl::unexpected(std::move(written.error()));
    if (auto set = set_vcpus(machine.vcpus(), entry); !set)
        return tl::unexpected(std::move(set.error()));
    return KernelFormat::kArm64Image;
}

}  // namespace continuo::vmm
