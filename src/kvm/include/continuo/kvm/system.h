// /dev/kvm itself: what the kernel can do, before any VM exists. Kernel API: Documentation/virt/
// kvm/api.rst, system ioctls. Structures that end in an array come from abi/kvm_x86.h: C++ gives
// the kernel's another size, and with it wrong ioctl numbers.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "continuo/abi/kvm_x86.h"
#include "continuo/kvm/fd.h"

namespace continuo::kvm {

/// CPUID leaves as KVM_GET_SUPPORTED_CPUID gives and KVM_SET_CPUID2 takes them.
using CpuidEntry = abi::kvm_cpuid_entry2;
using CpuidEntries = std::vector<CpuidEntry>;
/// The most that KVM takes and gives (its KVM_MAX_CPUID_ENTRIES).
inline constexpr std::size_t kCpuidEntriesMax = 256;

/// The entry of a leaf, or nullptr.
const CpuidEntry* find_cpuid(const CpuidEntries& entries, std::uint32_t function,
                             std::uint32_t index = 0);
CpuidEntry* find_cpuid(CpuidEntries& entries, std::uint32_t function, std::uint32_t index = 0);

/// An open KVM device of API version 12.
class System {
  public:
    /// kUnsupported where the device is missing (no KVM on this computer), kKernel where it cannot
    /// be opened (permissions), kVersion where it speaks another API version.
    static Result<System> open(const std::string& path = "/dev/kvm");

    int fd() const { return fd_.get(); }
    const std::string& path() const { return path_; }
    /// Bytes to map of each vCPU's descriptor.
    std::size_t vcpu_mmap_size() const { return vcpu_mmap_size_; }

    /// KVM_CHECK_EXTENSION on the device: 0 where the kernel lacks it, else its number.
    Result<int> check_extension(int capability) const;
    Result<CpuidEntries> supported_cpuid() const;
    /// KVM_GET_MSR_INDEX_LIST: the MSRs that a save must consider.
    Result<std::vector<std::uint32_t>> msr_index_list() const;

  private:
    System() = default;

    Fd fd_;
    std::string path_;
    std::size_t vcpu_mmap_size_ = 0;
};

}  // namespace continuo::kvm
