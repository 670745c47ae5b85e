// L2 on L1 on L0: the processor's one map for both levels, what each level's counter, frequency and
// kvmclock are, and how a change beneath reaches the level above. The sums stand beside the
// numbers.
#include "continuo/model/nested.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "nest.h"

namespace continuo::model {
namespace {

using time::kVmxFracBits;

constexpr std::uint64_t kOne = std::uint64_t{1} << 48;

// The processor's one map for two levels.

TEST(CombinedMap, RoundsWhereOneLineAfterTheOtherDoesNot) {
    struct Row {
        std::uint64_t r1;
        std::int64_t o1;
        std::uint64_t r2;
        std::int64_t o2;
        std::uint64_t host;
        std::uint64_t ratio;
        std::int64_t offset;
        std::uint64_t combined;
        std::int64_t above;  // what one after the other gives more
    };
    // From a big-integer calculation of both ways.
    constexpr std::array rows{
        Row{140737488355328, -7, 140737488355328, 100, 29, 70368744177664, 97, 104U, -1},
        Row{193016265581984, -35184372088832, 117281289163310, 0, 277193030400000, 80423477502275,
            -14660161145413, 64539871854599U, 0},
        Row{193016265581984, -13, 117281289163310, 12345, 69998240000, 80423477502275, 12340,
            20000020673U, -1},
        Row{402117219962467, 140733193392692, 93824992236885, -1099511627776, 9071771904000000,
            134039073320821, 45811552836454, 4365811552836404U, 28},
        Row{80423443992493, 12345, 643371375338640, 35184372088832, 110373224832000000,
            183825014839983, 35184372117049, 72117470086401900U, 134},
        Row{80423443992493, -1, 188900966474565, 140733193392692, 12599683200000, 53973061743999,
            140733193392692, 143149193163810U, -2},
    };
    for (const Row& row : rows) {
        const TscMap l1{*time::VmxTscScale::from_ratio(row.r1), static_cast<std::uint64_t>(row.o1)};
        const TscMap l2{*time::VmxTscScale::from_ratio(row.r2), static_cast<std::uint64_t>(row.o2)};
        const TscMap both = combined_map(l1, l2, kVmxFracBits);
        EXPECT_EQ(both.ratio(), row.ratio);
        EXPECT_EQ(both.offset(), static_cast<std::uint64_t>(row.offset));
        EXPECT_EQ(both.at(host_count(row.host)).raw(), row.combined);
        EXPECT_EQ((chained(l1, l2, host_count(row.host)) - both.at(host_count(row.host))).raw(),
                  row.above);
    }
}

TEST(CombinedMap, AnL1WhoseCountIsBelowZeroBelievesSomethingElse) {
    // L1's counter is 2^64 - 3 and L1 takes half of that, 2^63 - 2, for L2's; to the processor L1's
    // offset is a signed number: 4/4 - trunc(5/2) = -1.
    const TscMap l1{*time::VmxTscScale::from_ratio(kOne / 2), 0 - std::uint64_t{5}};
    const TscMap l2{*time::VmxTscScale::from_ratio(kOne / 2), 0};
    EXPECT_EQ(chained(l1, l2, host_count(4)).raw(), (1ULL << 63) - 2);
    EXPECT_EQ(combined_map(l1, l2, kVmxFracBits).at(host_count(4)).raw(), 0 - std::uint64_t{1});
}

TEST(CombinedMap, AnUnscaledL2IsExact) {
    const TscMap l1{*time::VmxTscScale::from_ratio(0xabcd'ef01'2345), 0 - std::uint64_t{12345}};
    const TscMap l2{1ULL << 40};
    const TscMap both = combined_map(l1, l2, kVmxFracBits);
    EXPECT_EQ(both, l1.with_offset((1ULL << 40) - 12345));
    EXPECT_EQ(combined_map(l2, l1, kVmxFracBits).ratio(), l1.ratio());
    EXPECT_EQ(combined_map(l2, l2, kVmxFracBits), TscMap{1ULL << 41});
}

TEST(CombinedMap, IsWithinItsBoundForAnyMapsAndUptime) {
    Random random{7};
    std::int64_t least = 0;
    std::int64_t most = 0;
    for (int i = 0; i < 200'000; ++i) {
        const auto ratio = [&] {
            return static_cast<std::uint64_t>(random.between(1LL << 40, 1LL << 51));
        };
        const TscMap l1{*time::VmxTscScale::from_ratio(ratio()),
                        random.next() >> 4};  // a count > 0
        const TscMap l2{*time::VmxTscScale::from_ratio(ratio()), random.next()};
        const auto at = host_count(static_cast<std::uint64_t>(random.of_any_size(1LL << 56)));
        const TscMap both = combined_map(l1, l2, kVmxFracBits);
        const std::int64_t above = (chained(l1, l2, at) - both.at(at)).raw();
        ASSERT_LE(static_cast<std::uint64_t>(std::abs(above)), combined_bound_ticks(l2, at));
        least = std::min(least, above);
        most = std::max(most, above);
    }
    EXPECT_GT(most, 2) << "the multiplier's missing fraction shows at long uptimes";
    EXPECT_LT(least, -3) << "L1's fraction of a tick, times up to 8";
}

// Levels.

TEST(Nesting, AnL2OnTscIsWhatAGuestOfAHostIs) {
    Nest nest{GuestClocksource::kTsc, scaling_rules()};
    nest.sleep_s(7);
    KvmclockReader l2{*nest.l2};
    EXPECT_EQ(nest.kernel->tsc_khz(), 2'000'000U);
    EXPECT_TRUE(nest.l2->masterclock());
    EXPECT_EQ(nest.vm->guest_tsc(1), 27 * k2Ghz);
    EXPECT_EQ(nest.l2->guest_tsc(1), 7 * k2Ghz);
    EXPECT_EQ(nest.rdtsc(1), 7 * k2Ghz);
    EXPECT_EQ(l2.read(0), 7 * kNs);
    EXPECT_EQ(l2.read(1), 7 * kNs);
    EXPECT_EQ(nest.kernel->base_now_ns(0), static_cast<std::int64_t>(17 * kNs));
    EXPECT_EQ(nest.l2->get_clock().realtime, 1'700'000'000'000'000'000 + 17 * kNs);
}

TEST(Nesting, OnKvmclockL2HasAMasterclockByTheProposalAlone) {
    for (const bool proposal : {false, true}) {
        Nest nest{GuestClocksource::kKvmclock, proposal ? proposed_rules() : scaling_rules()};
        nest.sleep_s(7);
        EXPECT_EQ(nest.l2->masterclock(), proposal);
        EXPECT_EQ(nest.l2_is_stable(), proposal);
        const auto clock = nest.l2->get_clock();
        EXPECT_EQ((clock.flags & abi::kKVM_CLOCK_TSC_STABLE) != 0, proposal);
        EXPECT_EQ(clock.clock, 7 * kNs) << "right either way, as L1's own clock is";
        // Its sample is on L1's page, to the ns: 20 s of L1's kvmclock, 10 s of its kernel's clock.
        if (!proposal) continue;
        EXPECT_EQ(nest.l2->arch().master_kernel_ns, 10 * std::int64_t{kNs});
        EXPECT_EQ(nest.l2->arch().master_cycle_now, 20 * k2Ghz);
    }
}

TEST(Nesting, FrequenciesAndTheirErrorsAddUpOverTheLevels) {
    // L0 3 499 912 kHz, L1 2.4 GHz, L2 1 GHz, both scaled. L1's page is for
    // (3499912 * floor(2^48 * 2400000 / 3499912)) >> 48 = 2 399 999 kHz, of which its kernel
    // computes 2 399 998; so L2's "1 GHz" is 10^6 / 2399998 of a counter of 2.4 GHz: 834 ppb fast.
    Nest nest{GuestClocksource::kTsc, scaling_rules(), 3'499'912, 2'400'000, 1'000'000};
    EXPECT_EQ(nest.vm->vcpu(0).hw_khz, 2'399'999U);
    EXPECT_EQ(nest.kernel->tsc_khz(), 2'399'998U);
    EXPECT_EQ(nest.l2->tsc_map(0).ratio(), 117'281'338'030'555U);  // 2^48 * 10^6 / 2399998
    EXPECT_EQ(nest.l2->vcpu(0).hw_khz, 999'999U);
    const std::uint64_t before = nest.l2->guest_tsc(0);
    nest.sleep_s(1);
    EXPECT_EQ(nest.l2->guest_tsc(0) - before, 1'000'000'834U);
}

TEST(Nesting, AThirdLevelIsAsGood) {
    Nest nest{GuestClocksource::kTsc, scaling_rules()};
    GuestPlatform l2_kernel{*nest.l2, scaling_rules(), GuestClocksource::kTsc};
    nest.sleep_s(1);
    KvmVm l3{l2_kernel, scaling_rules(), 1};
    enable_pages(l3);
    enter_all(l3);
    nest.sleep_s(2);
    EXPECT_EQ(l3.guest_tsc(0), 2 * k2Ghz);
    EXPECT_EQ(KvmclockReader{l3}.read(0), 2 * kNs);
    EXPECT_TRUE(l3.masterclock());
}

// S0.2

TEST(Snapshot, IsEveryClockOfOneInstantAndOfOneClocksource) {
    // 3 499 912 kHz: L1's raw clock by its counter is 39 ppb fast of the page's ns.
    Nest nest{GuestClocksource::kTsc, scaling_rules(), 3'499'912};
    nest.kernel->slept_ns = 5'000;
    nest.sleep_s(10);
    const ClockSnapshot before = nest.kernel->snapshot(1);
    EXPECT_EQ(before.counter, nest.vm->guest_tsc(1));
    EXPECT_EQ(before.monotonic_ns, 20'000'000'789);  // 20 s by mult 4793611 / 2^24
    EXPECT_EQ(before.boot_ns, 20'000'005'789);
    EXPECT_EQ(before.realtime_ns, 1'700'000'020'000'000'789);
    EXPECT_EQ(nest.kernel->snapshot(1), before) << "the counter stands";

    // For 10 s L1 goes by its page, which counts 395 ns less than the counter's line would have:
    // what was copied by hand before, counter here and line there, is off by that afterwards, and
    // only the number of changes tells.
    nest.kernel->set_clocksource(GuestClocksource::kKvmclock);
    EXPECT_EQ(nest.kernel->snapshot(1).monotonic_ns, before.monotonic_ns);
    nest.sleep_s(10);
    nest.kernel->set_clocksource(GuestClocksource::kTsc);
    EXPECT_EQ(nest.kernel->base_ns(before.counter) - before.boot_ns, -395);
    const ClockSnapshot after = nest.kernel->snapshot(1);
    EXPECT_EQ(after.clocksource, before.clocksource);
    EXPECT_EQ(after.changes, before.changes + 2);
}

// S0.4

TEST(ClocksourceChange, AtL0ReachesL2BeforeItsNextInstruction) {
    Nest nest{GuestClocksource::kKvmclock, proposed_rules()};
    ASSERT_TRUE(nest.l2_is_stable());
    nest.host.is_tsc_clocksource = false;
    nest.vm->clocksource_changed();
    // Every L1 vCPU is out, and L2 with it. None comes back with a page of before.
    for (unsigned vcpu = 0; vcpu < 2; ++vcpu) {
        EXPECT_FALSE(nest.vm->in_guest(vcpu));
        ASSERT_TRUE(nest.kernel->enter(*nest.l2, vcpu));
        EXPECT_FALSE(has_stale_page(*nest.vm));
        EXPECT_FALSE(has_stale_page(*nest.l2));
        EXPECT_EQ(nest.l2->page(vcpu).flags, 0);
    }
    // And back: both masterclocks return.
    nest.host.is_tsc_clocksource = true;
    nest.vm->clocksource_changed();
    nest.run_l2();
    EXPECT_TRUE(nest.vm->masterclock());
    EXPECT_TRUE(nest.l2->masterclock());
    EXPECT_TRUE(nest.l2_is_stable());
}

TEST(ClocksourceChange, WithoutANotifierL2ReadsStalePagesUntilL1Ticks) {
    KernelRules with = scaling_rules();
    with.pvclock_vclock = true;
    Nest nest{GuestClocksource::kKvmclock, with};
    nest.host.is_tsc_clocksource = false;
    nest.vm->clocksource_changed();
    unsigned stale = 0;
    for (int ms = 0; ms < 10; ++ms) {
        if (ms == 4 && nest.kernel->look()) {  // L1's tick at 250 Hz
            for (unsigned vcpu = 0; vcpu < 2; ++vcpu)
                nest.l2->exit(vcpu);
        }
        for (unsigned vcpu = 0; vcpu < 2; ++vcpu) {
            nest.vm->exit(vcpu);
            ASSERT_TRUE(nest.kernel->enter(*nest.l2, vcpu));
        }
        if (has_stale_page(*nest.l2)) ++stale;
        nest.host.counter += k2Ghz / 1000;
    }
    EXPECT_EQ(stale, 4U) << "of 10 looks, 1 ms apart";
}

TEST(ClocksourceChange, InL1ReachesL2) {
    for (const bool proposal : {false, true}) {
        Nest nest{GuestClocksource::kTsc, proposal ? proposed_rules() : scaling_rules()};
        nest.sleep_s(5);
        nest.kernel->set_clocksource(GuestClocksource::kOther);
        EXPECT_EQ(has_stale_page(*nest.l2), !proposal) << "a vCPU in guest mode is not kicked";
        for (unsigned vcpu = 0; vcpu < 2; ++vcpu)
            nest.l2->exit(vcpu);
        nest.run_l2();
        EXPECT_FALSE(nest.l2->masterclock());
        EXPECT_FALSE(has_stale_page(*nest.l2));
        nest.sleep_s(5);
        KvmclockReader l2{*nest.l2};
        EXPECT_EQ(l2.read(0), 10 * kNs) << "L1's clocks went on where they were";
        nest.kernel->set_clocksource(GuestClocksource::kTsc);
        for (unsigned vcpu = 0; vcpu < 2; ++vcpu)
            nest.l2->exit(vcpu);
        nest.run_l2();
        EXPECT_EQ(nest.l2->masterclock(), proposal) << "nothing tells KVM that it may come back";
        EXPECT_EQ(l2.read(0), 10 * kNs);
    }
}

TEST(ClocksourceChange, AtL0IsNothingToAnL1OnTsc) {
    Nest nest{GuestClocksource::kTsc, proposed_rules()};
    nest.host.is_tsc_clocksource = false;
    nest.vm->clocksource_changed();
    nest.run_l2();
    EXPECT_FALSE(nest.vm->masterclock());
    EXPECT_TRUE(nest.l2->masterclock());
    EXPECT_FALSE(nest.kernel->look());
}

}  // namespace
}  // namespace continuo::model
