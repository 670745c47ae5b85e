// KVM_HC_CLOCK_PAIRING: a guest asks its host for REALTIME and the guest TSC at one instant;
// ptp_kvm is its reader. Sources: Documentation/virt/kvm/x86/hypercalls.rst, kvm_pv_clock_pairing()
// in arch/x86/kvm/x86.c. It answers only under a TSC clocksource on the host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::abi {

/// a0 is the guest physical address of a kvm_clock_pairing, a1 the clock type.
inline constexpr std::uint32_t kKVM_HC_CLOCK_PAIRING = 9;
inline constexpr std::uint32_t kKVM_CLOCK_PAIRING_WALLCLOCK = 0;

struct kvm_clock_pairing {
    std::int64_t sec;   ///< since 1970-01-01 UTC
    std::int64_t nsec;  ///< 0 to 10^9 - 1
    std::uint64_t tsc;  ///< guest TSC at that instant
    std::uint32_t flags;
    std::uint32_t pad[9];
    friend bool operator==(const kvm_clock_pairing&, const kvm_clock_pairing&) = default;
};
static_assert(sizeof(kvm_clock_pairing) == 64);
static_assert(offsetof(kvm_clock_pairing, sec) == 0);
static_assert(offsetof(kvm_clock_pairing, nsec) == 8);
static_assert(offsetof(kvm_clock_pairing, tsc) == 16);
static_assert(offsetof(kvm_clock_pairing, flags) == 24);
static_assert(offsetof(kvm_clock_pairing, pad) == 28);

}  // namespace continuo::abi
