#include "continuo/vmm/board.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "continuo/vmm/core_registers.h"
#include "continuo/vmm/witness_machine.h"

namespace continuo::vmm {

namespace {

using state::Result;

Result<kvm::Vcpu> create_vcpu(const kvm::Vm& vm, std::uint32_t id, const CpuModel& model) {
    auto vcpu = kvm::Vcpu::create(vm, id);
    if (!vcpu) return vcpu;
    kvm_vcpu_init init{};
    init.target = model.target;
    std::copy(model.features.begin(), model.features.end(), init.features);
    if (auto done = vcpu->init(init); !done) return tl::unexpected(std::move(done.error()));
    return vcpu;
}

}  // namespace

Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl control) {
    kvm::VmOptions options;
    if (control == CounterControl::kByValue) options.counter = kvm::CounterOwner::kKernel;
    return kvm::Vm::create(system, options);
}

Result<Board> Board::create(kvm::Vm& vm, const kvm::GuestMemory& memory, const VmConfig& config,
                            const CpuModel& model, Console& console,
                            std::vector<kvm::Vcpu>& vcpus) {
    if (auto done = vm.set_memory(0, memory, false); !done)
        return tl::unexpected(std::move(done.error()));
    for (std::uint32_t id = 0; id < config.vcpus; ++id) {
        auto vcpu = create_vcpu(vm, id, model);
        if (!vcpu) return tl::unexpected(std::move(vcpu.error()));
        vcpus.push_back(std::move(*vcpu));
    }
    Board board;
    board.console_ = &console;
    return board;
}

std::optional<DeviceAccess> Board::access(kvm_run& run) {
    if (run.exit_reason != KVM_EXIT_MMIO) return std::nullopt;
    const std::size_t bytes = std::min<std::size_t>(run.mmio.len, sizeof run.mmio.data);
    const std::uint64_t at = run.mmio.phys_addr;
    // Anywhere else is a stray pointer of the guest.
    if (at < witness::kPorts || at - witness::kPorts >= kvm::kPageSize) return std::nullopt;
    if (run.mmio.is_write == 0) {
        std::fill_n(run.mmio.data, bytes, std::uint8_t{0xff});
        return DeviceAccess{};
    }
    const auto written = std::as_bytes(std::span{run.mmio.data}).first(bytes);
    if (at == witness::kPortSerial && bytes == 1) console_->put(written);
    if (at != witness::kPortExit || bytes != sizeof(std::uint32_t)) return DeviceAccess{};
    DeviceAccess exit{GuestRequest::kExit, 0};
    std::memcpy(&exit.code, written.data(), sizeof exit.code);
    return exit;
}

std::string where_it_stands(const kvm::Vcpu& vcpu) {
    const auto pc = vcpu.one_reg(kRegisterPc);
    const auto sp = vcpu.one_reg(kRegisterSpEl1);
    const auto state = vcpu.one_reg(kRegisterPstate);
    if (!pc || !sp || !state) return {};
    char text[96];
    std::snprintf(text, sizeof text, ", at PC 0x%llx, SP_EL1 0x%llx, PSTATE 0x%llx",
                  static_cast<unsigned long long>(*pc), static_cast<unsigned long long>(*sp),
                  static_cast<unsigned long long>(*state));
    return text;
}

}  // namespace continuo::vmm
