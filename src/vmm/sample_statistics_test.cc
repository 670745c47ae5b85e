// Statistics against integers without limit, and vectors worked out by hand.
#include "continuo/vmm/sample_statistics.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <boost/multiprecision/cpp_int.hpp>

namespace continuo::vmm {
namespace {

using boost::multiprecision::cpp_int;

SampleStatistics reduced(const std::vector<std::uint64_t>& samples) {
    auto out = reduce(samples);
    EXPECT_TRUE(out) << out.error().message();
    return out ? *out : SampleStatistics{};
}

TEST(SampleStatistics, AreThoseWorkedOutByHand) {
    // sum 40, mean 5; squares 4+16+16+16+25+25+49+81 = 232; 232/8 - 25 = 4, root 2
    const auto eight = reduced({9, 2, 4, 4, 5, 4, 5, 7});
    EXPECT_EQ(eight.sum, 40u);
    EXPECT_EQ(eight.sum_of_squares, 232u);
    EXPECT_EQ(eight.floor_milli_deviation(), 2000u);
    EXPECT_EQ(eight.min, 2u);
    EXPECT_EQ(eight.median, 4u);  // rank ceil(8 x 0.5) = 4 of 2 4 4 4 5 5 7 9
    EXPECT_EQ(eight.p95, 9u);     // rank ceil(7.6) = 8
    EXPECT_EQ(eight.max, 9u);
    // 1, 2: mean 1.5, deviation 0.5
    EXPECT_EQ(reduced({1, 2}).floor_milli_deviation(), 500u);
    // 0, 0, 1: variance 1/3 - 1/9 = 2/9, root 0.4714...
    EXPECT_EQ(reduced({0, 0, 1}).floor_milli_deviation(), 471u);
}

TEST(SampleStatistics, PercentilesAreByNearestRank) {
    std::vector<std::uint64_t> samples;
    for (std::uint64_t i = 1; i <= 10'000; ++i)
        samples.push_back(10'001 - i);
    const auto out = reduced(samples);
    EXPECT_EQ(out.p95, 9500u);
    EXPECT_EQ(out.median, 5000u);
    samples.resize(19);
    EXPECT_EQ(reduced(samples).p95, 10'000u);  // rank ceil(18.05) = 19: the largest
    samples.resize(1);
    EXPECT_EQ(reduced(samples).p95, 10'000u);
    EXPECT_EQ(reduced(samples).median, 10'000u);
}

TEST(SampleStatistics, KeepOneOutlierAmongMany) {
    std::vector<std::uint64_t> samples(9'999, 10);
    samples.push_back(kSampleLimit - 1);
    const auto out = reduced(samples);
    EXPECT_EQ(out.sum, 99'990 + kSampleLimit - 1);
    EXPECT_EQ(out.max, kSampleLimit - 1);
    EXPECT_EQ(out.p95, 10u);
    EXPECT_GT(out.floor_milli_deviation(), 10'000'000'000u);
}

TEST(SampleStatistics, HoldAtTheirLimits) {
    std::vector<std::uint64_t> samples(kSamplesMax, kSampleLimit - 1);
    EXPECT_EQ(reduced(samples).floor_milli_deviation(), 0u);
    for (std::size_t i = 0; i < samples.size(); i += 2)
        samples[i] = 0;
    // halves at 0 and at x = 2^40 - 1: deviation x / 2
    EXPECT_EQ(reduced(samples).floor_milli_deviation(), (kSampleLimit - 1) * 500);
}

TEST(SampleStatistics, RefuseWhatTheyCannotHold) {
    EXPECT_EQ(reduce({}).error().code, state::ErrorCode::kInvalidArgument);
    EXPECT_EQ(reduce(std::vector<std::uint64_t>(kSamplesMax + 1)).error().code,
              state::ErrorCode::kInvalidArgument);
    const auto jumped = reduce({1, 2, kSampleLimit});
    ASSERT_FALSE(jumped);
    EXPECT_EQ(jumped.error().code, state::ErrorCode::kTooLarge);
    EXPECT_EQ(jumped.error().where, "sample 2");
    for (const std::uint64_t sample : {std::uint64_t{1} << 63, ~std::uint64_t{0}})
        EXPECT_FALSE(reduce({sample}));
}

cpp_int big(time::u128 value) {
    return (cpp_int{static_cast<std::uint64_t>(value >> 64)} << 64) |
           static_cast<std::uint64_t>(value);
}

RC_GTEST_PROP(SampleStatistics, AgreeWithIntegersWithoutLimit, ()) {
    const auto limit = *rc::gen::element<std::uint64_t>(1, 3, 1000, 1ull << 31, kSampleLimit);
    const auto samples = *rc::gen::nonEmpty(
        rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(0, limit)));
    const auto out = reduce(samples);
    RC_ASSERT(out.has_value());
    cpp_int sum = 0;
    cpp_int squares = 0;
    for (const std::uint64_t sample : samples) {
        sum += sample;
        squares += cpp_int{sample} * sample;
    }
    const cpp_int count = samples.size();
    RC_ASSERT(sum == out->sum);
    RC_ASSERT(squares == big(out->sum_of_squares));
    const cpp_int deviation =
        sqrt(cpp_int{(squares * count - sum * sum) * 1'000'000 / (count * count)});
    RC_ASSERT(deviation == out->floor_milli_deviation());
    // Nearest rank, by its definition: the least sample with 95 % of all at or below it.
    const auto reaches = [&](std::uint64_t value) {
        const auto below = std::count_if(samples.begin(), samples.end(),
                                         [&](std::uint64_t sample) { return sample <= value; });
        return cpp_int{below} * 100 >= count * 95;
    };
    RC_ASSERT(reaches(out->p95));
    for (const std::uint64_t sample : samples)
        RC_ASSERT(sample >= out->p95 || !reaches(sample));
}

TEST(NearestPs, IsTheQuotientRoundedOnce) {
    const auto at = [](std::uint64_t hz) { return *time::Hz::from_hz(hz); };
    EXPECT_EQ(nearest_ps(3, 1, at(25'000'000)), 120'000u);
    EXPECT_EQ(nearest_ps(1, 1, at(62'500'000)), 16'000u);
    EXPECT_EQ(nearest_ps(1, 3, at(1'000'000'000)), 333u);
    EXPECT_EQ(nearest_ps(1, 2'000, at(1'000'000'000)), 1u);  // 0.5 ps: up
    EXPECT_EQ(nearest_ps(1, 2'001, at(1'000'000'000)), 0u);
    EXPECT_EQ(nearest_ps(0, 1, at(1)), 0u);
}

RC_GTEST_PROP(NearestPs, AgreesWithIntegersWithoutLimit,
              (std::uint32_t numerator, std::uint32_t factor)) {
    const auto denominator = *rc::gen::inRange<std::uint64_t>(1, 1ull << 31);
    const auto hz = *rc::gen::inRange<std::uint64_t>(1'000, 1ull << 34);
    const time::u128 ticks = static_cast<time::u128>(numerator) * (factor % 1024);
    const cpp_int divisor = cpp_int{denominator} * hz;
    const cpp_int wanted = (big(ticks) * 1'000'000'000'000 + divisor / 2) / divisor;
    RC_PRE(wanted < cpp_int{1} << 64);
    RC_ASSERT(wanted == nearest_ps(ticks, denominator, *time::Hz::from_hz(hz)));
}

TEST(FloorSqrt, BracketsItsArgument) {
    for (const time::u128 value :
         {time::u128{0}, time::u128{1}, time::u128{3}, time::u128{4}, time::u128{1} << 31,
          time::u128{1} << 32, time::u128{1} << 63, (time::u128{1} << 64) - 1, time::u128{1} << 64,
          ~time::u128{0}}) {
        const cpp_int root = floor_sqrt(value);
        EXPECT_LE(root * root, big(value));
        EXPECT_GT((root + 1) * (root + 1), big(value));
    }
}

}  // namespace
}  // namespace continuo::vmm
