// The device tree that a kernel is handed: what is on an arm64 board (arm64_board.h), in the words
// of the bindings (Documentation/devicetree/bindings: arm/cpus, arm/psci, timer/arm,arch_timer,
// interrupt-controller/arm,gic-v3, serial/8250). Builds on every architecture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace continuo::vmm::arm64 {

struct MachineDescription {
    std::uint32_t vcpus = 1;
    std::uint64_t memory_bytes = 0;
    std::string command_line;
    std::uint64_t initrd = 0;        ///< GPA
    std::uint64_t initrd_bytes = 0;  ///< 0: none
    bool notice = false;             ///< the time-travel device (docs/formats/time-travel.md)
    bool vmclock = false;            ///< bindings: ptp/amazon,vmclock
};

/// The flattened tree (DTB).
std::vector<std::byte> device_tree(const MachineDescription& machine);

}  // namespace continuo::vmm::arm64
