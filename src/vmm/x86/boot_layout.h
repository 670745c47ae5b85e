// Where a booted guest finds what its boot protocol hands it, in guest-physical memory. All of it
// lies below 1 MiB; kernels are loaded above.
#pragma once

#include <cstdint>

namespace continuo::vmm::boot {

inline constexpr std::uint64_t kGdt = 0x500;
inline constexpr std::uint64_t kZeroPage = 0x1000;  ///< Linux's boot_params, one page
inline constexpr std::uint64_t kStartInfo =
    0x2000;  ///< PVH's or multiboot's, with what belongs to it
inline constexpr std::uint64_t kMemoryMap = 0x2800;   ///< of PVH and multiboot
inline constexpr std::uint64_t kNames = 0x2c00;       ///< multiboot's own name and the module's
inline constexpr std::uint64_t kPageTables = 0x3000;  ///< PML4, PDPT, four page directories
inline constexpr std::uint64_t kCommandLine = 0x20000;
inline constexpr std::uint32_t kCommandLineBytes = 0x10000;
/// RAM that a guest may use ends here; the devices' pages and ACPI's tables follow, in what the
/// memory map calls reserved.
inline constexpr std::uint64_t kLowMemoryEnd = 0x9fc00;
inline constexpr std::uint32_t kNoticePage = 0xd0000;
inline constexpr std::uint32_t kVmclockPage = 0xd1000;
inline constexpr std::uint32_t kGenerationPage = 0xd2000;
inline constexpr std::uint64_t kHighMemory = 0x100000;

}  // namespace continuo::vmm::boot
