// The board of a VM on x86-64: its interrupt controllers, its vCPUs and its devices. The threads
// that run it are virtual_machine.h's.
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

class Devices;
class GenerationDevice;
class NoticeDevice;
class VmclockDevice;

/// Close to the gate of a resume a thread spins without giving its CPU away; before that it yields,
/// so that more vCPUs than CPUs can all arrive. Host ticks.
inline constexpr std::int64_t kGateSpinTicks = 60'000;

/// What KVM's own limits and a test's patience allow; a guest's memory takes none before it is
/// touched.
inline constexpr std::uint64_t kMemoryMax = 64ull << 30;
/// Where a PC has its devices: memory that would lie there goes on above.
inline constexpr kvm::AddressRange kDeviceAddresses{3ull << 30, 1ull << 30};
state::Result<kvm::GuestMemory> create_memory(std::uint64_t bytes);

/// A VM without vCPUs. All controls are there on x86-64, whatever is asked for.
state::Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl control);

/// Bytes of what one vCPU has of a size that differs between hosts.
struct StateSizes {
    std::size_t xsave = 4096;
    std::size_t nested = 0;  ///< at most; 0: this host cannot save nested state
};

class Board {
  public:
    /// PIC, IOAPIC, PIT, devices (devices.h), memory from slot 0 on, and vCPUs at reset. `vm` and
    /// `console` must outlive it.
    static state::Result<Board> create(kvm::Vm& vm, const kvm::GuestMemory& memory,
                                       const VmConfig& config, const CpuModel& model,
                                       Console& console, std::vector<kvm::Vcpu>& vcpus);
    Board();
    Board(Board&&) noexcept;
    Board& operator=(Board&&) noexcept;
    ~Board();

    /// Deals with a vCPU's exit to a device, on its thread; nullopt for any other exit.
    std::optional<DeviceAccess> access(kvm_run& run);
    /// What is typed at the console; how many bytes there was room for. Any thread.
    std::size_t type(std::span<const std::byte> bytes);
    /// The console's text has been taken. Any thread.
    void on_console_taken();

    /// The device that tells the guest of gaps; null where the VM has none.
    NoticeDevice* notice();
    /// The one that tells it which life of a snapshot it is; null where the VM has none.
    GenerationDevice* generation();
    /// The device that tells it the time; null where the VM has none.
    VmclockDevice* vmclock();
    /// Before the vCPUs run, and after.
    void on_running(bool runs);

    const StateSizes& state_sizes() const { return state_sizes_; }
    Devices& devices() { return *devices_; }

  private:
    StateSizes state_sizes_;
    std::unique_ptr<Devices> devices_;
};

/// The registers that say where the guest was, for the error of one that cannot go on; empty where
/// they cannot be read. On the vCPU's thread.
std::string where_it_stands(const kvm::Vcpu& vcpu);

}  // namespace continuo::vmm
