// Boots an operating system, or a test payload, without firmware: the kernel's file is put into
// memory as its boot protocol says, and vCPU 0 starts at its entry. x86-64: Linux (bzImage by the
// 64-bit protocol; ELF by the PVH entry where it has one, else by the 64-bit protocol) and
// multiboot 1 payloads; ACPI tables come with all of them. arm64: a Linux Image, with a device
// tree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/virtual_machine.h"

namespace continuo::vmm {

struct GuestKernel {
    std::vector<std::byte> image;   ///< the kernel's file
    std::vector<std::byte> initrd;  ///< initramfs, or the only multiboot module; may be empty
    std::string name = "kernel";    ///< what a multiboot payload is called, and error messages say
    std::string command_line;
    bool notice = true;  ///< the machine has the time-travel device (notice_device.h)
    std::uint64_t release_after_ns = kReleaseAfterNsDefault;
    /// The machine has the vmclock device (vmclock_device.h); its page tells no time before
    /// start_vmclock() (kvm_migration.h).
    bool vmclock = true;
};

enum class KernelFormat : std::uint8_t {
    kBzImage,     ///< Linux, compressed, with its setup header
    kPvh,         ///< ELF with an entry for PVH (XEN_ELFNOTE_PHYS32_ENTRY)
    kElfLinux,    ///< ELF of 64 bits without one: taken for a Linux of the 64-bit boot protocol
    kMultiboot,   ///< ELF of 32 bits, or any file, with a multiboot 1 header
    kArm64Image,  ///< Linux for arm64, not packed
};
std::string_view name(KernelFormat format);

/// Puts the kernel into the memory of a stopped VM that has not run, and vCPU 0 at its entry; the
/// other vCPUs wait to be started (INIT and SIPI; arm64: PSCI). kMalformed or kTruncated where the
/// file is none of the above, with the byte; kInvalidArgument where the memory or the command
/// line's room is too small for it; kUnsupported for what this VMM does not boot.
Result<KernelFormat> load_guest_kernel(VirtualMachine& machine, const GuestKernel& kernel);

}  // namespace continuo::vmm
