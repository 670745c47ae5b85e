// True time: what no host and no guest knows, and what every verdict is held against. One unit is
// 1/16 ns, so that every tick of every counter that KVM can state below 16 GHz has an instant of
// its own, conversions are shifts, and 63 bits last 18 years. A tag without now(): the world's own
// object alone says what time it is.
#pragma once

#include <chrono>
#include <cstdint>
#include <ratio>

namespace continuo::sim {

/// The tag of true time; deliberately without now().
struct TrueClock {
    using rep = std::int64_t;
    using period = std::ratio<1, 16'000'000'000>;
    using duration = std::chrono::duration<rep, period>;
    using time_point = std::chrono::time_point<TrueClock>;
    static constexpr bool is_steady = true;
};

/// A length of true time, in 1/16 ns.
using Span = TrueClock::duration;
/// True time since the world began.
using TrueTime = TrueClock::time_point;
using Nanoseconds = std::chrono::duration<std::int64_t, std::nano>;

/// Units of true time in a second.
inline constexpr std::uint64_t kUnitsPerSecond = 16'000'000'000;

/// Exact. Domain: |ns| < 2^59, 18 years.
constexpr Span span_ns(std::int64_t ns) {
    return Span{ns * 16};
}
/// Whole ns, rounded towards the past.
constexpr std::int64_t floor_ns(Span span) {
    return span.count() >> 4;
}
constexpr std::int64_t floor_ns(TrueTime t) {
    return floor_ns(t.time_since_epoch());
}

}  // namespace continuo::sim
