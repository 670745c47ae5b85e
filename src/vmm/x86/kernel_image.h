// What a kernel's file says of how it wants to be loaded and entered: Linux's setup header
// (Documentation/arch/x86/boot.rst), ELF with a PVH note (xen/include/public/elfnote.h), multiboot
// 1 (its specification, 0.6.96). A pure function of the file's bytes, of which none is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "continuo/vmm/guest_kernel.h"

namespace continuo::vmm {

/// A stretch of the file and where in memory it goes; zeroes follow up to `memory_bytes`.
struct LoadSegment {
    std::uint64_t gpa = 0;
    std::span<const std::byte> bytes;
    std::uint64_t memory_bytes = 0;
};

enum class EntryMode : std::uint8_t {
    kProtected,  ///< 32-bit protected mode, paging off
    kLong,       ///< 64-bit mode, identity-mapped
};

struct KernelImage {
    KernelFormat format = KernelFormat::kBzImage;
    std::vector<LoadSegment> segments;
    std::uint64_t entry = 0;
    EntryMode mode = EntryMode::kProtected;
    /// The kernel needs memory from its lowest segment up to here.
    std::uint64_t memory_end = 0;
    /// First address that an initrd may not reach.
    std::uint64_t initrd_end_max = 0;
    std::uint32_t command_line_max = 0;  ///< characters, the end not counted
    /// Of kBzImage: the file's setup header, from its offset 0x1f1.
    std::span<const std::byte> setup_header;
};

/// Segments that lie in one another's way, wrap, or begin below 1 MiB (where the tables are, see
/// boot_layout.h) are refused; so is an entry that no segment has. The spans point into `file`.
Result<KernelImage> parse_kernel_image(std::span<const std::byte> file);

}  // namespace continuo::vmm
