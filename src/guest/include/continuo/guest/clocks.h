// The readers of this folder with the project's types: for C++ guests that have the standard
// library's headers. What each does, and what it needs, stands in the header that it is made from.
#pragma once

#include <cstdint>
#include <optional>

#include "continuo/abi/pvclock.h"
#include "continuo/abi/time_travel.h"
#include "continuo/abi/vmclock.h"
#include "continuo/guest/pvclock_reader.h"
#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"
#include "continuo/time/interval.h"
#include "continuo/time/point.h"

namespace continuo::guest {

/// kvmclock at one value of the counter.
struct KvmclockReading {
    time::Count<time::GuestCounter> counter;
    time::Instant<time::Kvmclock> at;
    bool stable;   ///< all vCPUs' pages are one line
    bool stopped;  ///< GUEST_STOPPED stands in the page
};

inline const continuo_pvclock_page* reader_of(const abi::pvclock_vcpu_time_info& page) {
    return reinterpret_cast<const continuo_pvclock_page*>(&page);
}
inline const continuo_vmclock_page* reader_of(const abi::vmclock_abi& page) {
    return reinterpret_cast<const continuo_vmclock_page*>(&page);
}
inline const continuo_time_travel_page* reader_of(const abi::time_travel_page& page) {
    return reinterpret_cast<const continuo_time_travel_page*>(&page);
}

/// A consistent reading of this CPU's page; waits while the host writes.
inline KvmclockReading read_kvmclock(const abi::pvclock_vcpu_time_info& page) {
    const continuo_pvclock_reading reading = continuo_pvclock_read(reader_of(page));
    return {time::Count<time::GuestCounter>::from_raw(reading.counter),
            time::Instant<time::Kvmclock>::from_raw(reading.ns),
            (reading.flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0,
            (reading.flags & abi::kPVCLOCK_GUEST_STOPPED) != 0};
}

/// kvmclock, monotonic across all CPUs that share `last`.
inline time::Instant<time::Kvmclock> monotonic_kvmclock(const abi::pvclock_vcpu_time_info& page,
                                                        continuo_pvclock_last& last) {
    return time::Instant<time::Kvmclock>::from_raw(continuo_pvclock_ns(reader_of(page), &last));
}

/// TAI at one value of the counter.
struct TaiReading {
    time::Count<time::GuestCounter> counter;
    time::Instant<time::Tai> at;
    /// True TAI less `at`; nullopt where the host gives no bound.
    std::optional<time::Interval<time::Tai>> error;
    std::uint64_t disruption_marker;
    std::uint64_t generation;
};

/// nullopt where the page gives no TAI, or its writer is at work for all of `attempts`;
/// continuo_vmclock_read() says which.
inline std::optional<TaiReading> read_tai(const abi::vmclock_abi& page, std::uint32_t attempts) {
    continuo_vmclock_reading reading{};
    if (continuo_vmclock_read(reader_of(page), attempts, &reading) != CONTINUO_VMCLOCK_OK)
        return std::nullopt;
    const auto instant = [](std::uint64_t ns) { return time::Instant<time::Tai>::from_raw(ns); };
    TaiReading tai{time::Count<time::GuestCounter>::from_raw(reading.counter),
                   instant(reading.tai_ns), std::nullopt, reading.disruption_marker,
                   reading.generation};
    if (reading.bounded)
        tai.error = time::Interval<time::Tai>{instant(reading.earliest_ns) - tai.at,
                                              instant(reading.latest_ns) - tai.at};
    return tai;
}

/// Calls `read` until no migration and no repair came between, and only while REALTIME may be read.
/// Returns what it gave last.
template <class Read>
auto read_gated(const abi::time_travel_page* page, Read read) {
    const continuo_time_travel_page* const gated = page == nullptr ? nullptr : reader_of(*page);
    for (;;) {
        const continuo_gate gate = continuo_gate_enter(gated);
        const auto value = read();
        if (!continuo_gate_retry(gated, gate)) return value;
    }
}

}  // namespace continuo::guest
