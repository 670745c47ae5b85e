// A clock is a line: an affine map from one axis to another, y = y0 + floor(((x - x0) * num +
// phase) / den). The phase, in [0, den), is the fraction of y at x0, and with it inversion and
// composition are exact: at() of a composition is the floor of the true composed map, not a floor
// of floors. What floors at every stage, as KVM and its guests do, is PvclockLine (pvclock_scale.h)
// and TscMap (tsc_scale.h).
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>

#include "continuo/time/interval.h"
#include "continuo/time/point.h"
#include "continuo/time/rate.h"
#include "continuo/time/wide.h"

namespace continuo::time {

/// An affine map from axis From to axis To with an exact rational slope.
template <Axis From, Axis To>
class Line {
  public:
    /// The line of this slope through (x0, y0).
    constexpr Line(Point<From> x0, Point<To> y0, ExactRatio slope)
        : x0_{x0}, y0_{y0}, slope_{slope} {}
    /// The same with y0 + phase/den at x0. nullopt unless phase < slope.den().
    static constexpr std::optional<Line> with_phase(Point<From> x0, Point<To> y0, ExactRatio slope,
                                                    std::uint64_t phase) {
        if (phase >= slope.den()) return std::nullopt;
        Line line{x0, y0, slope};
        line.phase_ = phase;
        return line;
    }

    constexpr Point<From> x0() const { return x0_; }
    constexpr Point<To> y0() const { return y0_; }
    constexpr ExactRatio slope() const { return slope_; }
    constexpr std::uint64_t phase() const { return phase_; }

    /// y at x, rounded down, modulo 2^64. Exact for every x: x - x0 is the shorter way round, so
    /// the domain is the half circle on either side of x0, and (2^63) * (2^64 - 1) + 2^64 fits the
    /// 128-bit product.
    ///
    /// Example: 3 ticks of a 2 GHz counter after (0, 100) is 100 + floor(3 * 1/2) = 101 ns.
    constexpr Point<To> at(Point<From> x) const { return at_ceiling(x, 0); }

    /// y at x, rounded up, modulo 2^64. Same domain.
    constexpr Point<To> ceil_at(Point<From> x) const { return at_ceiling(x, slope_.den() - 1); }

    /// The inverse map, exact: at() of it is the floor of the true inverse, modulo 2^64.
    /// invert()->invert() is the same map again, written through another point, which lies less
    /// than den/num + 1 before x0 (a slope below 2^-62 has no use for it: that is the whole
    /// circle). nullopt where the slope is zero.
    constexpr std::optional<Line<To, From>> invert() const {
        const auto inverse = slope_.inverse();
        if (!inverse) return std::nullopt;
        // x = x0 + (den*(y - y0) - phase) / num, and -phase is split into whole units and a new
        // phase.
        const FloorDivision split = floor_divide(-static_cast<i128>(phase_), slope_.num());
        const auto x0 = Point<From>::from_raw(x0_.raw() + wrap_u64(split.quotient));
        return Line<To, From>::with_phase(y0_, x0, *inverse, split.remainder);
    }

    /// The same line written through another x: equal at every point within 2^63 of both anchors.
    constexpr Line moved_to(Point<From> x) const {
        const FloorDivision split = numerator_at(x);
        Line line{x, Point<To>::from_raw(y0_.raw() + wrap_u64(split.quotient)), slope_};
        line.phase_ = split.remainder;
        return line;
    }

    /// The line shifted along To.
    constexpr Line shifted(Delta<To> d) const {
        Line line = *this;
        line.y0_ = y0_ + d;
        return line;
    }

    friend constexpr bool operator==(const Line&, const Line&) = default;

  private:
    constexpr FloorDivision numerator_at(Point<From> x) const {
        const i128 run = static_cast<i128>((x - x0_).raw());
        return floor_divide(run * static_cast<i128>(slope_.num()) + static_cast<i128>(phase_),
                            slope_.den());
    }
    constexpr Point<To> at_ceiling(Point<From> x, std::uint64_t round) const {
        const FloorDivision split = numerator_at(x);
        // ceil = floor + 1 unless exact; `round` is 0 for floor and den - 1 for ceil.
        const std::uint64_t up = round != 0 && split.remainder != 0 ? 1 : 0;
        return Point<To>::from_raw(y0_.raw() + wrap_u64(split.quotient) + up);
    }

    Point<From> x0_;
    Point<To> y0_;
    ExactRatio slope_;
    std::uint64_t phase_ = 0;
};

/// A line through a counter reading and an instant, at the counter's frequency.
template <CounterAxis D, TimelineAxis T>
constexpr Line<D, T> clock_line(Count<D> at, Instant<T> reads, Hz hz) {
    return Line<D, T>{at, reads, ExactRatio::nanos_per_tick(hz)};
}

/// second after first: at() is the floor of the composed affine map, exactly. Of the phase a
/// fraction of 1/den may be cut off where the slopes reduce against each other; at() cannot show
/// it, but ceil_at() can then be one low, and what is composed or inverted again starts from a line
/// that lies less than 1/den of a unit low. nullopt where the product of the slopes, reduced, does
/// not fit 64 bits over 64 bits.
template <Axis A, Axis B, Axis C>
constexpr std::optional<Line<A, C>> compose(const Line<A, B>& first, const Line<B, C>& second) {
    const auto slope = product(first.slope(), second.slope());
    if (!slope) return std::nullopt;
    // Write `second` through first.y0: its phase r is then over second.den. At x = first.x0 the
    // composed map is
    //   y + (r + num2 * phase1 / den1) / den2,
    // and over the reduced denominator den = (den1/g2) * (den2/g1) that is (r*(den1/g2) +
    // (num2/g2)*phase1) / g1.
    const Line<B, C> at_first = second.moved_to(first.y0());
    const std::uint64_t g1 = std::gcd(first.slope().num(), second.slope().den());
    const std::uint64_t g2 = std::gcd(second.slope().num(), first.slope().den());
    const u128 a = static_cast<u128>(at_first.phase()) * (first.slope().den() / g2);
    const u128 b = static_cast<u128>(second.slope().num() / g2) * first.phase();
    // floor((a + b) / g1) without a 129th bit; a/g1 < den, so the sum of the quotients fits.
    const u128 whole = a / g1 + b / g1 + (a % g1 + b % g1) / g1;
    const u128 den = slope->den();
    const auto y0 =
        Point<C>::from_raw(at_first.y0().raw() + static_cast<std::uint64_t>(whole / den));
    return Line<A, C>::with_phase(first.x0(), y0, *slope, static_cast<std::uint64_t>(whole % den));
}

/// The seam at x: what a reads more than b there. An exact integer, the difference of two floors.
template <class LineA, class LineB, Axis From>
constexpr auto minus(const LineA& a, const LineB& b, Point<From> x) {
    return a.at(x) - b.at(x);
}

/// Every value that minus(a, b, x) takes for x in [from, from + length]: the differences at the two
/// ends, widened by the one unit that two floors can differ by in between. Domain: length >= 0, and
/// the lines stay within 2^63 of each other and of their anchors on it.
template <Axis From, Axis To>
constexpr Interval<To> minus_over(const Line<From, To>& a, const Line<From, To>& b,
                                  Point<From> from, Delta<From> length) {
    const Interval<To> ends{minus(a, b, from), minus(a, b, from + length)};
    return ends + Interval<To>::around_zero(1);
}

}  // namespace continuo::time
