// /dev/kvm on arm64, before any VM exists.
#pragma once

#include <string>

#include "continuo/kvm/system_core.h"

namespace continuo::kvm {

class System : public SystemCore {
  public:
    /// kUnsupported where the device is missing (no KVM on this computer), kKernel where it cannot
    /// be opened (permissions), kVersion where it speaks another API version.
    static Result<System> open(const std::string& path = "/dev/kvm");

    /// Bits of the largest guest-physical address that a VM can have (KVM_CAP_ARM_VM_IPA_SIZE); 40
    /// where the kernel cannot be asked.
    Result<unsigned> ipa_bits_max() const;

  private:
    System() = default;
};

}  // namespace continuo::kvm
