// The pages through which KVM (and Xen) tells a guest its time: one pvclock_vcpu_time_info for each
// vCPU, and one pvclock_wall_clock for the VM. Sources: arch/x86/include/asm/pvclock-abi.h,
// Documentation/virt/kvm/x86/msr.rst. The arithmetic is time/pvclock_scale.h's; the seqlock with
// which a running guest reads a page that a running host writes is guest/'s.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "continuo/time/pvclock_scale.h"

namespace continuo::abi {

/// One vCPU's page. ns = system_time + (((tsc - tsc_timestamp) << tsc_shift) * mul >> 32).
struct pvclock_vcpu_time_info {
    std::uint32_t version;            ///< odd while the host writes; 0 never written
    std::uint32_t pad0;               ///< zero
    std::uint64_t tsc_timestamp;      ///< guest TSC ticks
    std::uint64_t system_time;        ///< kvmclock in ns at tsc_timestamp
    std::uint32_t tsc_to_system_mul;  ///< unit 2^-32 ns for each shifted tick
    std::int8_t tsc_shift;            ///< to the left; negative to the right
    std::uint8_t flags;               ///< kPVCLOCK_*
    std::uint8_t pad[2];              ///< zero
    friend bool operator==(const pvclock_vcpu_time_info&, const pvclock_vcpu_time_info&) = default;
};
static_assert(sizeof(pvclock_vcpu_time_info) == 32);
static_assert(offsetof(pvclock_vcpu_time_info, version) == 0);
static_assert(offsetof(pvclock_vcpu_time_info, pad0) == 4);
static_assert(offsetof(pvclock_vcpu_time_info, tsc_timestamp) == 8);
static_assert(offsetof(pvclock_vcpu_time_info, system_time) == 16);
static_assert(offsetof(pvclock_vcpu_time_info, tsc_to_system_mul) == 24);
static_assert(offsetof(pvclock_vcpu_time_info, tsc_shift) == 28);
static_assert(offsetof(pvclock_vcpu_time_info, flags) == 29);
static_assert(offsetof(pvclock_vcpu_time_info, pad) == 30);

/// All vCPUs' pages come from one masterclock: their readings agree across vCPUs.
inline constexpr std::uint8_t kPVCLOCK_TSC_STABLE_BIT = 1 << 0;
/// The host has stopped the guest (KVM_KVMCLOCK_CTRL); the guest clears it.
inline constexpr std::uint8_t kPVCLOCK_GUEST_STOPPED = 1 << 1;
/// Historical: broke the ABI, and no kernel sets it.
inline constexpr std::uint8_t kPVCLOCK_COUNTS_FROM_ZERO = 1 << 2;

/// Distance of one vCPU's page from the next in a Linux guest's array, which pads each to a cache
/// line (struct pvclock_vsyscall_time_info). A convention of that guest, not of the ABI: ask the
/// MSR of each vCPU where its page is.
inline constexpr std::size_t kPvclockLinuxStride = 64;

/// The wall clock at kvmclock 0, one for the VM. sec is unsigned and overflows in 2106.
struct pvclock_wall_clock {
    std::uint32_t version;  ///< odd while the host writes
    std::uint32_t sec;      ///< seconds since 1970-01-01 UTC
    std::uint32_t nsec;     ///< below 10^9
    friend bool operator==(const pvclock_wall_clock&, const pvclock_wall_clock&) = default;
};
static_assert(sizeof(pvclock_wall_clock) == 12);
static_assert(offsetof(pvclock_wall_clock, version) == 0);
static_assert(offsetof(pvclock_wall_clock, sec) == 4);
static_assert(offsetof(pvclock_wall_clock, nsec) == 8);

/// Whether a version or sequence number says that its writer is at work: the rest is not to be
/// trusted.
constexpr bool update_in_progress(std::uint32_t version) {
    return (version & 1) != 0;
}

/// The line that the guest computes from this page. nullopt where tsc_shift is outside
/// PvclockScale's domain. Neither version nor flags are looked at: see update_in_progress().
constexpr std::optional<time::PvclockLine> pvclock_line(const pvclock_vcpu_time_info& page) {
    const auto scale = time::PvclockScale::make(page.tsc_to_system_mul, page.tsc_shift);
    if (!scale) return std::nullopt;
    return time::PvclockLine{time::Count<time::GuestCounter>::from_raw(page.tsc_timestamp),
                             time::Instant<time::Kvmclock>::from_raw(page.system_time), *scale};
}

/// The page that says this line: pvclock_line() of it is `line` again.
constexpr pvclock_vcpu_time_info pvclock_page(const time::PvclockLine& line, std::uint32_t version,
                                              std::uint8_t flags) {
    return {version,
            0,
            line.tsc_timestamp().raw(),
            line.system_time().raw(),
            line.scale().mul(),
            line.scale().shift(),
            flags,
            {0, 0}};
}

/// REALTIME at kvmclock 0, exact: 2^32 seconds in ns fit. nullopt where nsec is 10^9 or more.
constexpr std::optional<time::Instant<time::Realtime>> realtime_at_kvmclock_zero(
    const pvclock_wall_clock& wall) {
    if (wall.nsec >= time::kNanosPerSecond) return std::nullopt;
    return time::Instant<time::Realtime>::from_raw(std::uint64_t{wall.sec} * time::kNanosPerSecond +
                                                   wall.nsec);
}

}  // namespace continuo::abi
