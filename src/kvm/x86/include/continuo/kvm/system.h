// /dev/kvm on x86-64: what the kernel can do, before any VM exists. Structures that end in an array
// come from abi/kvm_x86.h: C++ gives the kernel's another size, and with it wrong ioctl numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "continuo/abi/kvm_x86.h"
#include "continuo/kvm/system_core.h"

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

class System : public SystemCore {
  public:
    /// kUnsupported where the device is missing (no KVM on this computer), kKernel where it cannot
    /// be opened (permissions), kVersion where it speaks another API version.
    static Result<System> open(const std::string& path = "/dev/kvm");

    Result<CpuidEntries> supported_cpuid() const;
    /// KVM_GET_MSR_INDEX_LIST: the MSRs that a save must consider.
    Result<std::vector<std::uint32_t>> msr_index_list() const;

  private:
    System() = default;
};

}  // namespace continuo::kvm
