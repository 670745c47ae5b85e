// Generators of the property tests: half of what they give lies on or beside an edge (0, a power of
// two, 2^64 - 1, 10^9), because uniform 64-bit numbers never do. RC_PARAMS in the environment, as
// "seed=... max_success=...", overrides the number of cases and repeats a failure.
#pragma once

#include <rapidcheck.h>

#include <cstdint>
#include <cstdlib>
#include <ostream>
#include <utility>
#include <vector>

#include "continuo/time/line.h"
#include "continuo/time/point.h"
#include "continuo/time/rate.h"

namespace continuo::time {

// How a failing case is printed; rapidcheck finds these by the argument's namespace.
template <Axis A>
void showValue(const Point<A>& point, std::ostream& os) {
    os << A::name << " " << point.raw();
}
template <Axis A>
void showValue(const Delta<A>& delta, std::ostream& os) {
    os << A::name << " by " << delta.raw();
}
inline void showValue(const ExactRatio& ratio, std::ostream& os) {
    os << ratio.num() << "/" << ratio.den();
}
inline void showValue(const Hz& hz, std::ostream& os) {
    os << hz.hz() << " Hz";
}
template <Axis From, Axis To>
void showValue(const Line<From, To>& line, std::ostream& os) {
    os << "line(x0 " << line.x0().raw() << ", y0 " << line.y0().raw() << ", slope "
       << line.slope().num() << "/" << line.slope().den() << ", phase " << line.phase() << ")";
}

}  // namespace continuo::time

namespace continuo::time::gen {

/// rapidcheck reads its parameters from the environment when the first property runs.
inline const bool kCasesSet = setenv("RC_PARAMS", "max_success=1000", 0) == 0;

/// 64 bits, all values equally likely whatever rapidcheck's size is.
inline rc::Gen<std::uint64_t> uniform64() {
    return rc::gen::noShrink(
        rc::gen::resize(rc::kNominalSize, rc::gen::arbitrary<std::uint64_t>()));
}

/// An edge of the 64-bit numbers, or within two of one.
inline rc::Gen<std::uint64_t> edge64() {
    return rc::gen::apply(
        [](int bit, int step) {
            const std::uint64_t edge = bit == 64   ? 0
                                       : bit == 65 ? 1'000'000'000
                                                   : std::uint64_t{1} << bit;
            return edge + static_cast<std::uint64_t>(static_cast<std::int64_t>(step));
        },
        rc::gen::oneOf(rc::gen::inRange(0, 66), rc::gen::elementOf(std::vector{31, 32, 63, 64})),
        rc::gen::inRange(-2, 3));
}

/// Any number of 64 bits: an edge, any length in bits, or uniform.
inline rc::Gen<std::uint64_t> u64() {
    const auto any_length = rc::gen::apply([](std::uint64_t bits, int cut) { return bits >> cut; },
                                           uniform64(), rc::gen::inRange(0, 64));
    return rc::gen::oneOf(edge64(), any_length, uniform64(), edge64());
}
inline rc::Gen<std::int64_t> i64() {
    return rc::gen::map(u64(), [](std::uint64_t bits) { return static_cast<std::int64_t>(bits); });
}
inline rc::Gen<std::uint64_t> positive64() {
    return rc::gen::map(u64(), [](std::uint64_t bits) { return bits == 0 ? 1 : bits; });
}
inline rc::Gen<std::uint32_t> u32() {
    return rc::gen::apply(
        [](std::uint64_t bits, bool high) {
            return static_cast<std::uint32_t>(high ? bits >> 32 : bits);
        },
        u64(), rc::gen::arbitrary<bool>());
}

/// |value| < 2^bits.
inline rc::Gen<std::int64_t> within(int bits) {
    return rc::gen::map(i64(), [bits](std::int64_t value) {
        const std::int64_t limit = std::int64_t{1} << bits;
        return value % limit;
    });
}

template <Axis A>
rc::Gen<Point<A>> point() {
    return rc::gen::map(u64(), [](std::uint64_t raw) { return Point<A>::from_raw(raw); });
}
template <Axis A>
rc::Gen<Delta<A>> delta() {
    return rc::gen::map(i64(), [](std::int64_t raw) { return Delta<A>::from_raw(raw); });
}

inline rc::Gen<ExactRatio> ratio() {
    return rc::gen::apply(
        [](std::uint64_t num, std::uint64_t den) { return *ExactRatio::make(num, den); }, u64(),
        positive64());
}
inline rc::Gen<ExactRatio> positive_ratio() {
    return rc::gen::apply(
        [](std::uint64_t num, std::uint64_t den) { return *ExactRatio::make(num, den); },
        positive64(), positive64());
}
/// Small fractions, whose products reduce and fit.
inline rc::Gen<ExactRatio> small_ratio() {
    return rc::gen::apply(
        [](std::uint64_t num, std::uint64_t den) { return *ExactRatio::make(num, den); },
        rc::gen::inRange<std::uint64_t>(0, 100), rc::gen::inRange<std::uint64_t>(1, 100));
}
inline rc::Gen<Hz> hz() {
    return rc::gen::map(positive64(), [](std::uint64_t value) { return *Hz::from_hz(value); });
}

template <Axis From, Axis To>
rc::Gen<Line<From, To>> line(rc::Gen<ExactRatio> slopes) {
    return rc::gen::apply(
        [](Point<From> x0, Point<To> y0, ExactRatio slope, std::uint64_t phase) {
            return *Line<From, To>::with_phase(x0, y0, slope, phase % slope.den());
        },
        point<From>(), point<To>(), std::move(slopes), u64());
}

}  // namespace continuo::time::gen
