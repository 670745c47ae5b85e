// CPUID leaves and bits by which a guest learns what its clocks are. Sources: Intel SDM 2A, AMD APM
// 3, arch/x86/include/uapi/asm/kvm_para.h of Linux 6.12. Leaf 0x40000010 is VMware's timing leaf,
// which other hypervisors share.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace continuo::abi {

/// EBX, ECX, EDX hold the signature; EAX the last leaf of the range (0 of old hosts means
/// KVM_CPUID_FEATURES).
inline constexpr std::uint32_t kKVM_CPUID_SIGNATURE = 0x40000000;
inline constexpr std::string_view kKVM_SIGNATURE{"KVMKVMKVM\0\0\0", 12};
inline constexpr std::uint32_t kKVM_SIGNATURE_EBX = 0x4b4d564b;
inline constexpr std::uint32_t kKVM_SIGNATURE_ECX = 0x564b4d56;
inline constexpr std::uint32_t kKVM_SIGNATURE_EDX = 0x0000004d;

/// Feature bits of EAX.
inline constexpr std::uint32_t kKVM_CPUID_FEATURES = 0x40000001;
inline constexpr int kKVM_FEATURE_CLOCKSOURCE = 0;   ///< MSRs 0x11 and 0x12
inline constexpr int kKVM_FEATURE_CLOCKSOURCE2 = 3;  ///< MSRs 0x4b564d00 and 01
inline constexpr int kKVM_FEATURE_STEAL_TIME = 5;
inline constexpr int kKVM_FEATURE_CLOCKSOURCE_STABLE_BIT = 24;  ///< pvclock's flags hold

/// EAX is the guest's TSC frequency in kHz, EBX the APIC bus's.
inline constexpr std::uint32_t kCpuidTscKhz = 0x40000010;

/// EBX/EAX * ECX is the TSC's frequency in Hz, where none of them is 0.
inline constexpr std::uint32_t kCpuidTscCrystal = 0x15;

inline constexpr std::uint32_t kCpuidFeatures = 0x1;
inline constexpr int kCpuid1EcxTscDeadline = 24;
inline constexpr int kCpuid1EdxTsc = 4;
inline constexpr std::uint32_t kCpuidExtendedFeatures = 0x7;
inline constexpr int kCpuid7EbxTscAdjust = 1;
inline constexpr std::uint32_t kCpuidPowerManagement = 0x80000007;
inline constexpr int kCpuidPmEdxInvariantTsc = 8;

constexpr bool has_bit(std::uint32_t reg, int bit) {
    return (reg >> bit & 1) != 0;
}

}  // namespace continuo::abi
