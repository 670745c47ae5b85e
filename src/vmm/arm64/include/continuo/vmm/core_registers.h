// Ids of the general registers, for KVM_GET_ONE_REG: KVM_REG_ARM_CORE and the place in struct
// kvm_regs, in 32-bit words (Documentation/virt/kvm/api.rst).
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>

namespace continuo::vmm {

constexpr std::uint64_t core_register(std::size_t offset) {
    return KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | offset / 4;
}
/// X0 to X30.
constexpr std::uint64_t general_register(unsigned number) {
    return core_register(offsetof(kvm_regs, regs.regs) + 8 * number);
}
inline constexpr std::uint64_t kRegisterPc = core_register(offsetof(kvm_regs, regs.pc));
inline constexpr std::uint64_t kRegisterPstate = core_register(offsetof(kvm_regs, regs.pstate));
inline constexpr std::uint64_t kRegisterSpEl1 = core_register(offsetof(kvm_regs, sp_el1));
/// EL1 with SP_EL1; debug exceptions, SError, IRQ and FIQ masked.
inline constexpr std::uint64_t kPstateEl1hMasked = 0x3c5;
static_assert(kRegisterPc == 0x6030'0000'0010'0040);

}  // namespace continuo::vmm
