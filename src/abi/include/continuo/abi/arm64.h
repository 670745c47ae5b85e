// What KVM on arm64 offers for the guest's counters: the VM-wide offset (Linux 6.4 and later), the
// timer registers by KVM_GET_ONE_REG, and the PTP call. Guest CNTVCT = CNTPCT - counter_offset.
// Sources: arch/arm64/include/uapi/asm/kvm.h, include/linux/arm-smccc.h,
// Documentation/virt/kvm/api.rst.
#pragma once

#include <cstddef>
#include <cstdint>

#include "continuo/abi/ioc.h"

namespace continuo::abi {

/// One offset for the virtual and the physical counter of all vCPUs. There is no GET. Once it is
/// set, writes to the CNT registers succeed and do nothing. pKVM refuses the call.
struct kvm_arm_counter_offset {
    std::uint64_t counter_offset;  ///< ticks, subtracted from the host's counter
    std::uint64_t reserved;        ///< zero
};
static_assert(sizeof(kvm_arm_counter_offset) == 16);
static_assert(offsetof(kvm_arm_counter_offset, counter_offset) == 0);
static_assert(offsetof(kvm_arm_counter_offset, reserved) == 8);

inline constexpr std::uint32_t kKVM_CAP_COUNTER_OFFSET = 227;
inline constexpr std::uint32_t kKVM_ARM_SET_COUNTER_OFFSET = kvm_iow<kvm_arm_counter_offset>(0xb5);
static_assert(kKVM_ARM_SET_COUNTER_OFFSET == 0x4010aeb5);

struct kvm_one_reg {
    std::uint64_t id;
    std::uint64_t addr;  ///< user-space address of the value
};
static_assert(sizeof(kvm_one_reg) == 16);
static_assert(offsetof(kvm_one_reg, id) == 0);
static_assert(offsetof(kvm_one_reg, addr) == 8);

/// The head of KVM_GET_REG_LIST; n ids of 64 bits follow it. One of the structures whose size C++
/// gets wrong (kvm_x86.h).
struct kvm_reg_list {
    std::uint64_t n;
};
static_assert(sizeof(kvm_reg_list) == 8);
static_assert(offsetof(kvm_reg_list, n) == 0);

inline constexpr std::uint32_t kKVM_GET_ONE_REG = kvm_iow<kvm_one_reg>(0xab);
inline constexpr std::uint32_t kKVM_SET_ONE_REG = kvm_iow<kvm_one_reg>(0xac);
inline constexpr std::uint32_t kKVM_GET_REG_LIST = kvm_iowr<kvm_reg_list>(0xb0);
static_assert(kKVM_GET_ONE_REG == 0x4010aeab);
static_assert(kKVM_SET_ONE_REG == 0x4010aeac);
static_assert(kKVM_GET_REG_LIST == 0xc008aeb0);

/// The id of a 64-bit system register: KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG and
/// op0:2 op1:3 CRn:4 CRm:4 op2:3.
constexpr std::uint64_t arm64_sysreg(std::uint32_t op0, std::uint32_t op1, std::uint32_t crn,
                                     std::uint32_t crm, std::uint32_t op2) {
    return 0x6030'0000'0013'0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
}

/// The virtual timer. CNT and CVAL have each other's encoding: an old mistake that is now the ABI.
inline constexpr std::uint64_t kKVM_REG_ARM_TIMER_CTL = arm64_sysreg(3, 3, 14, 3, 1);
inline constexpr std::uint64_t kKVM_REG_ARM_TIMER_CNT = arm64_sysreg(3, 3, 14, 3, 2);
inline constexpr std::uint64_t kKVM_REG_ARM_TIMER_CVAL = arm64_sysreg(3, 3, 14, 0, 2);
static_assert(kKVM_REG_ARM_TIMER_CTL == 0x6030'0000'0013'df19);
static_assert(kKVM_REG_ARM_TIMER_CNT == 0x6030'0000'0013'df1a);
static_assert(kKVM_REG_ARM_TIMER_CVAL == 0x6030'0000'0013'df02);

/// The physical timer.
inline constexpr std::uint64_t kKVM_REG_ARM_PTIMER_CTL = arm64_sysreg(3, 3, 14, 2, 1);
inline constexpr std::uint64_t kKVM_REG_ARM_PTIMER_CVAL = arm64_sysreg(3, 3, 14, 2, 2);
inline constexpr std::uint64_t kKVM_REG_ARM_PTIMER_CNT = arm64_sysreg(3, 3, 14, 0, 1);
static_assert(kKVM_REG_ARM_PTIMER_CTL == 0x6030'0000'0013'df11);
static_assert(kKVM_REG_ARM_PTIMER_CVAL == 0x6030'0000'0013'df12);
static_assert(kKVM_REG_ARM_PTIMER_CNT == 0x6030'0000'0013'df01);

/// The SMCCC call by which a guest gets REALTIME and its counter at one instant, and its argument.
inline constexpr std::uint32_t kARM_SMCCC_VENDOR_HYP_KVM_PTP_FUNC_ID = 0x86000001;
inline constexpr std::uint32_t kKVM_PTP_VIRT_COUNTER = 0;
inline constexpr std::uint32_t kKVM_PTP_PHYS_COUNTER = 1;

}  // namespace continuo::abi
