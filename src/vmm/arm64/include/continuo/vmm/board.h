// The board of a VM on arm64: its vCPUs and the ports at which it is heard. It has no interrupt
// controller: no guest that it runs needs one. The threads that run it are virtual_machine.h's.
#pragma once

#include <cstddef>
#include <cstdint>
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

class NoticeDevice;

/// Close to the gate of a resume a thread spins without giving its CPU away; before that it yields,
/// so that more vCPUs than CPUs can all arrive. Host ticks.
inline constexpr std::int64_t kGateSpinTicks = 2'000;

/// A VM without vCPUs. With kByValue its counters stay the kernel's.
state::Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl control);

class Board {
  public:
    /// Memory in slot 0, and vCPUs at reset, none waiting for PSCI. `console` must outlive it.
    static state::Result<Board> create(kvm::Vm& vm, const kvm::GuestMemory& memory,
                                       const VmConfig& config, const CpuModel& model,
                                       Console& console, std::vector<kvm::Vcpu>& vcpus);

    /// Deals with a vCPU's exit to a device, on its thread; nullopt for any other exit. What is
    /// read is ones.
    std::optional<DeviceAccess> access(kvm_run& run);
    /// There is no device that takes what is typed: 0.
    std::size_t type(std::span<const std::byte> /*bytes*/) { return 0; }
    void on_console_taken() {}

    /// The device that tells the guest of gaps: there is none.
    NoticeDevice* notice() { return nullptr; }
    void on_running(bool /*runs*/) {}

  private:
    Console* console_ = nullptr;
};

/// For the error of a guest that KVM could not run on. On the vCPU's thread.
std::string where_it_stands(const kvm::Vcpu& vcpu);

}  // namespace continuo::vmm
