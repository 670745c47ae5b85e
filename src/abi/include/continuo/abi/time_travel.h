// The notice page, through which a host tells a guest that it has travelled in time (S1.2, S1.3):
// the migration sequence and delta_REALTIME of the thread, in a form in which no second migration,
// no crash of the guest's agent and no garbage loses anything. docs/formats/time-travel.md says who
// writes what, when, and why; time_travel_host.h is the host's half, guest/time_travel_page.h the
// guest's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::abi {

/// The first bytes of a page of kTimeTravelPageSize; what follows is zero. Little-endian. The host
/// writes the first 64 bytes, the guest the next 64, and the guest moves migration_sequence from
/// odd to even by one compare-and-exchange.
struct time_travel_page {
    std::uint32_t magic;    ///< kTimeTravelMagic; zero: no notices here
    std::uint32_t size;     ///< of this structure in bytes, at least 128
    std::uint16_t version;  ///< kTimeTravelVersion; a reader refuses another
    std::uint8_t pad0[6];   ///< zero
    /// Odd: REALTIME has not been repaired since the last migration. Even: nothing is open.
    std::uint64_t migration_sequence;
    /// Sum of delta_REALTIME of all migrations, ns modulo 2^64: what is still to be added to
    /// REALTIME is this less accounted_ns.
    std::uint64_t time_travelled_ns;
    std::uint64_t gap_ns;             ///< sum of the gaps' lengths, whoever counted them
    std::uint64_t maxerror_ns;        ///< sum of the bounds of each delta_REALTIME
    std::uint64_t released_sequence;  ///< readers wait for no answer to this notice any more
    std::uint64_t release_after_ns;   ///< after how long the host releases readers

    std::uint64_t accounted_ns;     ///< the part of time_travelled_ns that REALTIME holds already
    std::uint64_t intent_ns;        ///< accounted_ns after the step that is under way
    std::int64_t intent_offset_ns;  ///< REALTIME - BOOTTIME before that step
    std::uint64_t pad1[5];          ///< zero
    friend bool operator==(const time_travel_page&, const time_travel_page&) = default;
};
static_assert(sizeof(time_travel_page) == 128);
static_assert(offsetof(time_travel_page, magic) == 0);
static_assert(offsetof(time_travel_page, size) == 4);
static_assert(offsetof(time_travel_page, version) == 8);
static_assert(offsetof(time_travel_page, pad0) == 10);
static_assert(offsetof(time_travel_page, migration_sequence) == 16);
static_assert(offsetof(time_travel_page, time_travelled_ns) == 24);
static_assert(offsetof(time_travel_page, gap_ns) == 32);
static_assert(offsetof(time_travel_page, maxerror_ns) == 40);
static_assert(offsetof(time_travel_page, released_sequence) == 48);
static_assert(offsetof(time_travel_page, release_after_ns) == 56);
static_assert(offsetof(time_travel_page, accounted_ns) == 64);
static_assert(offsetof(time_travel_page, intent_ns) == 72);
static_assert(offsetof(time_travel_page, intent_offset_ns) == 80);
static_assert(offsetof(time_travel_page, pad1) == 88);

inline constexpr std::uint32_t kTimeTravelMagic = 0x56525454;  ///< "TTRV"
inline constexpr std::uint16_t kTimeTravelVersion = 1;
inline constexpr std::size_t kTimeTravelPageSize = 4096;

/// ACPI _HID, the value of Notify, and the device tree's compatible string.
inline constexpr char kTimeTravelAcpiHid[] = "CTNO0001";
inline constexpr std::uint8_t kTimeTravelAcpiNotify = 0x80;
inline constexpr char kTimeTravelCompatible[] = "continuo,time-travel";

}  // namespace continuo::abi
