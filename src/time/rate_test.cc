#include "continuo/time/rate.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

using oracle::Big;
using oracle::big;
using oracle::big_i128;
using oracle::pow2;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();
constexpr i128 kErrorMax = static_cast<i128>(~static_cast<u128>(0) >> 1);
constexpr std::uint64_t kDriftMax = kMax64 >> 1;

constexpr ExactRatio ratio(std::uint64_t num, std::uint64_t den) {
    return *ExactRatio::make(num, den);
}

static_assert(!Hz::from_hz(0) && Hz::from_hz(1)->hz() == 1 && Hz::from_hz(kMax64)->hz() == kMax64);
static_assert(!Hz::from_khz(0) && Hz::from_khz(3'000'000)->hz() == 3'000'000'000);
static_assert(Hz::from_khz(kMax64 / 1000) && !Hz::from_khz(kMax64 / 1000 + 1));
static_assert(Hz::from_hz(2'599'999'999)->floor_khz() == 2'599'999);

static_assert(!ExactRatio::make(1, 0) && !ExactRatio::make(0, 0));
static_assert(ratio(0, kMax64).num() == 0 && ratio(0, kMax64).den() == 1);
static_assert(ratio(6, 4) == ratio(3, 2));
static_assert(ratio(kMax64, kMax64) == ExactRatio{});
static_assert(ratio(std::uint64_t{1} << 63, std::uint64_t{1} << 32) ==
              ratio(std::uint64_t{1} << 31, 1));
static_assert(!ratio(0, 1).inverse() && *ratio(3, 2).inverse() == ratio(2, 3));
static_assert(ExactRatio::nanos_per_tick(*Hz::from_hz(2'500'000'000)) == ratio(2, 5));
static_assert(ExactRatio::ticks_per_nano(*Hz::from_hz(2'500'000'000)) == ratio(5, 2));
static_assert(ExactRatio::between(*Hz::from_hz(1'000'000'000), *Hz::from_hz(2'500'000'000)) ==
              ratio(5, 2));

static_assert(*product(ratio(2, 3), ratio(3, 2)) == ExactRatio{});
static_assert(*product(ratio(kMax64, 2), ratio(2, kMax64)) == ExactRatio{});
static_assert(*product(ratio(0, 1), ratio(1, kMax64)) == ratio(0, 1));
static_assert(*product(ratio(0, 1), ratio(0, 1)) == ratio(0, 1));
static_assert(*product(ratio(std::uint64_t{1} << 32, 1), ratio((std::uint64_t{1} << 32) - 1, 1)) ==
              ratio(kMax64 << 32, 1));  // 2^64 - 2^32
static_assert(!product(ratio(std::uint64_t{1} << 32, 1), ratio(std::uint64_t{1} << 32, 1)));
static_assert(!product(ratio(1, std::uint64_t{1} << 32), ratio(1, std::uint64_t{1} << 32)));

RC_GTEST_PROP(ExactRatio, MakeReducesAndKeepsTheValue, ()) {
    const std::uint64_t num = *gen::u64();
    const std::uint64_t den = *gen::positive64();
    const ExactRatio made = ratio(num, den);
    RC_ASSERT(big(made.num()) * big(den) == big(num) * big(made.den()));
    RC_ASSERT(boost::multiprecision::gcd(big(made.num()), big(made.den())) == 1);
}

RC_GTEST_PROP(ExactRatio, ProductIsExactOrDoesNotFit, ()) {
    const ExactRatio a = *gen::ratio();
    const ExactRatio b = *gen::ratio();
    const Big num = big(a.num()) * big(b.num());
    const Big den = big(a.den()) * big(b.den());
    const Big common = boost::multiprecision::gcd(num, den);
    const bool fits = num / common < pow2(64) && den / common < pow2(64);
    const std::optional<ExactRatio> made = product(a, b);
    RC_ASSERT(made.has_value() == fits);
    if (made) {
        RC_ASSERT(big(made->num()) == num / common);
        RC_ASSERT(big(made->den()) == den / common);
    }
}

/// (actual - wanted) / wanted in 2^-64, away from zero, saturated.
Big exact_error(ExactRatio actual, ExactRatio wanted) {
    const Big got = big(actual.num()) * big(wanted.den());
    const Big want = big(wanted.num()) * big(actual.den());
    const Big size = oracle::ceil_div(oracle::abs(got - want) * pow2(64), want);
    const Big limited = oracle::clamp(size, 0, pow2(127) - 1);
    return got < want ? Big{-limited} : limited;
}

TEST(RateError, Vectors) {
    struct Row {
        ExactRatio actual, wanted;
        i128 error;
    };
    const i128 one = 1;
    const Row rows[] = {
        {ratio(1, 1), ratio(1, 1), 0},
        // (2^32 - 1)/2^32 is 2^-32 low: 2^32 of 2^-64
        {ratio((one << 32) - 1, std::uint64_t{1} << 32), ratio(1, 1), -(one << 32)},
        // 1/3 of a third: 2/3 low, 2^64 * 2/3 = 12297829382473034410.67 away from zero
        {ratio(1, 9), ratio(1, 3), -static_cast<i128>(12'297'829'382'473'034'411U)},
        // double: +1
        {ratio(2, 1), ratio(1, 1), one << 64},
        // stopped: -1
        {ratio(0, 1), ratio(5, 7), -(one << 64)},
        // 2^64 - 1 times too fast: (2^64 - 2) * 2^64 is over the limit
        {ratio(kMax64, 1), ratio(1, 1), kErrorMax},
        // 2^63 times: (2^63 - 1) * 2^64 fits
        {ratio(std::uint64_t{1} << 63, 1), ratio(1, 1), ((one << 63) - 1) << 64},
        // the smallest there is: 1/(2^64 - 1) over 1/2^63... rounds up to at least 1
        {ratio(kMax64, kMax64 - 1), ratio(1, 1), 2},  // 2^64/(2^64 - 2) = 1.0...1
    };
    for (const Row& row : rows)
        EXPECT_TRUE(rate_error(row.actual, row.wanted) == RateError{row.error})
            << row.actual.num() << "/" << row.actual.den();
}

RC_GTEST_PROP(RateError, IsTheExactErrorRoundedAwayFromZero, ()) {
    const ExactRatio actual = *gen::ratio();
    const ExactRatio wanted = *gen::positive_ratio();
    RC_ASSERT(big_i128(rate_error(actual, wanted).two_pow_minus_64) == exact_error(actual, wanted));
}

TEST(CeilDrift, Vectors) {
    const auto drift = [](i128 error, std::uint64_t length) {
        return ceil_drift(RateError{error}, length);
    };
    const i128 one = 1;
    EXPECT_EQ(drift(0, kMax64), 0U);
    EXPECT_EQ(drift(1, 1), 1U);       // 2^-64 of one unit, up
    EXPECT_EQ(drift(-1, 1), 1U);      // the sign does not matter
    EXPECT_EQ(drift(1, kMax64), 1U);  // just below one
    EXPECT_EQ(drift(2, kMax64), 2U);  // just below two
    EXPECT_EQ(drift(one << 64, 7), 7U);
    EXPECT_EQ(drift((one << 64) + 1, 7), 8U);
    EXPECT_EQ(drift(one << 64, kDriftMax), kDriftMax);
    EXPECT_EQ(drift(one << 64, kDriftMax + 1), kDriftMax);  // saturated
    EXPECT_EQ(drift(kErrorMax, kMax64), kDriftMax);
    EXPECT_EQ(drift(-kErrorMax - 1, kMax64), kDriftMax);  // -2^127 has no positive twin
    EXPECT_EQ(drift(-kErrorMax - 1, 0), 0U);
    // pvclock's worst, 2^-31, over a day: 86400 * 10^9 / 2^31 = 40233.1 ns
    EXPECT_EQ(drift(one << 33, 86'400'000'000'000), 40'234U);
}

RC_GTEST_PROP(CeilDrift, IsTheCeilingSaturated, ()) {
    const auto error = static_cast<i128>(static_cast<u128>(*gen::u64()) << 64 | *gen::u64());
    const std::uint64_t length = *gen::u64();
    const Big exact = oracle::ceil_div(oracle::abs(big_i128(error)) * big(length), pow2(64));
    RC_ASSERT(big(ceil_drift(RateError{error}, length)) == oracle::clamp(exact, 0, pow2(63) - 1));
}

// What the number is for: over a length that the wanted rate counts, the actual rate is at most so
// far off, whatever the two rates are (unless that saturates).
RC_GTEST_PROP(CeilDrift, BoundsTheTrueDrift, ()) {
    const ExactRatio actual = *gen::ratio();
    const ExactRatio wanted = *gen::positive_ratio();
    const std::uint64_t length = *gen::u64();
    const std::uint64_t bound = ceil_drift(rate_error(actual, wanted), length);
    // |actual/wanted - 1| * length <= bound
    const Big got = big(actual.num()) * big(wanted.den());
    const Big want = big(wanted.num()) * big(actual.den());
    const Big off = oracle::abs(got - want) * big(length);
    RC_ASSERT(bound == kDriftMax || off <= big(bound) * want);
    // and not idle: at most two units over
    RC_ASSERT(bound == kDriftMax || big(bound) * want < off + 2 * want);
}

}  // namespace
}  // namespace continuo::time
