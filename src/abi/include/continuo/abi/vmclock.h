// The vmclock page: a line from the guest's counter to UTC or TAI, and a marker that changes when a
// migration has broken the counter. Sources: include/uapi/linux/vmclock-abi.h and
// drivers/ptp/ptp_vmclock.c (Linux 6.13 and later), whose flags this follows: the published 1.0
// text numbers bits 7 and 8 otherwise and prints 0x64 for vm_generation_counter, which is at 0x68.
// Whoever publishes a page should publish TAI: the sign of tai_offset_sec is disputed, and with UTC
// Linux's driver comes out 74 s wrong under the text's sign.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "continuo/time/point.h"
#include "continuo/time/wide.h"

namespace continuo::abi {

struct vmclock_abi {
    std::uint32_t magic;      ///< kVMCLOCK_MAGIC
    std::uint32_t size;       ///< of the region, bytes; Linux maps it only from 4096
    std::uint16_t version;    ///< 1
    std::uint8_t counter_id;  ///< kVMCLOCK_COUNTER_*
    std::uint8_t time_type;   ///< kVMCLOCK_TIME_*
    std::uint32_t seq_count;  ///< odd while the host writes
    std::uint64_t disruption_marker;
    std::uint64_t flags;                     ///< kVMCLOCK_FLAG_*
    std::uint8_t pad[2];                     ///< zero
    std::uint8_t clock_status;               ///< kVMCLOCK_STATUS_*
    std::uint8_t leap_second_smearing_hint;  ///< kVMCLOCK_SMEARING_*
    std::int16_t tai_offset_sec;
    std::uint8_t leap_indicator;  ///< kVMCLOCK_LEAP_*
    std::uint8_t counter_period_shift;
    std::uint64_t counter_value;                          ///< guest counter ticks
    std::uint64_t counter_period_frac_sec;                ///< unit 2^-(64 + counter_period_shift) s
    std::uint64_t counter_period_esterror_rate_frac_sec;  ///< same unit
    std::uint64_t counter_period_maxerror_rate_frac_sec;  ///< same unit
    std::uint64_t time_sec;                               ///< at counter_value
    std::uint64_t time_frac_sec;                          ///< unit 2^-64 s
    std::uint64_t time_esterror_nanosec;
    std::uint64_t time_maxerror_nanosec;
    std::uint64_t vm_generation_counter;  ///< where flagged
    friend bool operator==(const vmclock_abi&, const vmclock_abi&) = default;
};
static_assert(sizeof(vmclock_abi) == 112);
static_assert(offsetof(vmclock_abi, magic) == 0);
static_assert(offsetof(vmclock_abi, size) == 4);
static_assert(offsetof(vmclock_abi, version) == 8);
static_assert(offsetof(vmclock_abi, counter_id) == 10);
static_assert(offsetof(vmclock_abi, time_type) == 11);
static_assert(offsetof(vmclock_abi, seq_count) == 12);
static_assert(offsetof(vmclock_abi, disruption_marker) == 16);
static_assert(offsetof(vmclock_abi, flags) == 24);
static_assert(offsetof(vmclock_abi, pad) == 32);
static_assert(offsetof(vmclock_abi, clock_status) == 34);
static_assert(offsetof(vmclock_abi, leap_second_smearing_hint) == 35);
static_assert(offsetof(vmclock_abi, tai_offset_sec) == 36);
static_assert(offsetof(vmclock_abi, leap_indicator) == 38);
static_assert(offsetof(vmclock_abi, counter_period_shift) == 39);
static_assert(offsetof(vmclock_abi, counter_value) == 40);
static_assert(offsetof(vmclock_abi, counter_period_frac_sec) == 48);
static_assert(offsetof(vmclock_abi, counter_period_esterror_rate_frac_sec) == 56);
static_assert(offsetof(vmclock_abi, counter_period_maxerror_rate_frac_sec) == 64);
static_assert(offsetof(vmclock_abi, time_sec) == 72);
static_assert(offsetof(vmclock_abi, time_frac_sec) == 80);
static_assert(offsetof(vmclock_abi, time_esterror_nanosec) == 88);
static_assert(offsetof(vmclock_abi, time_maxerror_nanosec) == 96);
static_assert(offsetof(vmclock_abi, vm_generation_counter) == 104);

inline constexpr std::uint32_t kVMCLOCK_MAGIC = 0x4b4c4356;  ///< "VCLK"
inline constexpr std::uint16_t kVmclockVersion = 1;
/// Below this Linux makes no /dev/vmclock0.
inline constexpr std::uint32_t kVmclockPageSize = 4096;

inline constexpr std::uint8_t kVMCLOCK_COUNTER_ARM_VCNT = 0;
inline constexpr std::uint8_t kVMCLOCK_COUNTER_X86_TSC = 1;
inline constexpr std::uint8_t kVMCLOCK_COUNTER_INVALID = 0xff;

inline constexpr std::uint8_t kVMCLOCK_TIME_UTC = 0;        ///< since 1970-01-01 UTC
inline constexpr std::uint8_t kVMCLOCK_TIME_TAI = 1;        ///< since 1970-01-01 TAI
inline constexpr std::uint8_t kVMCLOCK_TIME_MONOTONIC = 2;  ///< since no particular instant
inline constexpr std::uint8_t kVMCLOCK_TIME_INVALID_SMEARED = 3;
inline constexpr std::uint8_t kVMCLOCK_TIME_INVALID_MAYBE_SMEARED = 4;

inline constexpr std::uint64_t kVMCLOCK_FLAG_TAI_OFFSET_VALID = 1 << 0;
inline constexpr std::uint64_t kVMCLOCK_FLAG_DISRUPTION_SOON = 1 << 1;      ///< about a day
inline constexpr std::uint64_t kVMCLOCK_FLAG_DISRUPTION_IMMINENT = 1 << 2;  ///< about an hour
inline constexpr std::uint64_t kVMCLOCK_FLAG_PERIOD_ESTERROR_VALID = 1 << 3;
inline constexpr std::uint64_t kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID = 1 << 4;
inline constexpr std::uint64_t kVMCLOCK_FLAG_TIME_ESTERROR_VALID = 1 << 5;
inline constexpr std::uint64_t kVMCLOCK_FLAG_TIME_MAXERROR_VALID = 1 << 6;
inline constexpr std::uint64_t kVMCLOCK_FLAG_TIME_MONOTONIC = 1 << 7;
inline constexpr std::uint64_t kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT = 1 << 8;
inline constexpr std::uint64_t kVMCLOCK_FLAG_NOTIFICATION_PRESENT = 1 << 9;
inline constexpr std::uint64_t kVmclockFlagsKnown = (1 << 10) - 1;

inline constexpr std::uint8_t kVMCLOCK_STATUS_UNKNOWN = 0;
inline constexpr std::uint8_t kVMCLOCK_STATUS_INITIALIZING = 1;
inline constexpr std::uint8_t kVMCLOCK_STATUS_SYNCHRONIZED = 2;
inline constexpr std::uint8_t kVMCLOCK_STATUS_FREERUNNING = 3;
inline constexpr std::uint8_t kVMCLOCK_STATUS_UNRELIABLE = 4;

inline constexpr std::uint8_t kVMCLOCK_SMEARING_STRICT = 0;
inline constexpr std::uint8_t kVMCLOCK_SMEARING_NOON_LINEAR = 1;
inline constexpr std::uint8_t kVMCLOCK_SMEARING_UTC_SLS = 2;

inline constexpr std::uint8_t kVMCLOCK_LEAP_NONE = 0;
inline constexpr std::uint8_t kVMCLOCK_LEAP_PRE_POS = 1;  ///< one more second at the month's end
inline constexpr std::uint8_t kVMCLOCK_LEAP_PRE_NEG = 2;  ///< one less
inline constexpr std::uint8_t kVMCLOCK_LEAP_POS = 3;      ///< during 23:59:60
inline constexpr std::uint8_t kVMCLOCK_LEAP_POST_POS = 4;
inline constexpr std::uint8_t kVMCLOCK_LEAP_POST_NEG = 5;

/// ACPI _HID and _CID, the value of Notify, and the device tree's compatible string.
inline constexpr char kVmclockAcpiHid[] = "AMZNC10C";
inline constexpr char kVmclockAcpiCid[] = "VMCLOCK";
inline constexpr std::uint8_t kVmclockAcpiNotify = 0x80;
inline constexpr char kVmclockCompatible[] = "amazon,vmclock";

/// Seconds and 2^-64 of a second on the page's own timeline (time_type).
struct VmclockTime {
    std::uint64_t seconds;
    std::uint64_t frac;
    friend bool operator==(const VmclockTime&, const VmclockTime&) = default;
};

/// Whether a reading of this page means anything: magic, version, a size that reaches over the time
/// fields, a counter that exists, a time_type that is not smeared, a status that is not UNRELIABLE.
/// seq_count is not looked at: update_in_progress() (pvclock.h) is for that.
constexpr bool vmclock_readable(const vmclock_abi& page) {
    const bool sized = page.size >= offsetof(vmclock_abi, time_esterror_nanosec);
    const bool counts =
        page.counter_id == kVMCLOCK_COUNTER_ARM_VCNT || page.counter_id == kVMCLOCK_COUNTER_X86_TSC;
    return page.magic == kVMCLOCK_MAGIC && page.version == kVmclockVersion && sized && counts &&
           page.time_type <= kVMCLOCK_TIME_MONOTONIC &&
           page.clock_status != kVMCLOCK_STATUS_UNRELIABLE;
}

/// The page's time at a counter value: time + ((counter - counter_value) * period >> shift),
/// rounded down to 2^-64 s. nullopt unless vmclock_readable(). As in Linux's driver the difference
/// of the counters is unsigned, so that a counter before counter_value reads as one almost 2^64
/// ticks after it; seconds wrap modulo 2^64; nothing else is lost, because (2^64 - 1)^2 + 2^64 - 1
/// fits 128 bits. A shift of 128 or more leaves nothing of the product (in Linux it is undefined).
///
/// Example: period 2^62, shift 4 (a 64 Hz counter), time 10 s + 2^63: 96 ticks later it is 12 s +
/// 0.
constexpr std::optional<VmclockTime> vmclock_time_at(const vmclock_abi& page,
                                                     time::Count<time::GuestCounter> counter) {
    if (!vmclock_readable(page)) return std::nullopt;
    const std::uint64_t ticks = counter.raw() - page.counter_value;
    const time::u128 product = static_cast<time::u128>(ticks) * page.counter_period_frac_sec;
    const int shift = page.counter_period_shift;
    const time::u128 sum = (shift < 128 ? product >> shift : 0) + page.time_frac_sec;
    return VmclockTime{page.time_sec + static_cast<std::uint64_t>(sum >> 64),
                       static_cast<std::uint64_t>(sum)};
}

}  // namespace continuo::abi
