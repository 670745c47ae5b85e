#include "boot_plan.h"

#include <algorithm>

#include "kernel_image.h"

namespace continuo::vmm::arm64 {

namespace {

using state::ErrorCode;

tl::unexpected<state::Error> no_room(const GuestKernel& kernel, std::string what) {
    return state::fail(ErrorCode::kInvalidArgument, kernel.name, std::move(what),
                       "give the VM more memory (--memory)");
}

/// The highest whole pages.
Result<std::uint64_t> place_initrd(const GuestKernel& kernel, std::uint64_t kernel_end,
                                   std::uint64_t memory_bytes) {
    const std::uint64_t limit = std::min(memory_bytes, kInitrdEndMax);
    const std::uint64_t bytes = kernel.initrd.size();
    if (bytes <= limit) {
        const std::uint64_t at = (limit - bytes) / kvm::kPageSize * kvm::kPageSize;
        if (at >= kernel_end) return at;
    }
    return no_room(kernel, std::to_string(bytes) +
                               " bytes of initrd do not fit between the kernel's end, " +
                               std::to_string(kernel_end) + ", and " + std::to_string(limit));
}

}  // namespace

Result<BootPlan> plan_boot(const GuestKernel& kernel, std::uint32_t vcpus,
                           std::uint64_t memory_bytes) {
    auto image = parse_kernel_image(kernel.image);
    if (!image) {
        image.error().where = kernel.name + ": " + image.error().where;
        return tl::unexpected(std::move(image.error()));
    }
    const std::uint64_t entry = kKernelBase + image->text_offset;
    const std::uint64_t kernel_end = entry + image->memory_bytes;
    if (kernel_end > memory_bytes)
        return no_room(kernel, "it needs memory up to " + std::to_string(kernel_end) + " bytes");
    if (kernel.command_line.size() > kCommandLineMax) {
        return state::fail(ErrorCode::kInvalidArgument, "command line",
                           std::to_string(kernel.command_line.size()) +
                               " characters; this kernel takes " + std::to_string(kCommandLineMax));
    }
    const auto initrd = place_initrd(kernel, kernel_end, memory_bytes);
    if (!initrd) return tl::unexpected(initrd.error());
    return BootPlan{entry,
                    image->bytes,
                    {vcpus, memory_bytes, kernel.command_line, *initrd, kernel.initrd.size(),
                     kernel.notice, kernel.vmclock}};
}

}  // namespace continuo::vmm::arm64
