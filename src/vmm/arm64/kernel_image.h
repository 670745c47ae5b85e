// What an arm64 Linux Image says of how it wants to be loaded: its header
// (Documentation/arch/arm64/booting.rst), and the sections of the PE file that it is at the same
// time, by which a file that was cut off is known. A pure function of the file's bytes, of which
// none is believed. Builds on every architecture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "continuo/state/error.h"

namespace continuo::vmm::arm64 {

struct KernelImage {
    std::uint64_t text_offset = 0;     ///< from an address aligned to 2 MiB; the entry, too
    std::uint64_t memory_bytes = 0;    ///< that the kernel needs from there on
    std::span<const std::byte> bytes;  ///< what of the file is loaded there
};

/// A kernel that is packed is kUnsupported with what it is packed by, and so are a big-endian one
/// and one older than Linux 3.17; kTruncated where the file ends before the kernel does;
/// kMalformed for anything else. The span points into `file`.
state::Result<KernelImage> parse_kernel_image(std::span<const std::byte> file);

}  // namespace continuo::vmm::arm64
