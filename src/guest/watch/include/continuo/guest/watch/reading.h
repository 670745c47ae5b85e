// What `continuo watch` reads: one pass over the clocks of a guest on one CPU, and exchanges of
// counters between two CPUs. Every reading of a clock stands between two of the counter, so that it
// says something that cannot be wrong: at some counter value in that bracket the clock had this
// value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "continuo/guest/vmclock_reader.h"
#include "continuo/time/interval.h"
#include "continuo/time/point.h"
#include "continuo/time/pvclock_scale.h"

namespace continuo::guest::watch {

/// The timeline of whatever clock a reading is of, in ns; which one, the reading says.
struct Watched {
    static constexpr std::string_view name = "watched clock";
    static constexpr bool is_counter = false;
    static constexpr time::TimelineTraits traits{true, true, true, true};
};

using Count = time::Count<time::GuestCounter>;
using Ticks = time::Ticks<time::GuestCounter>;
using Instant = time::Instant<Watched>;
using Nanos = time::Nanos<Watched>;
using NanosInterval = time::Interval<Watched>;

/// The kernel's clocks. MONOTONIC comes first: BOOTTIME, REALTIME and TAI are it and an offset.
enum class Clock : std::uint8_t { kMonotonic, kMonotonicRaw, kBoottime, kRealtime, kTai };
inline constexpr std::size_t kClocks = 5;
/// "CLOCK_MONOTONIC", ...
std::string_view name(Clock clock);

/// A reading: at some counter value from `before` to `after` the clock was in [at, at + 1 ns).
struct Bracket {
    Count before;
    Instant at;
    Count after;
};

/// What adjtimex(2) says.
struct NtpState {
    bool unsync = false;  ///< STA_UNSYNC
    std::int64_t maxerror_us = 0;
    std::int64_t esterror_us = 0;
    std::int64_t frequency = 0;  ///< 2^-16 ppm
    friend bool operator==(const NtpState&, const NtpState&) = default;
};

/// What another CPU had read and published before this pass began: of a clock, or of the counter
/// (then `value` is 0).
struct Seen {
    std::uint32_t cpu = 0;
    Instant value;
    Count after;  ///< the counter after that reading, on its CPU
};

/// One pass over the clocks on one CPU.
struct Pass {
    std::uint32_t cpu = 0;
    /// The counter before the pages are read, before the clocks are, and after them.
    Count woke, begin, end;
    /// A page changed meanwhile: nobody knows which readings are of before.
    bool torn = false;
    std::array<Bracket, kClocks> clocks;
    /// The host's REALTIME, through a PTP clock that the hypervisor offers.
    std::optional<Bracket> phc;
    /// kvmclock's page. Exact: it is a line from the counter.
    std::optional<time::PvclockLine> kvmclock;
    /// The vmclock page, whole; valid where continuo_vmclock_judge() says so.
    std::optional<continuo_vmclock_words> vmclock;
    /// How many time travels the notice page has told of, answered or not.
    std::optional<std::uint64_t> notices;
    std::optional<NtpState> ntp;
    /// The highest values that any other CPU published; none on a guest of one CPU.
    std::optional<Seen> counter_seen;
    std::array<std::optional<Seen>, kClocks> seen;

    const Bracket& of(Clock clock) const { return clocks[static_cast<std::size_t>(clock)]; }
};

/// One exchange of counters: the first CPU read `sent`, the other one heard of it and read `heard`,
/// and the first one heard of that and read `back`. What the other counter is ahead of the first
/// lies in [heard - back, heard - sent].
struct Exchange {
    std::uint32_t cpu = 0;  ///< the other one
    Count sent, heard, back;
};

}  // namespace continuo::guest::watch
