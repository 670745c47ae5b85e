// A device that KVM emulates in the kernel, such as the vGICv3: a descriptor of its own, and all of
// its state by device attributes. Kernel API: Documentation/virt/kvm/devices/.
#pragma once

#include <linux/kvm.h>

#include <cstdint>

#include "continuo/kvm/fd.h"

namespace continuo::kvm {

class Vm;

class Device {
  public:
    /// KVM_CREATE_DEVICE with a KVM_DEV_TYPE_*. kUnsupported where the kernel cannot make it
    /// (ENODEV).
    static Result<Device> create(const Vm& vm, std::uint32_t type);

    int fd() const { return fd_.get(); }

    bool has_attribute(std::uint32_t group, std::uint64_t attribute) const;
    /// Groups whose values have 32 bits (the vGIC's distributor and CPU interface of GICv2, its
    /// number of interrupts) and those whose values have 64.
    Result<std::uint32_t> attribute_u32(std::uint32_t group, std::uint64_t attribute) const;
    Status set_attribute_u32(std::uint32_t group, std::uint64_t attribute, std::uint32_t value);
    Result<std::uint64_t> attribute_u64(std::uint32_t group, std::uint64_t attribute) const;
    Status set_attribute_u64(std::uint32_t group, std::uint64_t attribute, std::uint64_t value);
    /// A command: an attribute that carries no value (KVM_DEV_ARM_VGIC_CTRL_INIT).
    Status command(std::uint32_t group, std::uint64_t attribute);

  private:
    explicit Device(Fd fd) : fd_{std::move(fd)} {}
    Status access(unsigned long request, std::uint32_t group, std::uint64_t attribute, void* value,
                  const char* name) const;

    Fd fd_;
};

}  // namespace continuo::kvm
