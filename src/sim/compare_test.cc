// Tallies: buckets and their edges, quantiles, and that no order of adding or merging shows.
#include "continuo/sim/compare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "continuo/sim/claims.h"

namespace continuo::sim {
namespace {

TEST(Spread, ABucketHoldsWhatItsEdgeSays) {
    // 1000 = 2^9 * 1.95: bucket of [960, 1023], edge 1023.
    EXPECT_EQ(Spread::edge(Spread::bucket(1'000)), 1'023U);
    std::vector<std::uint64_t> values{0, 1, 15, 16, 17, 18, UINT64_MAX, UINT64_MAX - 1};
    for (unsigned bit = 1; bit < 64; ++bit)
        for (const int beyond : {-1, 0, 1})
            values.push_back((std::uint64_t{1} << bit) + static_cast<std::uint64_t>(beyond));
    for (const std::uint64_t value : values) {
        const std::size_t bucket = Spread::bucket(value);
        ASSERT_LT(bucket, Spread::kBuckets);
        EXPECT_LE(value, Spread::edge(bucket));
        if (bucket > 0) {
            EXPECT_GT(value, Spread::edge(bucket - 1));
        }
        EXPECT_LE(Spread::edge(bucket) - value, value / 8 + 1);
    }
}

TEST(Spread, Quantiles) {
    Spread spread;
    EXPECT_EQ(spread.median(), 0U);
    EXPECT_EQ(spread.min(), 0U);
    for (std::uint64_t value = 1; value <= 10; ++value)
        spread.add(value, {0, value});
    // The least value that half of them do not exceed: 5 of 10.
    EXPECT_EQ(spread.median(), 5U);
    EXPECT_EQ(spread.quantile(990), 10U);
    EXPECT_EQ(spread.quantile(1), 1U);
    EXPECT_EQ(spread.min(), 1U);
    EXPECT_EQ(spread.worst().run, (RunKey{0, 10}));
    // An edge beyond what was seen is never told.
    Spread one;
    one.add(1'000, {0, 1});
    EXPECT_EQ(one.median(), 1'000U);
}

TEST(Worst, OfTwoThatAreAsBadTheFirstIsNamed) {
    Worst worst;
    worst.add(7, {1, 5});
    worst.add(7, {0, 9});
    worst.add(7, {2, 1});
    worst.add(3, {0, 0});
    EXPECT_EQ(worst, (Worst{7, {0, 9}, true}));
    Worst other;
    other.merge(worst);
    other.merge(Worst{});
    EXPECT_EQ(other, worst);
}

/// A result as a run could give it; different for each seed.
RunResult result_of(std::uint64_t seed) {
    Random random{seed};
    RunResult out;
    out.ending = below(random, 4) == 0 ? Ending::kRefused : Ending::kMoved;
    out.seed = seed;
    out.hash = random.next();
    out.probes = random.next();
    out.tsc_skew_ns = static_cast<std::int64_t>(below(random, 1'000'000));
    out.lost_time_ns = static_cast<std::int64_t>(below(random, 2'000)) - 1'000;
    out.verdicts.hold(Invariant::kKvmclockMonotonic,
                      static_cast<std::int64_t>(below(random, 3)) - 1, TrueTime{});
    return out;
}

TEST(Tally, NoOrderOfAddingOrMergingShows) {
    std::vector<std::uint64_t> seeds(500);
    for (std::size_t i = 0; i < seeds.size(); ++i)
        seeds[i] = i;
    Tally in_order;
    for (const std::uint64_t seed : seeds)
        in_order.add(result_of(seed), 1, {2, seed});
    Random random{1};
    for (int round = 0; round < 10; ++round) {
        for (std::size_t i = seeds.size() - 1; i > 0; --i)
            std::swap(seeds[i], seeds[below(random, i + 1)]);
        std::array<Tally, 7> parts;
        for (const std::uint64_t seed : seeds)
            parts[below(random, parts.size())].add(result_of(seed), 1, {2, seed});
        Tally sum;
        for (const Tally& part : parts)
            sum.merge(part);
        EXPECT_EQ(sum, in_order);
    }
}

TEST(Tally, TheHashKnowsWhoseResultItIs) {
    const RunResult one = result_of(1);
    const RunResult two = result_of(2);
    Tally straight;
    straight.add(one, 0, {0, 1});
    straight.add(two, 0, {0, 2});
    Tally swapped;
    swapped.add(two, 0, {0, 1});
    swapped.add(one, 0, {0, 2});
    Tally other_strategy;
    other_strategy.add(one, 1, {0, 1});
    other_strategy.add(two, 1, {0, 2});
    EXPECT_NE(straight.hash, swapped.hash);
    EXPECT_NE(straight.hash, other_strategy.hash);
}

TEST(Tally, ARunThatWasGivenUpHasNoVerdict) {
    RunResult given_up = result_of(3);
    given_up.ending = Ending::kLimit;
    Tally tally;
    tally.add(given_up, 0, {});
    EXPECT_EQ(tally.limit, 1U);
    EXPECT_EQ(tally.of(Quantity::kTscSkew).count(), 0U);
    EXPECT_EQ(tally.of(Invariant::kKvmclockMonotonic).checked, 0U);
}

TEST(Quantity, BothSidesOfLostTime) {
    RunResult result;
    result.lost_time_ns = -5;
    EXPECT_EQ(quantity_of(result, Quantity::kLostTime), 0U);
    EXPECT_EQ(quantity_of(result, Quantity::kTimeAhead), 5U);
    result.lost_time_ns = INT64_MIN;
    EXPECT_EQ(quantity_of(result, Quantity::kTimeAhead), std::uint64_t{1} << 63);
    result.tsc_seam_ns = INT64_MIN;
    EXPECT_EQ(quantity_of(result, Quantity::kTscSeam), std::uint64_t{1} << 63);
}

TEST(Work, PiecesAreAllRunsAndEachOnce) {
    const auto scenario = parse_scenario("name = \"x\"\n[[host]]\n[[host]]\n[[move]]\n", "x");
    ASSERT_TRUE(scenario.has_value());
    const auto strategies = all_strategies();
    Work work{{*scenario}, {strategies.begin(), strategies.begin() + 2}, {5, 5 + 130}};
    // 131 seeds in pieces of 64: three for each of the two strategies.
    EXPECT_EQ(work.pieces(), 6U);
    const Comparison one = compare(work, 1);
    const Comparison three = compare(work, 3);
    EXPECT_EQ(one.tallies, three.tallies);
    EXPECT_EQ(one.tallies.runs(), 262U);
    const std::vector<RunResult> each = run_each(work, 2);
    ASSERT_EQ(each.size(), 262U);
    Tally first;
    for (std::size_t i = 0; i < 131; ++i) {
        EXPECT_EQ(each[i].seed, 5 + i);
        first.add(each[i], 0, {0, each[i].seed});
    }
    EXPECT_EQ(first, one.tallies.at(0, 0));
}

TEST(Claims, AreNamedOnceAndComplete) {
    std::vector<std::string_view> names;
    for (const Claim& claim : claims()) {
        names.emplace_back(claim.name);
        EXPECT_TRUE(claim.decide != nullptr);
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
    EXPECT_GE(names.size(), 50U);
}

}  // namespace
}  // namespace continuo::sim
