// What an arm64 host can be made to do, as the benchmark and the kernel say it.
#include <gtest/gtest.h>

#include <algorithm>

#include "continuo/kvm/vm.h"
#include "continuo/vmm/counter_bench.h"

namespace continuo::vmm {
namespace {

std::string fact(const CounterBench& bench, std::string_view id) {
    for (const HostFact& one : bench.host)
        if (one.id == id) return one.value;
    return {};
}

const CounterRead& series(const CounterBench& bench, std::string_view id) {
    return *std::find_if(bench.series.begin(), bench.series.end(),
                         [&](const CounterRead& read) { return read.id == id; });
}

class OffsetReads : public testing::Test {
  protected:
    void SetUp() override {
        auto system = kvm::System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        CounterBenchOptions options;
        options.reads = 100;
        auto bench = run_counter_bench(*system, options);
        ASSERT_TRUE(bench) << bench.error().message();
        bench_.emplace(std::move(*bench));
        const auto vm = kvm::Vm::create(*system);
        ASSERT_TRUE(vm) << vm.error().message();
        can_offset_ = vm->counter_offset().has_value();
    }

    std::optional<CounterBench> bench_;
    bool can_offset_ = false;
};

TEST_F(OffsetReads, TrapWhereTheProcessorHasNoOffset) {
    if (!can_offset_) GTEST_SKIP() << "this kernel has no KVM_ARM_SET_COUNTER_OFFSET";
    const std::string mode = fact(*bench_, "mode");
    if (fact(*bench_, "ecv") != "none" && mode.starts_with("VHE"))
        GTEST_SKIP() << "FEAT_ECV under VHE: " << fact(*bench_, "ecv");
    if (mode.starts_with("Protected")) GTEST_SKIP() << "the physical counter has no offset there";
    const CounterRead& trapped = series(*bench_, "physical_trapped");
    ASSERT_TRUE(trapped.cost) << trapped.cost.error().message();
    EXPECT_EQ(trapped.cost->samples.count, 100u);
}

TEST_F(OffsetReads, AreNotClaimedWithoutAnOffset) {
    if (can_offset_) GTEST_SKIP() << "this kernel has KVM_ARM_SET_COUNTER_OFFSET";
    EXPECT_FALSE(series(*bench_, "physical_trapped").cost);
    EXPECT_TRUE(series(*bench_, "physical").cost);
}

TEST_F(OffsetReads, TakeOneWayOrTheOther) {
    const bool trapped = series(*bench_, "physical_trapped").cost.has_value();
    const bool hardware = series(*bench_, "physical_cntpoff").cost.has_value();
    EXPECT_FALSE(trapped && hardware);
    EXPECT_FALSE(series(*bench_, "virtual_trapped").cost);
}

}  // namespace
}  // namespace continuo::vmm
