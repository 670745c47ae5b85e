// The board of a VM on x86-64: its interrupt controllers, its vCPUs, and the ports at which it is
// heard. The threads that run it are virtual_machine.h's.
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
#include "continuo/vmm/counter_control.h"
#include "continuo/vmm/cpu_model.h"

namespace continuo::vmm {

/// Close to the gate of a resume a thread spins without giving its CPU away; before that it yields,
/// so that more vCPUs than CPUs can all arrive. Host ticks.
inline constexpr std::int64_t kGateSpinTicks = 60'000;

/// A VM without vCPUs. All controls are there on x86-64, whatever is asked for.
state::Result<kvm::Vm> create_vm(const kvm::System& system, CounterControl control);

class Board {
  public:
    /// PIC, IOAPIC, PIT, memory in slot 0, and vCPUs at reset.
    static state::Result<Board> create(kvm::Vm& vm, const kvm::GuestMemory& memory,
                                       const VmConfig& config, const CpuModel& model,
                                       std::vector<kvm::Vcpu>& vcpus);

    /// Bytes of one vCPU's XSAVE area on this host.
    std::size_t xsave_bytes() const { return xsave_bytes_; }

  private:
    std::size_t xsave_bytes_ = 4096;
};

enum class Port : std::uint8_t { kNone, kText, kExit };
struct PortAccess {
    Port port = Port::kNone;  ///< kNone: read, or written where nothing is
    std::span<const std::byte> written;
};
/// The access that an exit stands for, and nullopt for an exit that is none. What is read is ones.
std::optional<PortAccess> port_access(kvm_run& run);

/// For the error of a guest that KVM could not run on. On the vCPU's thread.
std::string where_it_stands(const kvm::Vcpu& vcpu);

}  // namespace continuo::vmm
