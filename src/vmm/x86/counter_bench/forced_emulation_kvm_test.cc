// Forced emulation: the parameter of the real module is as it was, whatever was measured.
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>

#include "continuo/vmm/counter_bench.h"
#include "forced_emulation.h"

namespace continuo::vmm {
namespace {

using counter_bench::ForcedEmulation;

std::string parameter() {
    std::ifstream file{"/sys/module/kvm/parameters/force_emulation_prefix"};
    std::string value;
    file >> value;
    return value;
}

bool sigint_waits() {
    sigset_t mask;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    return sigismember(&mask, SIGINT) == 1;
}

TEST(ForcedEmulation, IsPutBack) {
    const std::string before = parameter();
    {
        const auto forced = ForcedEmulation::switch_on(false);
        if (!forced) GTEST_SKIP() << forced.error().message();
        EXPECT_NE(parameter(), "0");
        EXPECT_EQ(sigint_waits(), before == "0");
    }
    EXPECT_EQ(parameter(), before);
    EXPECT_FALSE(sigint_waits());
}

TEST(ForcedEmulation, IsLeftAloneWhereItIsToBeKept) {
    const std::string before = parameter();
    if (before != "0") GTEST_SKIP() << "forced emulation is absent or on already: " << before;
    const auto kept = ForcedEmulation::switch_on(true);
    ASSERT_FALSE(kept);
    EXPECT_EQ(kept.error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(parameter(), before);
    EXPECT_FALSE(sigint_waits());
}

TEST(ForcedEmulation, MeasuresATrueExit) {
    const auto system = kvm::System::open();
    if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
    const std::string before = parameter();
    CounterBenchOptions options;
    options.reads = 100;
    const auto bench = run_counter_bench(*system, options);
    ASSERT_TRUE(bench) << bench.error().message();
    EXPECT_EQ(parameter(), before);
    for (const CounterRead& read : bench->series) {
        if (read.id != "tsc_forced") continue;
        if (!read.cost) GTEST_SKIP() << read.cost.error().message();
        ASSERT_TRUE(read.cost->exits);
        EXPECT_GE(*read.cost->exits, 200u);
        return;
    }
    FAIL() << "there is no such series";
}

TEST(TrappedReads, AllLeftTheGuest) {
    const auto system = kvm::System::open();
    if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
    CounterBenchOptions options;
    options.reads = 250;  // and 3 batches of 100
    const auto bench = run_counter_bench(*system, options);
    ASSERT_TRUE(bench) << bench.error().message();
    int counted = 0;
    for (const CounterRead& read : bench->series) {
        if (read.path != ReadPath::kTrapped || !read.cost || !read.cost->exits) continue;
        EXPECT_GE(*read.cost->exits, 550u) << read.how;
        ++counted;
    }
    if (counted == 0) GTEST_SKIP() << "this kernel counts no exits of trapped reads";
}

}  // namespace
}  // namespace continuo::vmm
