// Numbers and formats of the model-specific registers that carry time. Sources: Intel SDM 4, AMD
// APM 2, arch/x86/include/uapi/asm/kvm_para.h and msr-index.h of Linux 6.12; Hyper-V's are in
// hyperv.h.
#pragma once

#include <cstdint>

namespace continuo::abi {

inline constexpr std::uint32_t kMSR_IA32_TSC = 0x10;
inline constexpr std::uint32_t kMSR_IA32_TSC_ADJUST = 0x3b;
inline constexpr std::uint32_t kMSR_IA32_TSC_DEADLINE = 0x6e0;
inline constexpr std::uint32_t kMSR_AMD64_TSC_RATIO = 0xc0000104;

/// Deprecated numbers of kvmclock. vCPU 0's use of SYSTEM_TIME costs the VM its masterclock.
inline constexpr std::uint32_t kMSR_KVM_WALL_CLOCK = 0x11;
inline constexpr std::uint32_t kMSR_KVM_SYSTEM_TIME = 0x12;
inline constexpr std::uint32_t kMSR_KVM_WALL_CLOCK_NEW = 0x4b564d00;
inline constexpr std::uint32_t kMSR_KVM_SYSTEM_TIME_NEW = 0x4b564d01;
inline constexpr std::uint32_t kMSR_KVM_ASYNC_PF_EN = 0x4b564d02;
inline constexpr std::uint32_t kMSR_KVM_STEAL_TIME = 0x4b564d03;
inline constexpr std::uint32_t kMSR_KVM_PV_EOI_EN = 0x4b564d04;
inline constexpr std::uint32_t kMSR_KVM_POLL_CONTROL = 0x4b564d05;
inline constexpr std::uint32_t kMSR_KVM_ASYNC_PF_INT = 0x4b564d06;
inline constexpr std::uint32_t kMSR_KVM_ASYNC_PF_ACK = 0x4b564d07;
inline constexpr std::uint32_t kMSR_KVM_MIGRATION_CONTROL = 0x4b564d08;

/// KVM's own range, both ends included: all of it that a host lists is a guest's state to save.
inline constexpr std::uint32_t kMSR_KVM_FIRST = 0x4b564d00;
inline constexpr std::uint32_t kMSR_KVM_LAST = 0x4b564dff;
constexpr bool is_kvm_msr(std::uint32_t index) {
    return kMSR_KVM_FIRST <= index && index <= kMSR_KVM_LAST;
}

/// MSR_KVM_SYSTEM_TIME (old and new): bit 0 switches the page on, the rest is its guest physical
/// address.
inline constexpr std::uint64_t kKVM_MSR_ENABLED = 1;
constexpr bool system_time_enabled(std::uint64_t msr) {
    return (msr & kKVM_MSR_ENABLED) != 0;
}
constexpr std::uint64_t system_time_gpa(std::uint64_t msr) {
    return msr & ~kKVM_MSR_ENABLED;
}

}  // namespace continuo::abi
