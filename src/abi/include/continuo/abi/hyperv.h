// Hyper-V's reference clock as KVM offers it: the reference TSC page and its MSRs. Sources: TLFS
// 12.7, include/asm-generic/hyperv-tlfs.h, get_time_ref_counter() and
// compute_tsc_page_parameters() in arch/x86/kvm/hyperv.c.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "continuo/time/point.h"
#include "continuo/time/wide.h"

namespace continuo::abi {

inline constexpr std::uint32_t kHV_X64_MSR_TIME_REF_COUNT = 0x40000020;  ///< 100 ns
inline constexpr std::uint32_t kHV_X64_MSR_REFERENCE_TSC = 0x40000021;   ///< bit 0 on, page number
inline constexpr std::uint32_t kHV_X64_MSR_TSC_FREQUENCY = 0x40000022;   ///< Hz

/// The head of the page; the rest of its 4096 bytes is reserved.
struct ms_hyperv_tsc_page {
    std::uint32_t tsc_sequence;  ///< 0: do not use the page, read the MSR
    std::uint32_t reserved1;
    std::uint64_t tsc_scale;  ///< unit 2^-64 of 100 ns for each guest tick
    std::int64_t tsc_offset;  ///< 100 ns
    friend bool operator==(const ms_hyperv_tsc_page&, const ms_hyperv_tsc_page&) = default;
};
static_assert(sizeof(ms_hyperv_tsc_page) == 24);
static_assert(offsetof(ms_hyperv_tsc_page, tsc_sequence) == 0);
static_assert(offsetof(ms_hyperv_tsc_page, reserved1) == 4);
static_assert(offsetof(ms_hyperv_tsc_page, tsc_scale) == 8);
static_assert(offsetof(ms_hyperv_tsc_page, tsc_offset) == 16);

/// The reference time, 100 ns, modulo 2^64: (tsc * tsc_scale >> 64) + tsc_offset, rounded down.
/// nullopt where the page says that it is not to be used.
///
/// Example: scale 2^55 (one unit in 512 ticks), offset -3, tsc 1025: floor(1025/512) - 3 is -1.
constexpr std::optional<std::uint64_t> hyperv_reference_time(const ms_hyperv_tsc_page& page,
                                                             time::Count<time::GuestCounter> tsc) {
    if (page.tsc_sequence == 0) return std::nullopt;
    const time::u128 product = static_cast<time::u128>(tsc.raw()) * page.tsc_scale;
    return static_cast<std::uint64_t>(product >> 64) + static_cast<std::uint64_t>(page.tsc_offset);
}

}  // namespace continuo::abi
