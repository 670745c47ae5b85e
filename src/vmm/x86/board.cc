#include "continuo/vmm/board.h"

#include <algorithm>
#include <cstdio>

#include "continuo/abi/kvm_x86.h"
#include "cpu_topology.h"
#include "devices.h"

namespace continuo::vmm {

namespace {

using state::Result;
using state::Status;

constexpr std::uint64_t kTssAddress = 0xfffbd000;
constexpr std::uint64_t kIdentityMapAddress = 0xfffbc000;

Result<kvm::Vcpu> create_vcpu(const kvm::Vm& vm, std::uint32_t id, const VmConfig& config,
                              const CpuModel& model) {
    auto vcpu = kvm::Vcpu::create(vm, id);
    if (!vcpu) return vcpu;
    CpuModel cpuid = model;
    set_topology(cpuid, id, config.vcpus);
    if (auto done = vcpu->set_cpuid(cpuid); !done) return tl::unexpected(std::move(done.error()));
    if (config.tsc_khz == 0) return vcpu;
    if (auto done = vcpu->set_tsc_khz(config.tsc_khz); !done) {
        done.error().advice = "this host cannot give a guest another TSC frequency";
        return tl::unexpected(std::move(done.error()));
    }
    return vcpu;
}

StateSizes state_sizes_of(const kvm::Vm& vm) {
    StateSizes sizes;
    const auto xsave = vm.check_extension(KVM_CAP_XSAVE2);
    if (xsave && *xsave > 0) sizes.xsave = std::max(sizes.xsave, static_cast<std::size_t>(*xsave));
    const auto nested = vm.check_extension(KVM_CAP_NESTED_STATE);
    if (nested && *nested > 0) sizes.nested = static_cast<std::size_t>(*nested);
    return sizes;
}

/// Has KVM_GET_VCPU_EVENTS tell a pending exception from one under way, with what it carries, and
/// a triple fault that user space has not heard of. Kernels that cannot are old ones.
Status tell_all_events(kvm::Vm& vm) {
    for (const std::uint32_t capability :
         {abi::kKVM_CAP_EXCEPTION_PAYLOAD, abi::kKVM_CAP_X86_TRIPLE_FAULT_EVENT}) {
        const auto has = vm.check_extension(static_cast<int>(capability));
        if (!has || *has <= 0) continue;
        if (auto on = vm.enable_capability(capability, 1); !on) return on;
    }
    return {};
}

Status create_devices(kvm::Vm& vm, const kvm::GuestMemory& memory) {
    if (auto done = vm.set_identity_map_address(kIdentityMapAddress); !done) return done;
    if (auto done = vm.set_tss_address(kTssAddress); !done) return done;
    if (auto done = vm.create_irqchip(); !done) return done;
    if (auto done = vm.create_pit(); !done) return done;
    return vm.set_memory(0, memory, false);
}

}  // namespace

Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl) {
    auto vm = kvm::Vm::create(system);
    if (!vm) return vm;
    if (auto told = tell_all_events(*vm); !told) return tl::unexpected(std::move(told.error()));
    return vm;
}

Result<kvm::GuestMemory> create_memory(std::uint64_t bytes) {
    return kvm::GuestMemory::create_around(bytes, kDeviceAddresses);
}

Result<Board> Board::create(kvm::Vm& vm, const kvm::GuestMemory& memory, const VmConfig& config,
                            const CpuModel& model, Console& console,
                            std::vector<kvm::Vcpu>& vcpus) {
    if (auto done = create_devices(vm, memory); !done)
        return tl::unexpected(std::move(done.error()));
    Board board;
    // A line that cannot be moved is KVM's end of the VM's: its vCPUs will say so.
    board.devices_ = std::make_unique<Devices>(
        console, [&vm](std::uint32_t gsi, bool on) { (void)vm.set_interrupt_line(gsi, on); });
    board.state_sizes_ = state_sizes_of(vm);
    for (std::uint32_t id = 0; id < config.vcpus; ++id) {
        auto vcpu = create_vcpu(vm, id, config, model);
        if (!vcpu) return tl::unexpected(std::move(vcpu.error()));
        vcpus.push_back(std::move(*vcpu));
    }
    return board;
}

Board::Board() = default;
Board::Board(Board&&) noexcept = default;
Board& Board::operator=(Board&&) noexcept = default;
Board::~Board() = default;

std::optional<DeviceAccess> Board::access(kvm_run& run) {
    return devices_->access(run);
}

std::size_t Board::type(std::span<const std::byte> bytes) {
    return devices_->serial().receive(bytes);
}

void Board::on_console_taken() {
    devices_->serial().on_room();
}

NoticeDevice* Board::notice() {
    return devices_->notice();
}

GenerationDevice* Board::generation() {
    return devices_->generation();
}

VmclockDevice* Board::vmclock() {
    return devices_->vmclock();
}

void Board::on_running(bool runs) {
    if (NoticeDevice* device = notice()) device->on_running(runs);
}

std::string where_it_stands(const kvm::Vcpu& vcpu) {
    const auto regs = vcpu.regs();
    const auto sregs = vcpu.sregs();
    const auto events = vcpu.events();
    if (!regs || !sregs || !events) return {};
    constexpr std::uint64_t kResetRip = 0xfff0;
    if (regs->rip == kResetRip && (sregs->cr0 & 1) == 0)
        return ", after which this CPU's KVM has reset the vCPU: where it stood is lost";
    char text[480];
    std::snprintf(text, sizeof text,
                  ", at RIP 0x%llx, RSP 0x%llx, RFLAGS 0x%llx, ring %u, CS 0x%x, CR0 0x%llx, "
                  "CR2 0x%llx, CR3 0x%llx, CR4 0x%llx, EFER 0x%llx, GDT 0x%llx, IDT 0x%llx, "
                  "TR 0x%llx, exception %u%s%s error 0x%x, interrupt %u%s",
                  regs->rip, regs->rsp, regs->rflags, static_cast<unsigned>(sregs->ss.dpl),
                  static_cast<unsigned>(sregs->cs.selector), sregs->cr0, sregs->cr2, sregs->cr3,
                  sregs->cr4, sregs->efer, sregs->gdt.base, sregs->idt.base, sregs->tr.base,
                  static_cast<unsigned>(events->exception.nr),
                  events->exception.injected != 0 ? " injected" : "",
                  events->exception.pending != 0 ? " pending" : "", events->exception.error_code,
                  static_cast<unsigned>(events->interrupt.nr),
                  events->interrupt.injected != 0 ? " injected" : "");
    return text;
}

}  // namespace continuo::vmm
