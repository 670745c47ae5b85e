#include "continuo/kvm/system_core.h"

#include <fcntl.h>

#include <cerrno>

namespace continuo::kvm {

namespace {

constexpr int kApiVersion = 12;

}  // namespace

Status SystemCore::open_device(const std::string& path, const char* remedy) {
    path_ = path;
    fd_ = Fd{::open(path.c_str(), O_RDWR | O_CLOEXEC)};
    if (!fd_) {
        const int sys_errno = errno;
        if (sys_errno == ENOENT || sys_errno == ENODEV || sys_errno == ENXIO)
            return state::fail(state::ErrorCode::kUnsupported, "open " + path,
                               "this computer has no KVM", remedy, sys_errno);
        return kernel_failure("open " + path, sys_errno,
                              "run as root or as a member of the group kvm");
    }
    const auto version = checked_ioctl(fd(), KVM_GET_API_VERSION, 0UL, "KVM_GET_API_VERSION");
    if (!version) return tl::unexpected(version.error());
    if (*version != kApiVersion)
        return state::fail(state::ErrorCode::kVersion, "KVM_GET_API_VERSION",
                           "the kernel speaks KVM API " + std::to_string(*version) + ", not 12");
    const auto size = checked_ioctl(fd(), KVM_GET_VCPU_MMAP_SIZE, 0UL, "KVM_GET_VCPU_MMAP_SIZE");
    if (!size) return tl::unexpected(size.error());
    if (static_cast<std::size_t>(*size) < sizeof(kvm_run))
        return state::fail(state::ErrorCode::kKernel, "KVM_GET_VCPU_MMAP_SIZE",
                           "the answer is smaller than struct kvm_run");
    vcpu_mmap_size_ = static_cast<std::size_t>(*size);
    return {};
}

Result<int> SystemCore::check_extension(int capability) const {
    return checked_ioctl(fd(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability),
                         "KVM_CHECK_EXTENSION");
}

}  // namespace continuo::kvm
