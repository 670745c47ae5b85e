// What the benchmark concludes from a guest's numbers, without a guest.
#include "continuo/vmm/counter_bench.h"

#include <gtest/gtest.h>

#include <functional>

#include "counter_bench_abi.h"

namespace continuo::vmm {
namespace {

using namespace counter_bench;

const time::Hz kGhz = *time::Hz::from_hz(1'000'000'000);
const time::Hz kSlow = *time::Hz::from_hz(62'500'000);  // ticks of 16 ns

/// What the guest would write if a run of `instructions` of mix `mix` took ticks(mix,
/// instructions), after `overhead` ticks for the two readings.
std::vector<std::uint64_t> runs(
    const std::function<std::uint64_t(std::size_t, std::uint64_t)>& ticks) {
    constexpr std::uint64_t overhead = 37;
    std::vector<std::uint64_t> words;
    for (std::size_t mix = 0; mix < kMixes; ++mix)
        for (const std::uint64_t turns : {kMixLoops, 2 * kMixLoops})
            for (std::uint32_t i = 0; i < kMixRepeats; ++i)
                words.push_back(overhead + ticks(mix, turns * kMixInstructions[mix]));
    return words;
}

InstructionClock clock_of(const std::vector<std::uint64_t>& words, time::Hz counter) {
    const auto clock = instruction_clock(words, counter);
    EXPECT_TRUE(clock) << clock.error().message();
    return clock ? *clock : InstructionClock{};
}

TEST(InstructionClock, IsSeenWhereEveryInstructionTakesTheSame) {
    for (unsigned shift = 0; shift <= 10; ++shift) {
        const auto at_1_ghz = runs([&](std::size_t, std::uint64_t n) { return n << shift; });
        EXPECT_EQ(clock_of(at_1_ghz, kGhz).shift, shift);
        const auto at_62_mhz =
            runs([&](std::size_t, std::uint64_t n) { return (n << shift) / 16; });
        EXPECT_EQ(clock_of(at_62_mhz, kSlow).shift, shift);
    }
}

TEST(InstructionClock, InterruptedRunsDoNotHideIt) {
    auto words = runs([](std::size_t, std::uint64_t n) { return n; });
    for (std::size_t i = 0; i < words.size(); ++i)
        if (i % kMixRepeats != 7) words[i] += 5'000 * (i % 3 + 1);
    const InstructionClock clock = clock_of(words, kGhz);
    EXPECT_EQ(clock.shift, 0u);
    EXPECT_EQ(clock.ticks[0], 20'000u);   // 10 000 turns of 2 instructions
    EXPECT_EQ(clock.ticks[1], 180'000u);  // of 18
    EXPECT_EQ(clock.ticks[2], 100'000u);  // of 10
}

TEST(InstructionClock, IsNotSeenOnAProcessor) {
    // An empty turn takes a cycle, 16 NOPs three, eight multiplications 24: at 3 GHz, in ticks of 1
    // GHz.
    constexpr std::array<std::uint64_t, kMixes> cycles{1, 3, 24};
    const auto processor = runs([&](std::size_t mix, std::uint64_t n) {
        return n / kMixInstructions[mix] * cycles[mix] / 3;
    });
    EXPECT_EQ(clock_of(processor, kGhz).shift, std::nullopt);
    // One kind of instruction 1 % slower than the others is enough.
    const auto nearly =
        runs([](std::size_t mix, std::uint64_t n) { return mix == 1 ? n + n / 100 : n; });
    EXPECT_EQ(clock_of(nearly, kGhz).shift, std::nullopt);
    // All alike, but no power of two.
    const auto thrice = runs([](std::size_t, std::uint64_t n) { return 3 * n; });
    EXPECT_EQ(clock_of(thrice, kGhz).shift, std::nullopt);
}

TEST(InstructionClock, RefusesWhatNoGuestWrites) {
    auto words = runs([](std::size_t, std::uint64_t n) { return n; });
    words.pop_back();
    EXPECT_EQ(instruction_clock(words, kGhz).error().code, state::ErrorCode::kGuest);
    const auto still = runs([](std::size_t, std::uint64_t) { return 0; });
    EXPECT_EQ(instruction_clock(still, kGhz).error().code, state::ErrorCode::kGuest);
    const auto jumped = runs([](std::size_t mix, std::uint64_t n) {
        return mix == 2 && n > kMixLoops * kMixInstructions[2] ? std::uint64_t{1} << 63 : n;
    });
    EXPECT_EQ(instruction_clock(jumped, kGhz).error().code, state::ErrorCode::kGuest);
}

TEST(InstructionClock, CountsByTheRateThatItSaw) {
    const auto slow = clock_of(runs([](std::size_t, std::uint64_t n) { return n / 16; }), kSlow);
    // 300 000 instructions took 18 750 ticks: 7 ticks of 100 reads are 112, 1.12 a read
    EXPECT_EQ(slow.nearest_milli_instructions(7, 100), 1120u);
    EXPECT_EQ(slow.nearest_milli_instructions(0, 100), 0u);
}

SampleStatistics batches_of(std::uint64_t median) {
    SampleStatistics out;
    out.count = 1;
    out.median = median;
    return out;
}

CounterRead series(std::string_view id, std::string_view nothing, std::uint64_t batch) {
    return {id, "TSC", "", ReadPath::kNative, nothing, ReadCost{{}, batches_of(batch), {}, 0}};
}

TEST(NetBatchTicks, TakesTheEmptyLoopOff) {
    CounterBench bench{{}, kGhz, 1, {}, {}};
    bench.series = {series("none", "none", 200), series("read", "none", 2'700),
                    series("quick", "none", 150), series("lost", "missing", 300)};
    EXPECT_EQ(net_batch_ticks(bench, bench.series[1]), 2'500u);
    EXPECT_EQ(net_batch_ticks(bench, bench.series[2]), 0u);
    EXPECT_EQ(net_batch_ticks(bench, bench.series[3]), std::nullopt);
    bench.series[0].cost = state::fail(state::ErrorCode::kGuest, "", "");
    EXPECT_EQ(net_batch_ticks(bench, bench.series[1]), std::nullopt);
}

}  // namespace
}  // namespace continuo::vmm
