// Lengths that one counter has counted, against rationals without a limit.
#include "counter_rate.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <boost/multiprecision/cpp_int.hpp>

#include "record_gen.h"

namespace continuo::state {
namespace {

using Rational = boost::multiprecision::cpp_rational;
using time::i128;

const Rational kUnit{1'000'000'000};

Rational exact(i128 value) {
    const Rational high{static_cast<std::int64_t>(value >> 64)};
    const Rational low{static_cast<std::uint64_t>(value)};
    return high * Rational{boost::multiprecision::cpp_int{1} << 64} + low;
}

/// A true frequency that is within what is stated of it: at an end as often as between.
Rational true_hz(const CounterRate& rate) {
    const std::uint64_t span = rate.fast_ppb + rate.slow_ppb;
    const std::uint64_t at = gen::flag() ? gen::u64() % (span + 1) : (gen::flag() ? 0 : span);
    return Rational{rate.frequency.hz()} * (kUnit - Rational{rate.slow_ppb} + Rational{at}) / kUnit;
}

CounterRate some_rate() {
    const auto bound = static_cast<std::uint32_t>(gen::u64() % (kRateBoundPpbMax + 1));
    return counter_rate(gen::hz(), bound,
                        gen::flag() ? Architecture::kX86_64 : Architecture::kArm64);
}

TEST(CounterRate, HoldsTheTruncatedKilohertz) {
    const CounterRate x86 = counter_rate(*Hz::from_khz(2'500'000), 27'000, Architecture::kX86_64);
    EXPECT_EQ(x86.fast_ppb, 27'000U + 400U + 1U) << "1 kHz of 2.5 GHz, and the product";
    EXPECT_EQ(x86.slow_ppb, 27'000U);
    const CounterRate arm = counter_rate(*Hz::from_hz(62'500'000), 0, Architecture::kArm64);
    EXPECT_EQ(arm.fast_ppb, 16U) << "1 Hz of 62.5 MHz";
    EXPECT_EQ(arm.slow_ppb, 0U);
}

RC_GTEST_PROP(CounterRateProperty, WhatAnotherCounterWouldHaveCountedIsInTheRange, ()) {
    const CounterRate by = some_rate();
    const CounterRate as = some_rate();
    const std::int64_t ticks = gen::i64();
    const Rational nominal =
        Rational{ticks} / true_hz(by) * true_hz(as) / Rational{as.frequency.hz()} * kUnit;
    const LengthRange range = recounted(ticks, by, as);
    RC_ASSERT(exact(range.lo) <= nominal);
    RC_ASSERT(nominal <= exact(range.hi));
}

RC_GTEST_PROP(CounterRateProperty, TrueAndCountedLengthsAreWithinTheirBounds, ()) {
    const CounterRate rate = some_rate();
    const i128 length = static_cast<i128>(gen::u64());
    const Rational ratio = true_hz(rate) / Rational{rate.frequency.hz()};
    const Rational real = exact(length) / ratio;  // of a length that it counted
    RC_ASSERT(abs(Rational{real - exact(length)}) <= Rational{true_length_bound(length, rate)} ||
              true_length_bound(length, rate) == ~std::uint64_t{0});
    const Rational counted = exact(length) * ratio;  // of a true length
    RC_ASSERT(abs(Rational{counted - exact(length)}) <=
                  Rational{counted_length_bound(length, rate)} ||
              counted_length_bound(length, rate) == ~std::uint64_t{0});
}

}  // namespace
}  // namespace continuo::state
