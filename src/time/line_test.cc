#include "continuo/time/line.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

using oracle::Big;
using oracle::big;
using GuestLine = Line<HostCounter, GuestCounter>;
using ClockLine = Line<GuestCounter, Kvmclock>;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

constexpr Count<HostCounter> host(std::uint64_t raw) {
    return Count<HostCounter>::from_raw(raw);
}
constexpr Count<GuestCounter> guest(std::uint64_t raw) {
    return Count<GuestCounter>::from_raw(raw);
}
constexpr Instant<Kvmclock> kvm(std::uint64_t raw) {
    return Instant<Kvmclock>::from_raw(raw);
}
constexpr ExactRatio ratio(std::uint64_t num, std::uint64_t den) {
    return *ExactRatio::make(num, den);
}

// The worked example: 2 GHz, 100 ns at tick 0; 3 ticks are 1.5 ns.
constexpr ClockLine kTwoGhz = clock_line(guest(0), kvm(100), *Hz::from_hz(2'000'000'000));
static_assert(kTwoGhz.at(guest(3)) == kvm(101));
static_assert(kTwoGhz.ceil_at(guest(3)) == kvm(102));
static_assert(kTwoGhz.at(guest(4)) == kvm(102) && kTwoGhz.ceil_at(guest(4)) == kvm(102));
static_assert(kTwoGhz.at(guest(kMax64)) == kvm(99));  // one tick before: 100 - 0.5, down
static_assert(kTwoGhz.ceil_at(guest(kMax64)) == kvm(100));
// The steepest line at both ends of the circle: (2^64 - 1) * (2^63 - 1) = 2^127 - 2^64 - 2^63 + 1,
// modulo 2^64 that is 2^63 + 1; and (2^64 - 1) * -2^63 = -2^127 + 2^63, that is 2^63.
constexpr ClockLine kSteepest{guest(0), kvm(0), ratio(kMax64, 1)};
static_assert(kSteepest.at(guest(kMax64 >> 1)) == kvm((std::uint64_t{1} << 63) + 1));
static_assert(kSteepest.at(guest(std::uint64_t{1} << 63)) == kvm(std::uint64_t{1} << 63));
// The flattest, with the largest phase: (2^63 - 1 + 2^64 - 2) / (2^64 - 1) is 1, and at 0 it is 0.
constexpr ClockLine kFlattest =
    *ClockLine::with_phase(guest(0), kvm(0), ratio(1, kMax64), kMax64 - 1);
static_assert(kFlattest.at(guest(kMax64 >> 1)) == kvm(1) && kFlattest.at(guest(0)) == kvm(0));
static_assert(kFlattest.at(guest(1)) == kvm(1));
static_assert(kFlattest.at(guest(std::uint64_t{1} << 63)) == kvm(0));  // (2^63 - 2) / (2^64 - 1)
static_assert(!ClockLine::with_phase(guest(0), kvm(0), ratio(1, 3), 3));
static_assert(ClockLine::with_phase(guest(0), kvm(0), ratio(1, 3), 2));
static_assert(!ClockLine(guest(0), kvm(0), ratio(0, 1)).invert());
static_assert(kTwoGhz.shifted(Nanos<Kvmclock>::from_raw(-101)).at(guest(0)) == kvm(kMax64));

Big numerator(std::uint64_t x, std::uint64_t x0, ExactRatio slope, std::uint64_t phase) {
    return oracle::short_way(x, x0) * big(slope.num()) + big(phase);
}

RC_GTEST_PROP(Line, AtIsTheFloorAndCeilAtTheCeiling, ()) {
    const auto line = *gen::line<GuestCounter, Kvmclock>(gen::ratio());
    const auto x = *gen::point<GuestCounter>();
    const Big above = numerator(x.raw(), line.x0().raw(), line.slope(), line.phase());
    const Big den = big(line.slope().den());
    const Big y0 = big(line.y0().raw());
    RC_ASSERT(line.at(x).raw() == oracle::wrap64(y0 + oracle::floor_div(above, den)));
    RC_ASSERT(line.ceil_at(x).raw() == oracle::wrap64(y0 + oracle::ceil_div(above, den)));
}

RC_GTEST_PROP(Line, MovedIsTheSameLine, ()) {
    const auto line = *gen::line<GuestCounter, Kvmclock>(gen::ratio());
    const auto to = line.x0() + Ticks<GuestCounter>::from_raw(*gen::within(62));
    const auto moved = line.moved_to(to);
    RC_ASSERT(moved.x0() == to);
    RC_ASSERT(moved.slope() == line.slope());
    RC_ASSERT(moved.phase() < line.slope().den());
    // Any point within 2^62 of the old anchor is within 2^63 of the new one.
    const auto x = line.x0() + Ticks<GuestCounter>::from_raw(*gen::within(62));
    RC_ASSERT(moved.at(x) == line.at(x));
    RC_ASSERT(moved.ceil_at(x) == line.ceil_at(x));
    RC_ASSERT(moved.moved_to(line.x0()) == line);
}

RC_GTEST_PROP(Line, InverseIsTheFloorOfTheTrueInverse, ()) {
    const auto line = *gen::line<GuestCounter, Kvmclock>(gen::positive_ratio());
    const auto y = *gen::point<Kvmclock>();
    const auto inverse = line.invert();
    RC_ASSERT(inverse.has_value());
    // x = x0 + (den * (y - y0) - phase) / num
    const Big above =
        big(line.slope().den()) * oracle::short_way(y.raw(), line.y0().raw()) - big(line.phase());
    const Big x = big(line.x0().raw()) + oracle::floor_div(above, big(line.slope().num()));
    RC_ASSERT(inverse->at(y).raw() == oracle::wrap64(x));
}

RC_GTEST_PROP(Line, InverseOfInverseIsTheSameMap, ()) {
    const auto line = *gen::line<GuestCounter, Kvmclock>(gen::positive_ratio());
    RC_PRE(line.phase() / line.slope().num() < std::uint64_t{1} << 62);
    const auto twice = line.invert()->invert();
    RC_ASSERT(twice.has_value());
    const auto x = line.x0() + Ticks<GuestCounter>::from_raw(*gen::within(62));
    RC_ASSERT(twice->slope() == line.slope());
    RC_ASSERT(twice->at(x) == line.at(x));
    RC_ASSERT(twice->ceil_at(x) == line.ceil_at(x));
}

/// second(first(x)) of the true maps, floored once.
void composed_is_the_floor_of_the_composed_map(const rc::Gen<ExactRatio>& slopes) {
    const auto first = *gen::line<HostCounter, GuestCounter>(slopes);
    const auto second = *gen::line<GuestCounter, Kvmclock>(slopes);
    const auto composed = compose(first, second);
    RC_ASSERT(composed.has_value() == product(first.slope(), second.slope()).has_value());
    if (!composed) return;
    const auto x = *gen::point<HostCounter>();
    const Big d1 = big(first.slope().den());
    const Big d2 = big(second.slope().den());
    const Big reach = oracle::short_way(first.y0().raw(), second.x0().raw()) * d1 +
                      numerator(x.raw(), first.x0().raw(), first.slope(), first.phase());
    const Big above = reach * big(second.slope().num()) + big(second.phase()) * d1;
    RC_ASSERT(composed->at(x).raw() ==
              oracle::wrap64(big(second.y0().raw()) + oracle::floor_div(above, d1 * d2)));
    const std::uint64_t ceiling =
        oracle::wrap64(big(second.y0().raw()) + oracle::ceil_div(above, d1 * d2));
    const std::uint64_t got = composed->ceil_at(x).raw();
    RC_ASSERT(got == ceiling || got == ceiling - 1);
}
RC_GTEST_PROP(Compose, IsTheFloorOfTheComposedMap, ()) {
    composed_is_the_floor_of_the_composed_map(gen::ratio());
}
// With common factors, so that phases carry from one line into the other.
RC_GTEST_PROP(Compose, IsTheFloorOfTheComposedMapWhereSlopesReduce, ()) {
    composed_is_the_floor_of_the_composed_map(gen::small_ratio());
}

// Random slopes seldom have a product that fits; these are the frequencies of machines.
RC_GTEST_PROP(Compose, HostToKvmclockAtEveryKilohertz, ()) {
    const auto any_khz = rc::gen::inRange<std::uint64_t>(500'000, 6'000'000);
    const auto host_hz = *Hz::from_khz(*any_khz);
    const auto guest_hz = *Hz::from_khz(*any_khz);
    const GuestLine first{*gen::point<HostCounter>(), *gen::point<GuestCounter>(),
                          ExactRatio::between(host_hz, guest_hz)};
    const ClockLine second =
        clock_line(*gen::point<GuestCounter>(), *gen::point<Kvmclock>(), guest_hz)
            .moved_to(first.y0());
    const auto composed = compose(first, second);
    RC_ASSERT(composed.has_value());
    RC_ASSERT(composed->slope() == ExactRatio::nanos_per_tick(host_hz));
    // 2^58 ticks are at most 2^58 * 12 < 2^62 of the guest's. A floor of floors is low by less than
    // one guest tick (2 ns here) and one ns.
    const auto x = first.x0() + Ticks<HostCounter>::from_raw(*gen::within(58));
    const auto low = (composed->at(x) - second.at(first.at(x))).raw();
    RC_ASSERT(0 <= low);
    RC_ASSERT(low <= 3);
}

TEST(Compose, Vectors) {
    // 1 GHz host, 3 GHz guest, kvmclock by 1/3 ns a tick: with one third of a tick in hand
    // at the anchor, 1/9 ns, over a denominator of 1 after the product: 3 * 1/3.
    const GuestLine first{host(10), guest(100), ratio(3, 1)};
    const auto second = *ClockLine::with_phase(guest(99), kvm(7), ratio(1, 3), 2);
    const auto composed = compose(first, second);
    ASSERT_TRUE(composed.has_value());
    EXPECT_EQ(composed->slope(), ratio(1, 1));
    // at host 10: guest 100, 7 + (1 + 2)/3 = 8; at host 11: guest 103, 7 + (4 + 2)/3 = 9
    EXPECT_EQ(composed->at(host(10)), kvm(8));
    EXPECT_EQ(composed->at(host(11)), kvm(9));
    EXPECT_EQ(composed->at(host(9)), kvm(7));
    // A product that does not fit.
    EXPECT_FALSE(compose(GuestLine{host(0), guest(0), ratio(kMax64, 1)},
                         ClockLine{guest(0), kvm(0), ratio(kMax64, 1)}));
    // A stopped clock composes.
    const auto stopped = compose(GuestLine{host(0), guest(5), ratio(0, 1)},
                                 ClockLine{guest(0), kvm(0), ratio(1, 2)});
    ASSERT_TRUE(stopped.has_value());
    EXPECT_EQ(stopped->at(host(kMax64)), kvm(2));
}

// The documented limit of ceil_at(): a fraction of 1/den of phase is cut off where the slopes
// reduce.
TEST(Compose, CeilingMayBeOneLow) {
    // y = (2x + 1) / 3, then half of it: (2x + 1) / 6 is (x + 1/2) / 3, and the 1/2 is cut off.
    const auto first = *GuestLine::with_phase(host(0), guest(0), ratio(2, 3), 1);
    const ClockLine second{guest(0), kvm(0), ratio(1, 2)};
    const auto composed = compose(first, second);
    ASSERT_TRUE(composed.has_value());
    EXPECT_EQ(composed->slope(), ratio(1, 3));
    EXPECT_EQ(composed->phase(), 0U);
    EXPECT_EQ(composed->at(host(0)), kvm(0));       // floor(1/6)
    EXPECT_EQ(composed->ceil_at(host(0)), kvm(0));  // ceil(1/6) is 1
    EXPECT_EQ(composed->ceil_at(host(1)), kvm(1));  // ceil(3/6)
}

TEST(Minus, IsTheDifferenceOfTheReadings) {
    const ClockLine wanted{guest(0), kvm(1000), ratio(1, 2)};
    const ClockLine realised{guest(1), kvm(1001), ratio(1, 2)};
    // at 4: 1001 + floor(1.5) - (1000 + 2) = 0; at 5: 1001 + 2 - (1000 + 2) = 1
    EXPECT_EQ(minus(realised, wanted, guest(4)).raw(), 0);
    EXPECT_EQ(minus(realised, wanted, guest(5)).raw(), 1);
    EXPECT_EQ(minus(wanted, realised, guest(5)).raw(), -1);
}

RC_GTEST_PROP(Minus, OverALengthEnclosesEveryReading, ()) {
    const auto slope = [] { return ratio(*gen::u64() >> 40, (*gen::u64() >> 44) + 1); };
    const auto a = *gen::line<GuestCounter, Kvmclock>(rc::gen::just(slope()));
    const auto b = ClockLine{a.x0() + Ticks<GuestCounter>::from_raw(*gen::within(20)),
                             a.y0() + Nanos<Kvmclock>::from_raw(*gen::within(40)), slope()};
    const auto from = a.x0() + Ticks<GuestCounter>::from_raw(*gen::within(30));
    const std::int64_t length = *gen::within(30);
    RC_PRE(length >= 0);
    const auto bound = minus_over(a, b, from, Ticks<GuestCounter>::from_raw(length));
    for (int i = 0; i < 20; ++i) {
        const auto step =
            static_cast<std::int64_t>(*gen::u64() % (static_cast<std::uint64_t>(length) + 1));
        const auto x = from + Ticks<GuestCounter>::from_raw(step);
        RC_ASSERT(bound.contains(minus(a, b, x)));
    }
}

// One unit is needed and is enough: two lines that differ by half a unit, with other denominators.
TEST(Minus, OverALengthNeedsItsOneUnit) {
    const ClockLine a{guest(0), kvm(0), ratio(1, 2)};
    const ClockLine b{guest(0), kvm(0), ratio(1, 3)};
    bool outside_the_ends = false;
    for (std::int64_t length = 0; length < 60; ++length) {
        const auto bound = minus_over(a, b, guest(0), Ticks<GuestCounter>::from_raw(length));
        const Interval<Kvmclock> ends{minus(a, b, guest(0)),
                                      minus(a, b, guest(static_cast<std::uint64_t>(length)))};
        for (std::uint64_t x = 0; x <= static_cast<std::uint64_t>(length); ++x) {
            EXPECT_TRUE(bound.contains(minus(a, b, guest(x)))) << x << " of " << length;
            outside_the_ends = outside_the_ends || !ends.contains(minus(a, b, guest(x)));
        }
    }
    EXPECT_TRUE(outside_the_ends);
}

}  // namespace
}  // namespace continuo::time
