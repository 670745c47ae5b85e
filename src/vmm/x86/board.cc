#include "continuo/vmm/board.h"

#include <cstdio>

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

Status create_devices(kvm::Vm& vm, const kvm::GuestMemory& memory) {
    if (auto done = vm.set_identity_map_address(kIdentityMapAddress); !done) return done;
    if (auto done = vm.set_tss_address(kTssAddress); !done) return done;
    if (auto done = vm.create_irqchip(); !done) return done;
    if (auto done = vm.create_pit(); !done) return done;
    return vm.set_memory(0, memory, false);
}

}  // namespace

Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl) {
    return kvm::Vm::create(system);
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
    const auto xsave = vm.check_extension(KVM_CAP_XSAVE2);
    if (xsave && *xsave > 4096) board.xsave_bytes_ = static_cast<std::size_t>(*xsave);
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

void Board::on_running(bool runs) {
    if (NoticeDevice* device = notice()) device->on_running(runs);
}

std::string where_it_stands(const kvm::Vcpu& vcpu) {
    const auto regs = vcpu.regs();
    const auto sregs = vcpu.sregs();
    if (!regs || !sregs) return {};
    char text[96];
    std::snprintf(text, sizeof text, ", at RIP 0x%llx, RSP 0x%llx, CR2 0x%llx, ring %u", regs->rip,
                  regs->rsp, sregs->cr2, static_cast<unsigned>(sregs->ss.dpl));
    return text;
}

}  // namespace continuo::vmm
