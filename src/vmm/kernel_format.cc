#include "continuo/vmm/guest_kernel.h"

namespace continuo::vmm {

std::string_view name(KernelFormat format) {
    switch (format) {
        case KernelFormat::kBzImage:
            return "Linux bzImage";
        case KernelFormat::kPvh:
            return "ELF with a PVH entry";
        case KernelFormat::kElfLinux:
            return "ELF Linux";
        case KernelFormat::kMultiboot:
            return "multiboot payload";
        case KernelFormat::kArm64Image:
            return "Linux arm64 Image";
    }
    return "unknown";
}

}  // namespace continuo::vmm
