// Points on an axis and displacements along it. A point is a modular 64-bit number, as the counters
// of the hardware and the nanoseconds of KVM's ABI are; it has no order, because "later" means
// nothing modulo 2^64. A displacement is signed and ordered. Counters and timelines share the two
// templates and never each other's values.
#pragma once

#include <compare>
#include <cstdint>

#include "continuo/time/axis.h"

namespace continuo::time {

/// A signed displacement along axis A: ticks of a counter, nanoseconds of a timeline.
/// Arithmetic is modulo 2^64 like that of the points it connects; order is that of the signed
/// value.
template <Axis A>
class Delta {
  public:
    constexpr Delta() = default;
    /// The only door in. Unit: ticks of A, or ns where A is a timeline.
    static constexpr Delta from_raw(std::int64_t raw) { return Delta{raw}; }
    /// The only door out; same unit.
    constexpr std::int64_t raw() const { return raw_; }

    /// Size without sign, exact for INT64_MIN too (2^63).
    constexpr std::uint64_t magnitude() const {
        const auto bits = static_cast<std::uint64_t>(raw_);
        return raw_ < 0 ? 0 - bits : bits;
    }

    friend constexpr Delta operator+(Delta a, Delta b) { return wrap(a.bits() + b.bits()); }
    friend constexpr Delta operator-(Delta a, Delta b) { return wrap(a.bits() - b.bits()); }
    // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 misreads a defaulted <=>.
    friend constexpr auto operator<=>(Delta, Delta) = default;

  private:
    explicit constexpr Delta(std::int64_t raw) : raw_{raw} {}
    constexpr std::uint64_t bits() const { return static_cast<std::uint64_t>(raw_); }
    static constexpr Delta wrap(std::uint64_t bits) {
        return Delta{static_cast<std::int64_t>(bits)};
    }

    std::int64_t raw_ = 0;
};

/// A point on axis A, modulo 2^64.
template <Axis A>
class Point {
  public:
    constexpr Point() = default;
    /// The only door in. Unit: ticks of A since its zero, or ns where A is a timeline.
    static constexpr Point from_raw(std::uint64_t raw) { return Point{raw}; }
    /// The only door out; same unit.
    constexpr std::uint64_t raw() const { return raw_; }

    /// The signed way from b to a, the shorter one round the 2^64 circle; 2^63 apart counts as
    /// behind.
    friend constexpr Delta<A> operator-(Point a, Point b) {
        return Delta<A>::from_raw(static_cast<std::int64_t>(a.raw_ - b.raw_));
    }
    friend constexpr Point operator+(Point p, Delta<A> d) {
        return Point{p.raw_ + static_cast<std::uint64_t>(d.raw())};
    }
    friend constexpr Point operator-(Point p, Delta<A> d) {
        return Point{p.raw_ - static_cast<std::uint64_t>(d.raw())};
    }
    friend constexpr bool operator==(Point, Point) = default;

  private:
    explicit constexpr Point(std::uint64_t raw) : raw_{raw} {}

    std::uint64_t raw_ = 0;
};

/// A reading of a counter, and a number of its ticks.
template <CounterAxis D>
using Count = Point<D>;
template <CounterAxis D>
using Ticks = Delta<D>;

/// An instant on a timeline, and a number of its nanoseconds.
template <TimelineAxis T>
using Instant = Point<T>;
template <TimelineAxis T>
using Nanos = Delta<T>;

/// The source's counter read as this host's own. Only for a caller who has proof (equal boot
/// identity) that both are one boot of one host; anything else mixes two clocks.
constexpr Count<HostCounter> same_boot_counter(Count<SourceCounter> count) {
    return Count<HostCounter>::from_raw(count.raw());
}

/// This host's counter as it stands in a record: a stranger's from here on.
constexpr Count<SourceCounter> recorded_counter(Count<HostCounter> count) {
    return Count<SourceCounter>::from_raw(count.raw());
}

/// The same length on another timeline: nanoseconds are nanoseconds, but the change of timeline is
/// said.
template <TimelineAxis To, TimelineAxis From>
constexpr Nanos<To> as_nanos_of(Nanos<From> length) {
    return Nanos<To>::from_raw(length.raw());
}

}  // namespace continuo::time
