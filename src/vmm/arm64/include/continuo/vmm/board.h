// The board of a VM on arm64 (arm64_board.h): its interrupt controller, its vCPUs, its console, and
// PSCI, which is KVM's. The threads that run it are virtual_machine.h's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "continuo/kvm/memory.h"
#include "continuo/kvm/vcpu.h"
#include "continuo/kvm/vm.h"
#include "continuo/vmm/console.h"
#include "continuo/vmm/counter_control.h"
#include "continuo/vmm/cpu_model.h"
#include "continuo/vmm/guest_request.h"

namespace continuo::vmm {

class GenerationDevice;
class NoticeDevice;
class SerialPort;
class VmclockDevice;
namespace arm64 {
class Gic;
class TimeDevices;
}  // namespace arm64

/// Close to the gate of a resume a thread spins without giving its CPU away; before that it yields,
/// so that more vCPUs than CPUs can all arrive. Host ticks.
inline constexpr std::int64_t kGateSpinTicks = 2'000;

inline constexpr std::uint64_t kMemoryMax = 1ull << 30;
inline state::Result<kvm::GuestMemory> create_memory(std::uint64_t bytes) {
    return kvm::GuestMemory::create(bytes);
}

/// A VM without vCPUs. With kByValue its counters stay the kernel's.
state::Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl control);

class Board {
  public:
    /// The interrupt controller that the model has, memory in slot 0, and vCPUs at reset, none of
    /// which waits for PSCI. kInvalidArgument for more memory than there is room for below the
    /// devices. `vm` and `console` must outlive it.
    static state::Result<Board> create(kvm::Vm& vm, const kvm::GuestMemory& memory,
                                       const VmConfig& config, const CpuModel& model,
                                       Console& console, std::vector<kvm::Vcpu>& vcpus);
    Board();
    Board(Board&&) noexcept;
    Board& operator=(Board&&) noexcept;
    ~Board();

    /// Deals with a vCPU's exit to a device, or with what it asked of PSCI, on its thread; nullopt
    /// for any other exit.
    std::optional<DeviceAccess> access(kvm_run& run);
    /// What is typed at the console; how many bytes there was room for. Any thread.
    std::size_t type(std::span<const std::byte> bytes);
    /// The console's text has been taken. Any thread.
    void on_console_taken();

    SerialPort& serial() { return *serial_; }
    /// nullptr: the VM has none.
    arm64::Gic* gic() { return gic_.get(); }

    arm64::TimeDevices& time_devices() { return *time_devices_; }
    /// The device that tells the guest of gaps; null where the VM has none.
    NoticeDevice* notice();
    /// The device that tells it the time; null where the VM has none.
    VmclockDevice* vmclock();
    /// The one that tells it which life of a snapshot it is: vmclock does.
    GenerationDevice* generation() { return nullptr; }
    /// Before the vCPUs run, and after.
    void on_running(bool runs);

  private:
    std::unique_ptr<arm64::Gic> gic_;
    std::unique_ptr<SerialPort> serial_;
    std::unique_ptr<arm64::TimeDevices> time_devices_;
};

/// For the error of a guest that KVM could not run on. On the vCPU's thread.
std::string where_it_stands(const kvm::Vcpu& vcpu);

}  // namespace continuo::vmm
