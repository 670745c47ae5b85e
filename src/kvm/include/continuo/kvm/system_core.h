// /dev/kvm itself, as far as all architectures have it. Each architecture's System (system.h, of
// which the build picks one) adds what only it can be asked. Kernel API: Documentation/virt/kvm/
// api.rst, system ioctls.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <string>

#include "continuo/kvm/fd.h"

namespace continuo::kvm {

/// An open KVM device of API version 12. Made by System::open().
class SystemCore {
  public:
    int fd() const { return fd_.get(); }
    const std::string& path() const { return path_; }
    /// Bytes to map of each vCPU's descriptor.
    std::size_t vcpu_mmap_size() const { return vcpu_mmap_size_; }

    /// KVM_CHECK_EXTENSION on the device: 0 where the kernel lacks it, else its number.
    Result<int> check_extension(int capability) const;

  protected:
    SystemCore() = default;
    /// kUnsupported where the device is missing (no KVM on this computer; `remedy` is the advice),
    /// kKernel where it cannot be opened (permissions), kVersion where it speaks another API
    /// version.
    Status open_device(const std::string& path, const char* remedy);

  private:
    Fd fd_;
    std::string path_;
    std::size_t vcpu_mmap_size_ = 0;
};

}  // namespace continuo::kvm
