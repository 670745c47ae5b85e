// Where in memory a kernel, its initrd and the device tree go, as
// Documentation/arch/arm64/booting.rst has it. A pure function of what is to be booted and of the
// VM's size. Builds on every architecture.
#pragma once

#include <cstdint>
#include <span>

#include "continuo/vmm/arm64_board.h"
#include "continuo/vmm/guest_kernel.h"
#include "device_tree.h"

namespace continuo::vmm::arm64 {

/// The device tree lies in the first 2 MiB (kDeviceTree; not at 0, which Linux takes for no tree)
/// and the kernel behind them.
inline constexpr std::uint64_t kKernelBase = 2ull << 20;
inline constexpr std::size_t kCommandLineMax = 2047;  ///< COMMAND_LINE_SIZE, the end not counted
/// The initrd and the kernel lie in a window of 32 GiB.
inline constexpr std::uint64_t kInitrdEndMax = 32ull << 30;

struct BootPlan {
    std::uint64_t entry = 0;           ///< GPA where the image lies and begins
    std::span<const std::byte> image;  ///< within the kernel's file
    MachineDescription machine;        ///< with the initrd's place
};

/// What parse_kernel_image() says; kInvalidArgument where the memory is too small for the kernel or
/// for the initrd behind it, or the command line too long. The errors name the kernel.
Result<BootPlan> plan_boot(const GuestKernel& kernel, std::uint32_t vcpus,
                           std::uint64_t memory_bytes);

}  // namespace continuo::vmm::arm64
