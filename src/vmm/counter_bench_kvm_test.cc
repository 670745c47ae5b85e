// The counter benchmark on a real /dev/kvm.
#include <gtest/gtest.h>

#include <algorithm>

#include "continuo/vmm/counter_bench.h"

namespace continuo::vmm {
namespace {

constexpr std::uint64_t kReads = 250;  // not a multiple of a batch: 3 batches
constexpr std::uint64_t kBatches = 3;

class CounterBenchOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto system = kvm::System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        system_.emplace(std::move(*system));
    }

    state::Result<CounterBench> run(CounterBenchOptions options = {}) {
        options.reads = kReads;
        return run_counter_bench(*system_, options);
    }

    std::optional<kvm::System> system_;
};

TEST_F(CounterBenchOnKvm, KeepsEverySample) {
    const auto bench = run();
    ASSERT_TRUE(bench) << bench.error().message();
    EXPECT_FALSE(bench->host.empty());
    for (const CounterRead& read : bench->series) {
        SCOPED_TRACE(read.how);
        if (!read.cost) {
            EXPECT_EQ(read.cost.error().code, state::ErrorCode::kUnsupported)
                << read.cost.error().message();
            EXPECT_FALSE(read.cost.error().what.empty());
            continue;
        }
        EXPECT_EQ(read.cost->samples.count, kReads);
        EXPECT_EQ(read.cost->batches.count, kBatches);
        EXPECT_EQ(read.cost->backward, 0u);
        EXPECT_GT(read.cost->samples.sum, 0u);
        EXPECT_LE(read.cost->samples.median, read.cost->samples.p95);
    }
    // The first clock of every architecture can be read without help on every host.
    const auto native =
        std::find_if(bench->series.begin(), bench->series.end(),
                     [](const CounterRead& read) { return read.path == ReadPath::kNative; });
    ASSERT_NE(native, bench->series.end());
    EXPECT_TRUE(native->cost) << native->cost.error().message();
}

TEST_F(CounterBenchOnKvm, SaysWhichSeriesComes) {
    std::size_t told = 0;
    CounterBenchOptions options;
    options.progress = [&](std::string_view) { ++told; };
    const auto bench = run(options);
    ASSERT_TRUE(bench) << bench.error().message();
    EXPECT_EQ(told, bench->series.size() + 1);
}

TEST_F(CounterBenchOnKvm, RefusesReadsOutsideItsDomain) {
    for (const std::uint64_t reads : {std::uint64_t{0}, std::uint64_t{1'000'001}, UINT64_MAX}) {
        CounterBenchOptions options;
        options.reads = reads;
        const auto bench = run_counter_bench(*system_, options);
        ASSERT_FALSE(bench);
        EXPECT_EQ(bench.error().code, state::ErrorCode::kInvalidArgument);
    }
}

TEST_F(CounterBenchOnKvm, GivesUpAGuestThatStands) {
    CounterBenchOptions options;
    options.stall_limit_ms = 0;
    options.reads = 1'000'000;  // far more than the first look waits for
    const auto bench = run_counter_bench(*system_, options);
    // The run of instructions may be over at the first look; no series of reads is.
    if (!bench) {
        EXPECT_EQ(bench.error().code, state::ErrorCode::kTimeout);
        return;
    }
    for (const CounterRead& read : bench->series)
        EXPECT_FALSE(read.cost.has_value()) << read.how;
}

}  // namespace
}  // namespace continuo::vmm
