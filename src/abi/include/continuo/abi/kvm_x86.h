// KVM's structures and ioctl numbers that C++ gets wrong, or that time needs. The flexible arrays
// of the kernel's headers (those of Debian 12, Linux 6.1; 6.12's are repaired) hold an empty
// structure, which has a size in C++: sizeof of kvm_msrs, kvm_msr_list, kvm_cpuid2, kvm_xsave,
// kvm_irq_routing and kvm_signal_mask is too large, and every ioctl number made of them is wrong.
// Hence these mirrors, which need no header of Linux. What is not here (kvm_run, kvm_regs,
// kvm_sregs, kvm_lapic_state, kvm_vcpu_events, kvm_xcrs, kvm_irqchip, kvm_pit_state2, kvm_mp_state,
// kvm_debugregs) is right in <linux/kvm.h>, and kvm_linux_test.cc says so. Checked against
// include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h of Linux 6.12.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "continuo/abi/ioc.h"

namespace continuo::abi {

// MSRs.

struct kvm_msr_entry {
    std::uint32_t index;
    std::uint32_t reserved;
    std::uint64_t data;
    friend bool operator==(const kvm_msr_entry&, const kvm_msr_entry&) = default;
};
static_assert(sizeof(kvm_msr_entry) == 16);
static_assert(offsetof(kvm_msr_entry, index) == 0);
static_assert(offsetof(kvm_msr_entry, reserved) == 4);
static_assert(offsetof(kvm_msr_entry, data) == 8);

/// The head of KVM_GET_MSRS and KVM_SET_MSRS; nmsrs entries follow it. Both ioctls return how many
/// entries they did: fewer means that the next one failed.
struct kvm_msrs {
    std::uint32_t nmsrs;
    std::uint32_t pad;
};
static_assert(sizeof(kvm_msrs) == 8);
static_assert(offsetof(kvm_msrs, nmsrs) == 0);
static_assert(offsetof(kvm_msrs, pad) == 4);

/// A kvm_msrs with room for N entries behind it.
template <std::size_t N>
struct KvmMsrs {
    kvm_msrs head{N, 0};
    std::array<kvm_msr_entry, N> entries{};
};
static_assert(sizeof(KvmMsrs<3>) == 8 + 3 * 16);
static_assert(offsetof(KvmMsrs<3>, entries) == sizeof(kvm_msrs));

/// The head of KVM_GET_MSR_INDEX_LIST; nmsrs indices of 32 bits follow it.
struct kvm_msr_list {
    std::uint32_t nmsrs;
};
static_assert(sizeof(kvm_msr_list) == 4);
static_assert(offsetof(kvm_msr_list, nmsrs) == 0);

/// A kvm_msr_list with room for N indices behind it.
template <std::size_t N>
struct KvmMsrList {
    kvm_msr_list head{N};
    std::array<std::uint32_t, N> indices{};
};
static_assert(sizeof(KvmMsrList<3>) == 4 + 3 * 4);
static_assert(offsetof(KvmMsrList<3>, indices) == sizeof(kvm_msr_list));

inline constexpr std::uint32_t kKVM_GET_MSR_INDEX_LIST = kvm_iowr<kvm_msr_list>(0x02);
inline constexpr std::uint32_t kKVM_GET_MSR_FEATURE_INDEX_LIST = kvm_iowr<kvm_msr_list>(0x0a);
inline constexpr std::uint32_t kKVM_GET_MSRS = kvm_iowr<kvm_msrs>(0x88);
inline constexpr std::uint32_t kKVM_SET_MSRS = kvm_iow<kvm_msrs>(0x89);
static_assert(kKVM_GET_MSR_INDEX_LIST == 0xc004ae02);
static_assert(kKVM_GET_MSR_FEATURE_INDEX_LIST == 0xc004ae0a);
static_assert(kKVM_GET_MSRS == 0xc008ae88);
static_assert(kKVM_SET_MSRS == 0x4008ae89);

// CPUID.

struct kvm_cpuid_entry2 {
    std::uint32_t function;
    std::uint32_t index;
    std::uint32_t flags;  ///< kKVM_CPUID_FLAG_*
    std::uint32_t eax;
    std::uint32_t ebx;
    std::uint32_t ecx;
    std::uint32_t edx;
    std::uint32_t padding[3];
    friend bool operator==(const kvm_cpuid_entry2&, const kvm_cpuid_entry2&) = default;
};
static_assert(sizeof(kvm_cpuid_entry2) == 40);
static_assert(offsetof(kvm_cpuid_entry2, function) == 0);
static_assert(offsetof(kvm_cpuid_entry2, index) == 4);
static_assert(offsetof(kvm_cpuid_entry2, flags) == 8);
static_assert(offsetof(kvm_cpuid_entry2, eax) == 12);
static_assert(offsetof(kvm_cpuid_entry2, ebx) == 16);
static_assert(offsetof(kvm_cpuid_entry2, ecx) == 20);
static_assert(offsetof(kvm_cpuid_entry2, edx) == 24);
static_assert(offsetof(kvm_cpuid_entry2, padding) == 28);

/// index holds (the kernel's own spelling).
inline constexpr std::uint32_t kKVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1;

/// The head of the CPUID ioctls; nent entries follow it.
struct kvm_cpuid2 {
    std::uint32_t nent;
    std::uint32_t padding;
};
static_assert(sizeof(kvm_cpuid2) == 8);
static_assert(offsetof(kvm_cpuid2, nent) == 0);
static_assert(offsetof(kvm_cpuid2, padding) == 4);

/// A kvm_cpuid2 with room for N entries behind it.
template <std::size_t N>
struct KvmCpuid2 {
    kvm_cpuid2 head{N, 0};
    std::array<kvm_cpuid_entry2, N> entries{};
};
static_assert(sizeof(KvmCpuid2<3>) == 8 + 3 * 40);
static_assert(offsetof(KvmCpuid2<3>, entries) == sizeof(kvm_cpuid2));

inline constexpr std::uint32_t kKVM_GET_SUPPORTED_CPUID = kvm_iowr<kvm_cpuid2>(0x05);
inline constexpr std::uint32_t kKVM_GET_EMULATED_CPUID = kvm_iowr<kvm_cpuid2>(0x09);
inline constexpr std::uint32_t kKVM_SET_CPUID2 = kvm_iow<kvm_cpuid2>(0x90);
inline constexpr std::uint32_t kKVM_GET_CPUID2 = kvm_iowr<kvm_cpuid2>(0x91);
inline constexpr std::uint32_t kKVM_GET_SUPPORTED_HV_CPUID = kvm_iowr<kvm_cpuid2>(0xc1);
static_assert(kKVM_GET_SUPPORTED_CPUID == 0xc008ae05);
static_assert(kKVM_GET_EMULATED_CPUID == 0xc008ae09);
static_assert(kKVM_SET_CPUID2 == 0x4008ae90);
static_assert(kKVM_GET_CPUID2 == 0xc008ae91);
static_assert(kKVM_GET_SUPPORTED_HV_CPUID == 0xc008aec1);

// The TSC of a VM and of a vCPU.

/// Value: kHz as the ioctl's argument; on a VM the default of vCPUs made later.
inline constexpr std::uint32_t kKVM_SET_TSC_KHZ = kvm_io(0xa2);
/// Returns kHz.
inline constexpr std::uint32_t kKVM_GET_TSC_KHZ = kvm_io(0xa3);
static_assert(kKVM_SET_TSC_KHZ == 0xaea2);
static_assert(kKVM_GET_TSC_KHZ == 0xaea3);

struct kvm_device_attr {
    std::uint32_t flags;  ///< none defined
    std::uint32_t group;
    std::uint64_t attr;
    std::uint64_t addr;  ///< user-space address of the value
};
static_assert(sizeof(kvm_device_attr) == 24);
static_assert(offsetof(kvm_device_attr, flags) == 0);
static_assert(offsetof(kvm_device_attr, group) == 4);
static_assert(offsetof(kvm_device_attr, attr) == 8);
static_assert(offsetof(kvm_device_attr, addr) == 16);

inline constexpr std::uint32_t kKVM_SET_DEVICE_ATTR = kvm_iow<kvm_device_attr>(0xe1);
inline constexpr std::uint32_t kKVM_GET_DEVICE_ATTR = kvm_iow<kvm_device_attr>(0xe2);
inline constexpr std::uint32_t kKVM_HAS_DEVICE_ATTR = kvm_iow<kvm_device_attr>(0xe3);
static_assert(kKVM_SET_DEVICE_ATTR == 0x4018aee1);
static_assert(kKVM_GET_DEVICE_ATTR == 0x4018aee2);
static_assert(kKVM_HAS_DEVICE_ATTR == 0x4018aee3);

/// vCPU attribute group of the TSC, and its attributes.
inline constexpr std::uint32_t kKVM_VCPU_TSC_CTRL = 0;
/// u64: what is added after scaling, modulo 2^64 (time::TscMap::offset).
inline constexpr std::uint64_t kKVM_VCPU_TSC_OFFSET = 0;
/// Proposed and in no kernel up to 7.2: kvm_vcpu_tsc_scale.
inline constexpr std::uint64_t kKVM_VCPU_TSC_SCALE = 1;

struct kvm_vcpu_tsc_scale {
    std::uint64_t tsc_ratio;
    std::uint64_t tsc_frac_bits;
};
static_assert(sizeof(kvm_vcpu_tsc_scale) == 16);
static_assert(offsetof(kvm_vcpu_tsc_scale, tsc_ratio) == 0);
static_assert(offsetof(kvm_vcpu_tsc_scale, tsc_frac_bits) == 8);

// Memory.

struct kvm_userspace_memory_region {
    std::uint32_t slot;
    std::uint32_t flags;            ///< kKVM_MEM_*
    std::uint64_t guest_phys_addr;  ///< bytes
    std::uint64_t memory_size;      ///< bytes; 0 removes the slot
    std::uint64_t userspace_addr;
};
static_assert(sizeof(kvm_userspace_memory_region) == 32);
static_assert(offsetof(kvm_userspace_memory_region, slot) == 0);
static_assert(offsetof(kvm_userspace_memory_region, flags) == 4);
static_assert(offsetof(kvm_userspace_memory_region, guest_phys_addr) == 8);
static_assert(offsetof(kvm_userspace_memory_region, memory_size) == 16);
static_assert(offsetof(kvm_userspace_memory_region, userspace_addr) == 24);

inline constexpr std::uint32_t kKVM_MEM_LOG_DIRTY_PAGES = 1;
inline constexpr std::uint32_t kKVM_MEM_READONLY = 2;

/// One bit for each page of the slot, in words of 64.
struct kvm_dirty_log {
    std::uint32_t slot;
    std::uint32_t padding1;
    std::uint64_t dirty_bitmap;  ///< user-space address
};
static_assert(sizeof(kvm_dirty_log) == 16);
static_assert(offsetof(kvm_dirty_log, slot) == 0);
static_assert(offsetof(kvm_dirty_log, padding1) == 4);
static_assert(offsetof(kvm_dirty_log, dirty_bitmap) == 8);

struct kvm_clear_dirty_log {
    std::uint32_t slot;
    std::uint32_t num_pages;
    std::uint64_t first_page;
    std::uint64_t dirty_bitmap;  ///< user-space address
};
static_assert(sizeof(kvm_clear_dirty_log) == 24);
static_assert(offsetof(kvm_clear_dirty_log, slot) == 0);
static_assert(offsetof(kvm_clear_dirty_log, num_pages) == 4);
static_assert(offsetof(kvm_clear_dirty_log, first_page) == 8);
static_assert(offsetof(kvm_clear_dirty_log, dirty_bitmap) == 16);

inline constexpr std::uint32_t kKVM_GET_DIRTY_LOG = kvm_iow<kvm_dirty_log>(0x42);
inline constexpr std::uint32_t kKVM_SET_USER_MEMORY_REGION =
    kvm_iow<kvm_userspace_memory_region>(0x46);
inline constexpr std::uint32_t kKVM_CLEAR_DIRTY_LOG = kvm_iowr<kvm_clear_dirty_log>(0xc0);
static_assert(kKVM_GET_DIRTY_LOG == 0x4010ae42);
static_assert(kKVM_SET_USER_MEMORY_REGION == 0x4020ae46);
static_assert(kKVM_CLEAR_DIRTY_LOG == 0xc018aec0);

// Extended state.

/// KVM_GET_XSAVE and KVM_SET_XSAVE. KVM_GET_XSAVE2, and KVM_SET_XSAVE with it, moves as many bytes
/// as KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) says, which can be more: give it a buffer of that size.
struct kvm_xsave {
    std::uint32_t region[1024];
};
static_assert(sizeof(kvm_xsave) == 4096);
static_assert(offsetof(kvm_xsave, region) == 0);

inline constexpr std::uint32_t kKVM_GET_XSAVE = kvm_ior<kvm_xsave>(0xa4);
inline constexpr std::uint32_t kKVM_SET_XSAVE = kvm_iow<kvm_xsave>(0xa5);
inline constexpr std::uint32_t kKVM_GET_XSAVE2 = kvm_ior<kvm_xsave>(0xcf);
static_assert(kKVM_GET_XSAVE == 0x9000aea4);
static_assert(kKVM_SET_XSAVE == 0x5000aea5);
static_assert(kKVM_GET_XSAVE2 == 0x9000aecf);

// Virtualisation inside the guest.

/// The head of KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE; `size` counts it and what follows.
struct kvm_nested_state {
    std::uint16_t flags;
    std::uint16_t format;    ///< kKVM_NESTED_FORMAT_*
    std::uint32_t size;      ///< going in: room; coming out: bytes of it that are used
    std::uint64_t vmxon_pa;  ///< of VMX: all ones outside of VMX operation; SVM: vmcb_pa
    std::uint8_t hdr[112];
};
static_assert(sizeof(kvm_nested_state) == 128);
static_assert(offsetof(kvm_nested_state, flags) == 0);
static_assert(offsetof(kvm_nested_state, format) == 2);
static_assert(offsetof(kvm_nested_state, size) == 4);
static_assert(offsetof(kvm_nested_state, vmxon_pa) == 8);
static_assert(offsetof(kvm_nested_state, hdr) == 16);

inline constexpr std::uint16_t kKVM_NESTED_FORMAT_VMX = 0;
inline constexpr std::uint16_t kKVM_NESTED_FORMAT_SVM = 1;
inline constexpr std::uint16_t kKVM_NESTED_GIF_SET = 0x100;  ///< of `flags`, on SVM
inline constexpr std::uint32_t kKVM_GET_NESTED_STATE = kvm_iowr<kvm_nested_state>(0xbe);
inline constexpr std::uint32_t kKVM_SET_NESTED_STATE = kvm_iow<kvm_nested_state>(0xbf);
static_assert(kKVM_GET_NESTED_STATE == 0xc080aebe);
static_assert(kKVM_SET_NESTED_STATE == 0x4080aebf);

// Interrupt routes, signal mask, capabilities.

/// The head of KVM_SET_GSI_ROUTING; nr entries of 48 bytes (kvm_irq_routing_entry of
/// <linux/kvm.h>, which is right) follow it.
struct kvm_irq_routing {
    std::uint32_t nr;
    std::uint32_t flags;
};
static_assert(sizeof(kvm_irq_routing) == 8);
static_assert(offsetof(kvm_irq_routing, nr) == 0);
static_assert(offsetof(kvm_irq_routing, flags) == 4);

/// The head of KVM_SET_SIGNAL_MASK; len bytes (8 on Linux) follow it.
struct kvm_signal_mask {
    std::uint32_t len;
};
static_assert(sizeof(kvm_signal_mask) == 4);
static_assert(offsetof(kvm_signal_mask, len) == 0);

struct kvm_enable_cap {
    std::uint32_t cap;
    std::uint32_t flags;
    std::uint64_t args[4];
    std::uint8_t pad[64];
};
static_assert(sizeof(kvm_enable_cap) == 104);
static_assert(offsetof(kvm_enable_cap, cap) == 0);
static_assert(offsetof(kvm_enable_cap, flags) == 4);
static_assert(offsetof(kvm_enable_cap, args) == 8);
static_assert(offsetof(kvm_enable_cap, pad) == 40);

inline constexpr std::uint32_t kKVM_SET_GSI_ROUTING = kvm_iow<kvm_irq_routing>(0x6a);
inline constexpr std::uint32_t kKVM_SET_SIGNAL_MASK = kvm_iow<kvm_signal_mask>(0x8b);
inline constexpr std::uint32_t kKVM_ENABLE_CAP = kvm_iow<kvm_enable_cap>(0xa3);
static_assert(kKVM_SET_GSI_ROUTING == 0x4008ae6a);
static_assert(kKVM_SET_SIGNAL_MASK == 0x4004ae8b);
static_assert(kKVM_ENABLE_CAP == 0x4068aea3);

/// Capabilities that decide what a machine can do about time.
inline constexpr std::uint32_t kKVM_CAP_ADJUST_CLOCK = 39;  ///< the value is the flags of GET_CLOCK
inline constexpr std::uint32_t kKVM_CAP_TSC_CONTROL = 60;   ///< SET_TSC_KHZ on a vCPU
inline constexpr std::uint32_t kKVM_CAP_GET_TSC_KHZ = 61;
inline constexpr std::uint32_t kKVM_CAP_TSC_DEADLINE_TIMER = 72;
inline constexpr std::uint32_t kKVM_CAP_KVMCLOCK_CTRL = 76;
inline constexpr std::uint32_t kKVM_CAP_HYPERV_TIME = 96;
inline constexpr std::uint32_t kKVM_CAP_VCPU_ATTRIBUTES = 127;
inline constexpr std::uint32_t kKVM_CAP_NESTED_STATE = 157;       ///< the value is the most bytes
inline constexpr std::uint32_t kKVM_CAP_EXCEPTION_PAYLOAD = 164;  ///< events tell pending apart
inline constexpr std::uint32_t kKVM_CAP_XSAVE2 = 208;
inline constexpr std::uint32_t kKVM_CAP_VM_TSC_CONTROL = 214;          ///< SET_TSC_KHZ on a VM
inline constexpr std::uint32_t kKVM_CAP_X86_TRIPLE_FAULT_EVENT = 218;  ///< events have it

}  // namespace continuo::abi
