// What the world is made of: oscillators, the guest's timekeeper and readers, the notice, and the
// oracles' watch over order.
#include <gtest/gtest.h>

#include "continuo/sim/guest.h"
#include "continuo/sim/host.h"
#include "monitor.h"

namespace continuo::sim {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

TrueTime at_ns(std::int64_t ns) {
    return TrueTime{span_ns(ns)};
}

TEST(Oscillator, CountsWholeTicksOfItsTrueRate) {
    Oscillator quartz{at_ns(0), 100, 2'000'000'000'000};  // 2 GHz
    EXPECT_EQ(quartz.count(at_ns(0)), 100U);
    EXPECT_EQ(quartz.count(at_ns(1) - Span{1}), 101U);
    EXPECT_EQ(quartz.count(at_ns(1)), 102U);  // 1/8 tick a unit is exact
    EXPECT_EQ(quartz.count(at_ns(kSecond)), 100U + 2'000'000'000U);
    Oscillator third{at_ns(0), 0, 3'000'000'000'000};  // 3/16 tick a unit is not, by 2^-64
    EXPECT_EQ(third.count(at_ns(kSecond)), 3'000'000'000U);
}

TEST(Oscillator, FindsTheFirstInstantOfATick) {
    for (const std::uint64_t millihertz :
         {24'000'000'000ULL, 1'000'000'000'000ULL, 2'399'999'041'337ULL, 5'000'000'000'001ULL}) {
        Oscillator quartz{at_ns(5), ~std::uint64_t{0} - 10, millihertz};  // wraps soon
        for (const std::uint64_t ticks : {1ULL, 2ULL, 3ULL, 1'000'003ULL, 1ULL << 40}) {
            const std::uint64_t count = ~std::uint64_t{0} - 10 + ticks;
            const TrueTime at = quartz.time_of(count);
            EXPECT_EQ(quartz.count(at), count) << millihertz << " " << ticks;
            EXPECT_EQ(quartz.count(at - Span{1}), count - 1) << millihertz << " " << ticks;
        }
    }
}

TEST(Oscillator, AYearFitsAndAPartInAMillionIsHalfAMinute) {
    constexpr std::int64_t year = 365 * 86'400 * kSecond;
    Oscillator nominal{at_ns(0), 0, 3'000'000'000'000};
    Oscillator fast{at_ns(0), 0, 3'000'003'000'000};
    const std::uint64_t ahead = fast.count(at_ns(year)) - nominal.count(at_ns(year));
    EXPECT_NEAR(static_cast<double>(ahead) / 3e9, 31.536, 1e-3);
}

TEST(Oscillator, StandsStillJumpsAndGoesOnWithoutLosingAFraction) {
    Oscillator one{at_ns(0), 0, 2'399'999'041'337};
    Oscillator other = one;
    other.stop_for(at_ns(1'000), span_ns(777));
    EXPECT_EQ(other.count(at_ns(1'777)), one.count(at_ns(1'000)));
    EXPECT_EQ(other.count(at_ns(9'000'777)), one.count(at_ns(9'000'000)));
    other.jump(at_ns(9'000'777), 5);
    EXPECT_EQ(other.count(at_ns(9'000'778)), one.count(at_ns(9'000'001)) + 5);
}

TEST(Oscillator, WandersWithinItsLimitAndTheSameForTheSameSeed) {
    Oscillator one{at_ns(0), 0, 2'000'000'000'000};
    one.wander(span_ns(kSecond), Draw{-500, 500, false}, 1'000, 7);
    Oscillator other = one;
    const Oscillator still{at_ns(0), 0, 2'000'000'000'000};
    bool moved = false;
    for (std::int64_t s = 1; s < 500; ++s) {
        EXPECT_EQ(one.count(at_ns(s * kSecond)), other.count(at_ns(s * kSecond)));
        const auto off = static_cast<std::int64_t>(one.rate() - still.rate());
        const auto limit = static_cast<std::int64_t>(still.rate() / 1'000'000);  // 1000 ppb
        EXPECT_LE(off, limit);
        EXPECT_GE(off, -limit - 1);
        moved = moved || off != 0;
    }
    EXPECT_TRUE(moved);
    EXPECT_NE(one.count(at_ns(500 * 86'400 * kSecond)), 0U);  // a long gap is walked in few steps
}

TEST(Timekeeper, AnOldKernelsProductOverflowsAndANewOnesDoesNot) {
    Timekeeper keeper;
    const auto line = model::KernelLine::of_khz(2'000'000);
    keeper.mult = line.mult;
    keeper.shift = line.shift;
    constexpr std::uint64_t hour = 3'600ULL * 2'000'000'000;
    EXPECT_TRUE(keeper.beyond(hour));
    EXPECT_FALSE(keeper.beyond(600ULL * 2'000'000'000));
    EXPECT_NEAR(static_cast<double>(keeper.monotonic(hour)), 3.6e12, 1e6);
    keeper.clamps = false;
    EXPECT_LT(keeper.monotonic(hour), 3'000ULL * kSecond);  // 2^64 / mult ticks have vanished
}

TEST(Timekeeper, AccumulatingChangesNoReading) {
    Timekeeper keeper;
    keeper.mult = 8'388'613;
    keeper.shift = 24;
    Timekeeper often = keeper;
    for (std::uint64_t cycles = 1; cycles < 50'000'000; cycles += 999'983)
        often.accumulate(cycles, true);
    EXPECT_EQ(often.monotonic(60'000'001), keeper.monotonic(60'000'001));
    EXPECT_EQ(often.monotonic(often.cycle_last - 5), often.mono_ns);  // a counter that is behind
}

TEST(Timekeeper, WhatItSleptThroughIsRealtimesAlone) {
    Timekeeper keeper;
    keeper.mult = 1U << 24;
    keeper.shift = 24;
    keeper.to_real_ns = 500;
    keeper.suspend(1'000);
    keeper.resume(61'000);
    EXPECT_EQ(keeper.monotonic(61'000), 1'000U);
    EXPECT_EQ(keeper.monotonic(61'000) + keeper.to_real_ns, 61'500U);
}

abi::pvclock_vcpu_time_info page(std::uint64_t tsc, std::uint64_t ns, bool stable) {
    abi::pvclock_vcpu_time_info out{};
    out.version = 2;
    out.tsc_timestamp = tsc;
    out.system_time = ns;
    out.tsc_to_system_mul = 1U << 31;
    out.flags = stable ? abi::kPVCLOCK_TSC_STABLE_BIT : std::uint8_t{0};
    return out;
}

TEST(PvclockReader, WithoutTheStableBitNoReaderGoesBack) {
    Guest guest;
    ProbeSet probes = 0;
    EXPECT_EQ(guest.read_kvmclock(page(0, 1'000, false), 200, probes), 1'100U);
    EXPECT_EQ(guest.read_kvmclock(page(0, 900, false), 200, probes), 1'100U);
    EXPECT_EQ(probes, bit(Probe::kFallbackReader));
    EXPECT_EQ(guest.read_kvmclock(page(0, 900, true), 200, probes), 1'000U);
    Guest careless;
    careless.begin(GuestSpec{}, 2'000'000, Bug::kReaderWithoutFallback);
    EXPECT_EQ(careless.read_kvmclock(page(0, 1'000, false), 200, probes), 1'100U);
    EXPECT_EQ(careless.read_kvmclock(page(0, 900, false), 200, probes), 1'000U);
}

TEST(SchedClock, ADifferenceBelowZeroIsZero) {
    Guest guest;
    guest.start_sched_clock(1'000);
    EXPECT_EQ(guest.sched_clock(1'500), 500U);
    EXPECT_EQ(guest.sched_clock(999), 0U);
    Guest careless;
    careless.begin(GuestSpec{}, 2'000'000, Bug::kSchedClockUnderflow);
    careless.start_sched_clock(1'000);
    EXPECT_EQ(careless.sched_clock(999), ~std::uint64_t{0});
}

Guest told(Bug bug) {
    Guest guest;
    guest.begin(GuestSpec{}, 2'000'000, bug);
    guest.arm_timer();
    guest.notice.publish(700, 700, 1, guest.accounted_ns, bug);
    guest.notice.publish(50, 50, 3, guest.accounted_ns, bug);
    return guest;
}

TEST(Notice, ASecondOneBeforeTheFirstWasAnsweredLosesNothing) {
    Guest guest = told(Bug::kNone);
    EXPECT_FALSE(guest.read_realtime(0));
    EXPECT_TRUE(guest.answer_notice(Told::kDelta));
    EXPECT_EQ(guest.timekeeper.to_real_ns, 750U);
    EXPECT_EQ(guest.notice.sequence, 4U);
    EXPECT_TRUE(guest.read_realtime(0));
    EXPECT_TRUE(guest.ntp.unsync);
    EXPECT_EQ(guest.ntp.maxerror_ns, kNtpPhaseLimitNs);
    EXPECT_TRUE(guest.timer_cancelled);
    EXPECT_FALSE(guest.answer_notice(Told::kDelta));
    EXPECT_EQ(guest.timekeeper.to_real_ns, 750U);
}

TEST(Notice, EachBugIsOne) {
    Guest overwrites = told(Bug::kSecondNoticeOverwrites);
    overwrites.answer_notice(Told::kDelta);
    EXPECT_EQ(overwrites.timekeeper.to_real_ns, 50U);
    EXPECT_TRUE(told(Bug::kNoticeSequenceEven).read_realtime(0));
    Guest forgets = told(Bug::kAgentForgetsUnsync);
    forgets.answer_notice(Told::kDelta);
    EXPECT_FALSE(forgets.ntp.unsync);
    Guest leaves = told(Bug::kTimersNotCancelled);
    leaves.answer_notice(Told::kDelta);
    EXPECT_FALSE(leaves.timer_cancelled);
}

TEST(Notice, TakingTheGapOutOfMonotonicLeavesRealtime) {
    Guest guest;
    guest.begin(GuestSpec{}, 2'000'000, Bug::kNone);
    guest.timekeeper.mono_ns = 5'000;
    guest.timekeeper.to_real_ns = 100;
    guest.notice.publish(0, 3'000, 0, 0, Bug::kNone);
    EXPECT_TRUE(guest.answer_notice(Told::kFixMonotonic));
    EXPECT_EQ(guest.timekeeper.mono_ns, 2'000U);
    EXPECT_EQ(guest.timekeeper.to_real_ns, 3'100U);
}

class Order : public testing::Test {
  protected:
    void see(unsigned vcpu, std::uint64_t value, std::int64_t ns) {
        monitor.see(verdicts, vcpu, value, at_ns(ns), std::uint64_t{1} << 31);  // half a ns
    }
    OrderMonitor monitor{Invariant::kCounterPerVcpu, Invariant::kCounterAcrossVcpus, span_ns(20)};
    Verdicts verdicts;
};

TEST_F(Order, AStepBackOnOneVcpuIsBrokenByItsSize) {
    see(0, 1'000, 0);
    see(0, 1'000, 1);
    EXPECT_EQ(verdicts[Invariant::kCounterPerVcpu].outcome, Outcome::kKept);
    see(0, 700, 2);
    EXPECT_EQ(verdicts[Invariant::kCounterPerVcpu].by_ns, 150);
    EXPECT_EQ(verdicts[Invariant::kCounterPerVcpu].at, at_ns(2));
}

TEST_F(Order, TwoVcpusAreOrderedOnlyWhereTheReadingsAreApart) {
    see(0, 1'000, 0);
    see(1, 999, 19);
    EXPECT_TRUE(verdicts.kept(Invariant::kCounterAcrossVcpus));
    see(1, 999, 20);
    EXPECT_EQ(verdicts[Invariant::kCounterAcrossVcpus].by_ns, 1);  // half a ns, rounded up
    EXPECT_TRUE(verdicts.kept(Invariant::kCounterPerVcpu));
}

TEST_F(Order, GoesOverTheEndOf64Bits) {
    see(0, ~std::uint64_t{0}, 0);
    see(1, 4, 100);
    EXPECT_TRUE(verdicts.all_kept());
    see(0, 3, 200);
    EXPECT_FALSE(verdicts.kept(Invariant::kCounterAcrossVcpus));
}

TEST(Host, ItsClocksAreWhatTheScenarioSays) {
    WorldClock clock;
    clock.epoch_tai_ns = 1'000'000 * static_cast<std::uint64_t>(kSecond);
    HostSpec spec;
    spec.drift_ppb = Draw::of(50'000);
    spec.tai_error_ns = Draw::of(-3'000);
    Host host;
    Random random{1};
    host.begin(clock, spec, 0, random);
    clock.now = at_ns(kSecond);
    // 50 ppm fast: its TAI, disciplined, is not.
    EXPECT_NEAR(static_cast<double>(host.count_now()) - 1e12, 2'000'100'000.0, 2.0);
    EXPECT_NEAR(static_cast<double>(host.tai_error_ns()), -3'000.0, 1.0);
    host.ntp_step(7'000);
    EXPECT_NEAR(static_cast<double>(host.tai_error_ns()), 4'000.0, 1.0);
    const std::int64_t utc = host.realtime_now_ns(0);
    EXPECT_EQ(utc, static_cast<std::int64_t>(host.tai_now_ns()) - 37 * kSecond);
    clock.leap_at = clock.now;
    clock.leap_sec = 1;
    clock.now += span_ns(10'000);
    EXPECT_LT(host.realtime_now_ns(0), utc);
    const std::int64_t raw = host.base_now_ns(0);
    host.lose_clocksource();
    EXPECT_EQ(host.base_now_ns(0), raw);
    clock.now += span_ns(kSecond);
    EXPECT_EQ(host.base_now_ns(0), raw + kSecond);  // the hpet is true here
}

}  // namespace
}  // namespace continuo::sim
