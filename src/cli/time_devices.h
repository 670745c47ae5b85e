// What the host knows of the devices that tell a guest of the time, as JSON, and news of them as
// progress.
#pragma once

#include "continuo/state/json.h"
#include "continuo/vmm/virtual_machine.h"

namespace continuo::cli {

/// The notice device's sequence, sums and counts; null where the VM has none.
state::Json notice_device_json(vmm::VirtualMachine& machine);

/// The vmclock page as the host has it, and its counts; null where the VM has none.
state::Json vmclock_json(vmm::VirtualMachine& machine);

/// Lets the devices do what is due, and says what happened. For whoever waits for a running VM: at
/// least some ten times a second.
void tend_time_devices(vmm::VirtualMachine& machine);

}  // namespace continuo::cli
