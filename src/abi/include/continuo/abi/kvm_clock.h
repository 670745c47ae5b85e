// KVM_GET_CLOCK and KVM_SET_CLOCK: the VM's kvmclock, and with it the host's REALTIME and TSC at
// the same instant. Sources: include/uapi/linux/kvm.h, kvm_vm_ioctl_get_clock() and
// kvm_vm_ioctl_set_clock() in arch/x86/kvm/x86.c.
#pragma once

#include <cstddef>
#include <cstdint>

#include "continuo/abi/ioc.h"
#include "continuo/abi/pvclock.h"

namespace continuo::abi {

struct kvm_clock_data {
    std::uint64_t clock;     ///< kvmclock, ns
    std::uint32_t flags;     ///< kKVM_CLOCK_*
    std::uint32_t pad0;      ///< zero
    std::uint64_t realtime;  ///< host REALTIME, ns, where flagged
    std::uint64_t host_tsc;  ///< host TSC ticks, where flagged
    std::uint32_t pad[4];    ///< zero
    friend bool operator==(const kvm_clock_data&, const kvm_clock_data&) = default;
};
static_assert(sizeof(kvm_clock_data) == 48);
static_assert(offsetof(kvm_clock_data, clock) == 0);
static_assert(offsetof(kvm_clock_data, flags) == 8);
static_assert(offsetof(kvm_clock_data, pad0) == 12);
static_assert(offsetof(kvm_clock_data, realtime) == 16);
static_assert(offsetof(kvm_clock_data, host_tsc) == 24);
static_assert(offsetof(kvm_clock_data, pad) == 32);

/// From GET: the VM is in masterclock mode. SET takes it from Linux 5.16 on, without effect, so
/// that what GET gave can be handed back; before, it takes no flag.
inline constexpr std::uint32_t kKVM_CLOCK_TSC_STABLE = 2;
/// From GET: realtime holds. To SET: advance clock by the REALTIME that has passed since (never
/// backwards), so handing back what GET gave moves the clock.
inline constexpr std::uint32_t kKVM_CLOCK_REALTIME = 4;
/// From GET: host_tsc holds, read at the instant of clock and realtime. Without effect in SET.
inline constexpr std::uint32_t kKVM_CLOCK_HOST_TSC = 8;

inline constexpr std::uint32_t kKVM_SET_CLOCK = kvm_iow<kvm_clock_data>(0x7b);
inline constexpr std::uint32_t kKVM_GET_CLOCK = kvm_ior<kvm_clock_data>(0x7c);
static_assert(kKVM_SET_CLOCK == 0x4030ae7b);
static_assert(kKVM_GET_CLOCK == 0x8030ae7c);

/// On a vCPU: sets kPVCLOCK_GUEST_STOPPED in its page when it next runs.
inline constexpr std::uint32_t kKVM_KVMCLOCK_CTRL = kvm_io(0xad);
static_assert(kKVM_KVMCLOCK_CTRL == 0xaead);

/// Proposed and in no kernel up to 7.2: the guest's own page, set and read as one line.
inline constexpr std::uint32_t kKVM_SET_CLOCK_GUEST = kvm_iow<pvclock_vcpu_time_info>(0xd6);
inline constexpr std::uint32_t kKVM_GET_CLOCK_GUEST = kvm_ior<pvclock_vcpu_time_info>(0xd7);
static_assert(kKVM_SET_CLOCK_GUEST == 0x4020aed6);
static_assert(kKVM_GET_CLOCK_GUEST == 0x8020aed7);

}  // namespace continuo::abi
