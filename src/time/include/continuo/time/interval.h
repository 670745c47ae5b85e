// Closed intervals of displacements: what a clock's error is known to lie in. Ends saturate, so an
// interval can become wider than the truth but never narrower.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "continuo/time/point.h"
#include "continuo/time/wide.h"

namespace continuo::time {

/// `value` clamped to the signed 64-bit range.
constexpr std::int64_t sat_i64(i128 value) {
    constexpr i128 lo = std::numeric_limits<std::int64_t>::min();
    constexpr i128 hi = std::numeric_limits<std::int64_t>::max();
    return static_cast<std::int64_t>(std::clamp(value, lo, hi));
}

/// All displacements d with lo <= d <= hi, in the unit of A.
template <Axis A>
class Interval {
  public:
    /// The single displacement zero.
    constexpr Interval() = default;
    /// The hull of two ends, given in any order.
    constexpr Interval(Delta<A> a, Delta<A> b) : lo_{std::min(a, b)}, hi_{std::max(a, b)} {}
    /// [-radius, +radius]; a radius of 2^63 or more saturates.
    static constexpr Interval around_zero(std::uint64_t radius) {
        const i128 wide = static_cast<i128>(radius);
        return {make(-wide), make(wide)};
    }

    constexpr Delta<A> lo() const { return lo_; }
    constexpr Delta<A> hi() const { return hi_; }
    constexpr bool contains(Delta<A> d) const { return lo_ <= d && d <= hi_; }
    constexpr bool contains(const Interval& other) const {
        return lo_ <= other.lo_ && other.hi_ <= hi_;
    }
    /// The largest distance from zero of any member, at most 2^63.
    constexpr std::uint64_t radius() const { return std::max(lo_.magnitude(), hi_.magnitude()); }

    /// Every sum of a member of a and a member of b; saturating.
    friend constexpr Interval operator+(Interval a, Interval b) {
        return {make(static_cast<i128>(a.lo_.raw()) + b.lo_.raw()),
                make(static_cast<i128>(a.hi_.raw()) + b.hi_.raw())};
    }
    /// Every difference of a member of a and a member of b; saturating.
    friend constexpr Interval operator-(Interval a, Interval b) {
        return {make(static_cast<i128>(a.lo_.raw()) - b.hi_.raw()),
                make(static_cast<i128>(a.hi_.raw()) - b.lo_.raw())};
    }
    /// The smallest interval that holds both.
    friend constexpr Interval hull(Interval a, Interval b) {
        return {std::min(a.lo_, b.lo_), std::max(a.hi_, b.hi_)};
    }
    friend constexpr bool operator==(Interval, Interval) = default;

  private:
    static constexpr Delta<A> make(i128 value) { return Delta<A>::from_raw(sat_i64(value)); }

    Delta<A> lo_{};
    Delta<A> hi_{};
};

}  // namespace continuo::time
