// L2 on L1 on L0: what each level's counter, frequency and kvmclock are, how a change beneath
// reaches the level above, and the four moves of S0.6. The sums stand beside the numbers.
#include "continuo/model/nested.h"

#include <array>

#include "continuo/machine/migration.h"
#include "continuo/model/guest_platform.h"
#include "continuo/model/kvm_machine.h"
#include "kvm_bed.h"

namespace continuo::model {
namespace {

using time::Count;
using time::HostCounter;
using time::kVmxFracBits;

constexpr std::uint64_t kOne = std::uint64_t{1} << 48;

Count<HostCounter> host_count(std::uint64_t raw) {
    return Count<HostCounter>::from_raw(raw);
}

KernelRules rules() {
    return KernelRules::linux(6, 12).with_scaling(kVmxFracBits);
}

/// The proposals of thread 000.
KernelRules proposed() {
    KernelRules with = rules();
    with.pvclock_vclock = true;
    with.change_notifier = true;
    return with;
}

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

/// L0, an L1 of two vCPUs whose kernel keeps time by `clocksource`, and an L2 of two vCPUs, vCPU i
/// on L1's vCPU i. L1 is made at counter 1000 s, its kernel boots 10 s later, L2 is made 10 s after
/// that.
struct Nest : KvmBed {
    Nest(GuestClocksource clocksource, const KernelRules& with, std::uint32_t khz = 2'000'000,
         std::uint32_t l1_khz = 0, std::uint32_t l2_khz = 0)
        : KvmBed{with, khz, l1_khz} {
        enter_all();
        sleep_s(10);
        kernel.emplace(*vm, with, clocksource);
        sleep_s(10);
        l2.emplace(*kernel, with, 0);
        if (l2_khz != 0) {
            EXPECT_TRUE(l2->set_vm_tsc_khz(l2_khz));
        }
        for (unsigned i = 0; i < 2; ++i) {
            EXPECT_TRUE(l2->create_vcpu());
            l2->vcpu_migrated(i, i);
        }
        enable_pages(*l2);
        kernel->attach(*l2);
        run_l2();
    }
    /// L2 on all of its vCPUs, through every level's entry.
    void run_l2() {
        for (int pass = 0; pass < 3; ++pass)
            for (unsigned i = 0; i < 2; ++i)
                if (!vm->in_guest(i) || !l2->in_guest(i)) kernel->enter(*l2, i);
    }
    bool l2_is_stable() const { return (l2->page(0).flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0; }
    /// What RDTSC in L2 gives: the processor has both maps in one.
    std::uint64_t rdtsc(unsigned vcpu) const {
        return combined_map(vm->tsc_map(vcpu), l2->tsc_map(vcpu), kVmxFracBits)
            .at(host_count(host.counter))
            .raw();
    }
    std::optional<GuestPlatform> kernel;
    std::optional<KvmVm> l2;
};

TEST(Nesting, AnL2OnTscIsWhatAGuestOfAHostIs) {
    Nest nest{GuestClocksource::kTsc, rules()};
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
        Nest nest{GuestClocksource::kKvmclock, proposal ? proposed() : rules()};
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
    Nest nest{GuestClocksource::kTsc, rules(), 3'499'912, 2'400'000, 1'000'000};
    EXPECT_EQ(nest.vm->vcpu(0).hw_khz, 2'399'999U);
    EXPECT_EQ(nest.kernel->tsc_khz(), 2'399'998U);
    EXPECT_EQ(nest.l2->tsc_map(0).ratio(), 117'281'338'030'555U);  // 2^48 * 10^6 / 2399998
    EXPECT_EQ(nest.l2->vcpu(0).hw_khz, 999'999U);
    const std::uint64_t before = nest.l2->guest_tsc(0);
    nest.sleep_s(1);
    EXPECT_EQ(nest.l2->guest_tsc(0) - before, 1'000'000'834U);
}

TEST(Nesting, AThirdLevelIsAsGood) {
    Nest nest{GuestClocksource::kTsc, rules()};
    GuestPlatform l2_kernel{*nest.l2, rules(), GuestClocksource::kTsc};
    nest.sleep_s(1);
    KvmVm l3{l2_kernel, rules(), 1};
    enable_pages(l3);
    enter_all(l3);
    nest.sleep_s(2);
    EXPECT_EQ(l3.guest_tsc(0), 2 * k2Ghz);
    EXPECT_EQ(KvmclockReader{l3}.read(0), 2 * kNs);
    EXPECT_TRUE(l3.masterclock());
}

// S0.4

TEST(ClocksourceChange, AtL0ReachesL2BeforeItsNextInstruction) {
    Nest nest{GuestClocksource::kKvmclock, proposed()};
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
    KernelRules with = rules();
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
        Nest nest{GuestClocksource::kTsc, proposal ? proposed() : rules()};
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
    Nest nest{GuestClocksource::kTsc, proposed()};
    nest.host.is_tsc_clocksource = false;
    nest.vm->clocksource_changed();
    nest.run_l2();
    EXPECT_FALSE(nest.vm->masterclock());
    EXPECT_TRUE(nest.l2->masterclock());
    EXPECT_FALSE(nest.kernel->look());
}

// S0.6. Policy freeze: the counter goes on from its value at the stop, so the seam is what is read
// at the resume instant less what was read at the stop.

struct Seam {
    std::int64_t believed = 0;  ///< by L1's arithmetic, one line after the other, ticks
    std::int64_t real = 0;      ///< by the processor's, from stop to resume
    bool scaled = false;        ///< the new host or L1 scales it
    bool holds = false;
};

KvmMachineHost named(std::uint8_t boot) {
    KvmMachineHost host;
    host.identity = {{boot}, "a level's boot"};
    return host;
}

/// Stops `from`, restores it as `to` by a plan, both as machines of their own hosts.
state::Plan restore(KvmVm& from, KvmVm& to, bool& holds) {
    KvmMachine source{from, named(1)};
    KvmMachine destination{to, named(2)};
    const auto record = machine::capture(source);
    EXPECT_TRUE(record) << record.error().message();
    const auto here = machine::destination_for(destination, *record);
    EXPECT_TRUE(here) << here.error().message();
    state::PlanOptions options;
    options.policy = state::Policy::kFreeze;
    options.clamp_gap = true;
    const auto plan = state::plan(*record, *here, options);
    EXPECT_TRUE(plan) << plan.error().front().message;
    const auto applied = machine::apply(destination, *plan);
    EXPECT_TRUE(applied) << applied.error().message();
    holds = machine::verify(destination, *plan, *applied)->holds();
    return *plan;
}

/// Moves nest's L2 into the L2 of another nest.
Seam move_l2(Nest& from, Nest& to) {
    from.sleep_s(3);
    const std::uint64_t believed = from.l2->guest_tsc(1);
    const std::uint64_t real = from.rdtsc(1);
    Seam seam;
    const auto plan = restore(*from.l2, *to.l2, seam.holds);
    // The resume instant is a value of L1's counter; L0's first one that gives it.
    const TscMap& l1 = to.vm->tsc_map(1);
    while (l1.at(host_count(to.host.counter)).raw() != plan.resume_at.raw())
        to.host.counter += 1;
    seam.believed = static_cast<std::int64_t>(to.l2->guest_tsc(1) - believed);
    seam.real = static_cast<std::int64_t>(to.rdtsc(1) - real);
    seam.scaled = to.l2->tsc_map(1).scales();
    return seam;
}

TEST(NestedMove, L2KeepsL1sFrequencyAndNeedsNoScaling) {
    // Both L1s run at 2.4 GHz, on hosts of 3.5 and of 3 GHz: to L2 nothing changes.
    Nest from{GuestClocksource::kTsc, rules(), 3'499'912, 2'400'000};
    Nest to{GuestClocksource::kTsc, rules(), 3'000'000, 2'400'000};
    EXPECT_EQ(from.l2->tsc_khz(0), 2'399'998U);
    EXPECT_EQ(to.l2->tsc_khz(0), 2'399'998U);
    const Seam seam = move_l2(from, to);
    EXPECT_FALSE(seam.scaled);
    EXPECT_TRUE(seam.holds);
    EXPECT_EQ(seam.believed, 0);
    EXPECT_EQ(seam.real, 0) << "an unscaled L2's offset is added to L1's, exactly";
}

TEST(NestedMove, L2GoesToAnL1OfAnotherFrequency) {
    // L1 hands down 2 399 998 kHz; the new L1 has the host's 3 499 912 and scales. Its own offset,
    // -3 499 912 000 000, is scaled beside the counter, and -2 399 997 999 999.994 is cut to
    // ...999: 2447997959999.994 - 2399997999999 is a tick more than what the difference comes to.
    Nest from{GuestClocksource::kTsc, rules(), 3'000'000, 2'400'000};
    Nest to{GuestClocksource::kTsc, rules(), 3'499'912};
    const Seam seam = move_l2(from, to);
    EXPECT_TRUE(seam.scaled);
    EXPECT_TRUE(seam.holds);
    EXPECT_EQ(seam.believed, 0);
    EXPECT_EQ(seam.real, 1);
    EXPECT_EQ(to.l2->tsc_map(1).ratio(), 193'016'104'735'096U);  // 2^48 * 2399998 / 3499912
}

TEST(NestedMove, L2GoesToAPhysicalHost) {
    Nest from{GuestClocksource::kTsc, rules(), 3'499'912, 2'400'000, 1'000'000};
    from.sleep_s(3);
    const std::uint64_t stopped = from.l2->guest_tsc(1);
    const std::uint64_t real = from.rdtsc(1);
    KvmBed to{rules(), 3'000'000};
    bool holds = false;
    const auto plan = restore(*from.l2, *to.vm, holds);
    EXPECT_TRUE(holds);
    to.host.counter = plan.resume_at.raw();
    EXPECT_EQ(to.vm->guest_tsc(1), stopped);
    // What L2 really read at the stop was a tick more than what its L1 computed for the record:
    // 1023000852500.7 - 1000000833333 (of .6) - 20000016666, beside 23000019166.7 - 20000016666.
    EXPECT_EQ(stopped, 3'000'002'500U);
    EXPECT_EQ(static_cast<std::int64_t>(to.vm->guest_tsc(1) - real), -1);
    EXPECT_EQ(to.vm->tsc_map(1).ratio(), kOne / 3);  // 2^48 * 10^6 / (3 * 10^6)
    // kvmclock goes along: the page's line, to the ns.
    to.enter_all();
    KvmclockReader there{*to.vm};
    KvmclockReader here{*from.l2};
    EXPECT_EQ(there.read(1), here.read(1));
}

/// L1 is moved with a live L2 inside: its memory, with its kernel and L2's VM, goes along.
struct MovedNest {
    MovedNest(Nest& nest, HostPlatform& host, const KernelRules& with, std::uint32_t khz) {
        l1.emplace(host, with, 0);
        EXPECT_TRUE(l1->set_vm_tsc_khz(khz));
        for (unsigned i = 0; i < 2; ++i)
            EXPECT_TRUE(l1->create_vcpu());
        enable_pages(*l1);
        for (unsigned i = 0; i < 2; ++i) {
            nest.l2->exit(i);
            nest.vm->exit(i);
        }
        plan.emplace(restore(*nest.vm, *l1, holds));
        nest.kernel->rebind(*l1);
        host.counter = plan->resume_at.raw();
    }
    std::optional<KvmVm> l1;
    std::optional<state::Plan> plan;
    bool holds = false;
};

TEST(NestedMove, L1GoesWithALiveL2Inside) {
    Nest nest{GuestClocksource::kTsc, rules(), 3'499'912, 2'400'000, 1'000'000};
    nest.sleep_s(30);
    const std::uint64_t l1_tsc = nest.vm->guest_tsc(1);
    const std::uint64_t l2_tsc = nest.l2->guest_tsc(1);
    const std::uint64_t real = nest.rdtsc(1);
    const auto l2_ns = KvmclockReader{*nest.l2}.read(1);
    HostPlatform host{3'000'000};
    host.counter = 5'000'000'000'000;
    MovedNest moved{nest, host, rules(), 2'400'000};
    EXPECT_TRUE(moved.holds);
    // The freeze goes down: L1's counter stands, so L2's does, and L2's page is a line of that.
    EXPECT_EQ(moved.l1->guest_tsc(1), l1_tsc);
    EXPECT_EQ(nest.l2->guest_tsc(1), l2_tsc);
    EXPECT_EQ(KvmclockReader{*nest.l2}.read(1), l2_ns);
    const std::uint64_t there = combined_map(moved.l1->tsc_map(1), nest.l2->tsc_map(1), 48)
                                    .at(host_count(host.counter))
                                    .raw();
    EXPECT_EQ(there, real) << "a tick above the line of both levels, here as there";
    EXPECT_EQ(real, l2_tsc + 1);
    // L2's next masterclock sample finds the line where it was: L1's raw clock is a line of L1's
    // counter too.
    moved.l1->enter(1);
    abi::kvm_clock_data clock = nest.l2->get_clock();
    EXPECT_EQ(clock.flags & abi::kKVM_CLOCK_TSC_STABLE, abi::kKVM_CLOCK_TSC_STABLE);
}

TEST(NestedMove, ANewFrequencyGoesDownWithTheNotifier) {
    // The new host is 200 ppm faster, does not scale, and KVM calls that the same frequency: L1's
    // counter, which its kernel and L2 took for 3 499 912 kHz, runs at 3 500 612. L1's page says
    // so.
    for (const bool told : {false, true}) {
        KernelRules with = proposed();
        with.scaling_frac_bits.reset();
        with.change_notifier = told;
        Nest nest{GuestClocksource::kKvmclock, with, 3'499'912};
        HostPlatform host{3'500'612};
        host.counter = 5'000'000'000'000;
        MovedNest moved{nest, host, with, 3'499'912};
        EXPECT_EQ(nest.kernel->tsc_khz(), 3'499'912U);
        for (unsigned i = 0; i < 2; ++i)
            nest.kernel->enter(*nest.l2, i);
        EXPECT_EQ(nest.kernel->tsc_khz(), told ? 3'500'612U : 3'499'912U);
        for (unsigned i = 0; i < 2; ++i)
            nest.kernel->enter(*nest.l2, i);
        KvmclockReader l2{*nest.l2};
        const auto before = l2.read(1);
        host.counter += std::uint64_t{10} * 3'500'612'000;
        const auto passed = *l2.read(1) - *before;
        EXPECT_EQ(passed, told ? 9'999'999'999U : 10'002'000'049U) << "200 ppm too fast";
    }
}

}  // namespace
}  // namespace continuo::model
