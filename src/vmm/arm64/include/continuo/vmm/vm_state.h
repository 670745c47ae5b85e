// Saves the state of a stopped arm64 VM beside its memory and its clocks, and loads it into a VM of
// the same shape: every register that KVM lists but the values of the counters, which the clock
// record owns, multiprocessing state (which vCPUs PSCI has switched on), pending events, the
// interrupt controller, the serial port. What it is as values and bytes: arm64_state.h.
#pragma once

#include <span>

#include "continuo/vmm/arm64_state.h"
#include "continuo/vmm/virtual_machine.h"

namespace continuo::vmm {

using arm64::decode_state;
using arm64::encode_state;
using arm64::VcpuState;
using arm64::VmState;

/// Reads everything. The VM is stopped.
Result<VmState> save_state(VirtualMachine& machine, const kvm::System& system);

/// Writes everything but the timers, which mean nothing before the counters are what they will be:
/// see arm_timers. Only into a stopped VM that has not run. kInvalidArgument where the numbers of
/// vCPUs differ or one of the two has no interrupt controller; kKernel with the register's id where
/// the host does not take a register's value and the vCPU has another.
Status load_state(VirtualMachine& machine, const VmState& state);

/// Sets compare values and controls of both timers. After the counters' offset is in force.
Status arm_timers(VirtualMachine& machine, const VmState& state);

}  // namespace continuo::vmm
