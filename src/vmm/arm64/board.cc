#include "continuo/vmm/board.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "continuo/vmm/arm64_board.h"
#include "continuo/vmm/core_registers.h"
#include "interrupt_controller.h"
#include "serial.h"
#include "time_devices.h"

namespace continuo::vmm {

namespace {

using state::Result;
using state::Status;

Result<kvm::Vcpu> create_vcpu(const kvm::Vm& vm, std::uint32_t id, const CpuModel& model) {
    auto vcpu = kvm::Vcpu::create(vm, id);
    if (!vcpu) return vcpu;
    kvm_vcpu_init init{};
    init.target = model.target;
    std::copy(model.features.begin(), model.features.end(), init.features);
    if (auto done = vcpu->init(init); !done) return tl::unexpected(std::move(done.error()));
    return vcpu;
}

Status create_vcpus(const kvm::Vm& vm, std::uint32_t count, const CpuModel& model,
                    std::vector<kvm::Vcpu>& vcpus) {
    for (std::uint32_t id = 0; id < count; ++id) {
        auto vcpu = create_vcpu(vm, id, model);
        if (!vcpu) return tl::unexpected(std::move(vcpu.error()));
        vcpus.push_back(std::move(*vcpu));
    }
    return {};
}

bool is_within(std::uint64_t at, std::uint64_t begin, std::uint64_t bytes) {
    return at >= begin && at - begin < bytes;
}

DeviceAccess access_serial(SerialPort& serial, std::uint16_t offset, const kvm_run& run,
                           std::span<std::uint8_t> data) {
    // A register is a byte; what is wider or behind the last reads as ones.
    const bool is_register = offset < SerialPort::kRegisters && data.size() == 1;
    if (run.mmio.is_write != 0) {
        if (is_register) serial.write(offset, data[0]);
    } else if (is_register) {
        data[0] = serial.read(offset);
    } else {
        std::fill(data.begin(), data.end(), std::uint8_t{0xff});
    }
    return {};
}

DeviceAccess access_exit(const kvm_run& run, std::span<std::uint8_t> data) {
    if (run.mmio.is_write == 0) {
        std::fill(data.begin(), data.end(), std::uint8_t{0xff});
        return {};
    }
    DeviceAccess exit{GuestRequest::kExit, 0};
    if (data.size() != sizeof exit.code) return {};
    std::memcpy(&exit.code, data.data(), sizeof exit.code);
    return exit;
}

std::optional<DeviceAccess> access_psci(const kvm_run& run) {
    switch (run.system_event.type) {
        case KVM_SYSTEM_EVENT_SHUTDOWN:
            return DeviceAccess{GuestRequest::kPowerOff, 0};
        case KVM_SYSTEM_EVENT_RESET:
            return DeviceAccess{GuestRequest::kReset, 0};
        default:
            return std::nullopt;
    }
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
    if (config.memory_bytes > arm64::kDevices) {
        return state::fail(
            state::ErrorCode::kInvalidArgument, "memory",
            std::to_string(config.memory_bytes) + " bytes; an arm64 VM has room for 63 GiB");
    }
    if (auto done = vm.set_memory(0, memory, false); !done)
        return tl::unexpected(std::move(done.error()));
    Board board;
    if (model.interrupts == InterruptController::kGicV3) {
        auto gic = arm64::Gic::create(vm);
        if (!gic) return tl::unexpected(std::move(gic.error()));
        board.gic_ = std::make_unique<arm64::Gic>(std::move(*gic));
    }
    if (auto done = create_vcpus(vm, config.vcpus, model, vcpus); !done)
        return tl::unexpected(std::move(done.error()));
    if (board.gic_) {
        if (auto done = board.gic_->initialise(); !done)
            return tl::unexpected(std::move(done.error()));
    }
    // A line that cannot be moved is KVM's end of the VM's: its vCPUs will say so.
    const auto set_line = [&vm, wired = board.gic_ != nullptr](std::uint32_t interrupt, bool on) {
        if (wired) (void)vm.set_interrupt_line(interrupt, on);
    };
    board.serial_ = std::make_unique<SerialPort>(
        console, [set_line](bool on) { set_line(arm64::kSerialInterrupt, on); });
    board.time_devices_ = std::make_unique<arm64::TimeDevices>(set_line);
    return board;
}

Board::Board() = default;
Board::Board(Board&&) noexcept = default;
Board& Board::operator=(Board&&) noexcept = default;
Board::~Board() = default;

std::optional<DeviceAccess> Board::access(kvm_run& run) {
    if (run.exit_reason == KVM_EXIT_SYSTEM_EVENT) return access_psci(run);
    if (run.exit_reason != KVM_EXIT_MMIO) return std::nullopt;
    const std::uint64_t at = run.mmio.phys_addr;
    const std::span data{run.mmio.data, std::min<std::size_t>(run.mmio.len, sizeof run.mmio.data)};
    if (is_within(at, arm64::kSerial, arm64::kSerialBytes))
        return access_serial(*serial_, static_cast<std::uint16_t>(at - arm64::kSerial), run, data);
    if (at == arm64::kExit) return access_exit(run, data);
    // Anywhere else is a stray pointer of the guest.
    return std::nullopt;
}

std::size_t Board::type(std::span<const std::byte> bytes) {
    return serial_->receive(bytes);
}

void Board::on_console_taken() {
    serial_->on_room();
}

NoticeDevice* Board::notice() {
    return time_devices_->notice();
}

VmclockDevice* Board::vmclock() {
    return time_devices_->vmclock();
}

void Board::on_running(bool runs) {
    if (NoticeDevice* device = notice()) device->on_running(runs);
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
