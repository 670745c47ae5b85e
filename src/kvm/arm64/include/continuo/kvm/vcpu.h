// One vCPU on arm64: everything that it holds is a register with an id. Encoding of ids:
// Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG; those of the timers are in abi/arm64.h.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "continuo/kvm/vcpu_core.h"
#include "continuo/kvm/vm.h"

namespace continuo::kvm {

/// Bytes of a register's value, from its id: 1 to 256.
constexpr std::size_t register_size(std::uint64_t id) {
    return std::size_t{1} << ((id & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT);
}

class Vcpu : public VcpuCore {
  public:
    /// vCPU `id` of `vm`. Nothing else works before init(), but the calls of VcpuCore.
    static Result<Vcpu> create(const Vm& vm, std::uint32_t id);

    /// KVM_ARM_VCPU_INIT: makes the vCPU, or resets it where it was made before with the same
    /// features. `target` comes from Vm::preferred_target(), features (KVM_ARM_VCPU_*) added.
    Status init(const kvm_vcpu_init& target);
    /// The same with PSCI 0.2 and, where `powered_off`, waiting for its CPU_ON.
    Status init(const Vm& vm, bool powered_off);
    /// KVM_ARM_VCPU_FINALIZE of a feature that asks for it (KVM_ARM_VCPU_SVE).
    Status finalize(int feature);

    /// KVM_GET_REG_LIST: the ids of all registers that a save must hold.
    Result<std::vector<std::uint64_t>> reg_list() const;
    /// KVM_GET_ONE_REG and KVM_SET_ONE_REG. `value` has register_size(id) bytes, little-endian;
    /// kInvalidArgument otherwise. Errors name the register.
    Status get_one_reg(std::uint64_t id, std::span<std::byte> value) const;
    Status set_one_reg(std::uint64_t id, std::span<const std::byte> value);
    /// The same for registers of up to 64 bits; kInvalidArgument for wider ones, and for a value
    /// that is.
    Result<std::uint64_t> one_reg(std::uint64_t id) const;
    Status set_one_reg(std::uint64_t id, std::uint64_t value);

  private:
    Vcpu() = default;
    Status access(unsigned long request, const char* name, std::uint64_t id, void* value) const;
};

}  // namespace continuo::kvm
