// Moves of an L2, and of an L1 with an L2 inside (S0.1, S0.5, S0.6), and the contract of every
// machine on a VM that is an L2. The sums stand beside the numbers.
#include "continuo/machine/migration.h"
#include "continuo/model/kvm_machine.h"
#include "contract_tests.h"
#include "nest.h"

namespace continuo::model {
namespace {

using time::kVmxFracBits;

constexpr std::uint64_t kOne = std::uint64_t{1} << 48;

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
    Nest from{GuestClocksource::kTsc, scaling_rules(), 3'499'912, 2'400'000};
    Nest to{GuestClocksource::kTsc, scaling_rules(), 3'000'000, 2'400'000};
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
    Nest from{GuestClocksource::kTsc, scaling_rules(), 3'000'000, 2'400'000};
    Nest to{GuestClocksource::kTsc, scaling_rules(), 3'499'912};
    const Seam seam = move_l2(from, to);
    EXPECT_TRUE(seam.scaled);
    EXPECT_TRUE(seam.holds);
    EXPECT_EQ(seam.believed, 0);
    EXPECT_EQ(seam.real, 1);
    EXPECT_EQ(to.l2->tsc_map(1).ratio(), 193'016'104'735'096U);  // 2^48 * 2399998 / 3499912
}

TEST(NestedMove, L2GoesToAPhysicalHost) {
    Nest from{GuestClocksource::kTsc, scaling_rules(), 3'499'912, 2'400'000, 1'000'000};
    from.sleep_s(3);
    const std::uint64_t stopped = from.l2->guest_tsc(1);
    const std::uint64_t real = from.rdtsc(1);
    KvmBed to{scaling_rules(), 3'000'000};
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
    Nest nest{GuestClocksource::kTsc, scaling_rules(), 3'499'912, 2'400'000, 1'000'000};
    nest.sleep_s(30);
    const std::uint64_t l1_tsc = nest.vm->guest_tsc(1);
    const std::uint64_t l2_tsc = nest.l2->guest_tsc(1);
    const std::uint64_t real = nest.rdtsc(1);
    const auto l2_ns = KvmclockReader{*nest.l2}.read(1);
    HostPlatform host{3'000'000};
    host.counter = 5'000'000'000'000;
    MovedNest moved{nest, host, scaling_rules(), 2'400'000};
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
        KernelRules with = proposed_rules();
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

TEST(NestedMove, AnL1OnKvmclockHandsItsOwnSeamDownWithL2sNextSample) {
    // L2's masterclock is a line of L1's counter until its next sample, which is on L1's page.
    for (const std::int64_t l1_seam_ns : {0, -1500, 20'000}) {
        Nest nest{GuestClocksource::kKvmclock, proposed_rules(), 3'499'912, 2'400'000, 1'000'000};
        nest.sleep_s(30);
        const auto sample = [&] {  // a change that is none has one taken
            nest.kernel->set_clocksource(GuestClocksource::kKvmclock);
            nest.run_l2();
        };
        sample();
        const auto l1_ns = KvmclockReader{*nest.vm}.read(1);
        const auto l2_ns = KvmclockReader{*nest.l2}.read(1);
        HostPlatform host{3'000'000};
        host.counter = 5'000'000'000'000;
        MovedNest moved{nest, host, proposed_rules(), 2'400'000};
        auto clock = moved.l1->get_clock();
        clock.flags = 0;
        clock.clock = *l1_ns + static_cast<std::uint64_t>(l1_seam_ns);
        ASSERT_TRUE(moved.l1->set_clock(clock));
        for (unsigned i = 0; i < 2; ++i)
            nest.kernel->enter(*nest.l2, i);
        EXPECT_EQ(*KvmclockReader{*moved.l1}.read(1) - *l1_ns,
                  static_cast<std::uint64_t>(l1_seam_ns));
        EXPECT_EQ(KvmclockReader{*nest.l2}.read(1), l2_ns) << "not yet";
        // L1's own clocks are those of the VM it is now.
        const std::int64_t base_ns = nest.kernel->base_now_ns(0);
        EXPECT_EQ(base_ns - nest.kernel->base_ns(moved.l1->guest_tsc(0)), 0);
        host.counter += 30'000;
        EXPECT_EQ(nest.kernel->base_now_ns(0) - base_ns, 10'000);  // 30 000 ticks of 3 GHz
        host.counter -= 30'000;
        sample();
        EXPECT_EQ(*KvmclockReader{*nest.l2}.read(1) - *l2_ns,
                  static_cast<std::uint64_t>(l1_seam_ns));
    }
}

// S0.1: the six steps.

TEST(SixSteps, SetClocksUpdateIsCarriedOutBeforeTheNextEntry) {
    Nest from{GuestClocksource::kTsc, scaling_rules()};
    Nest to{GuestClocksource::kTsc, scaling_rules()};
    from.sleep_s(40);
    // stop_guest(), get_guest_state(), write_data_to_socket()
    for (unsigned i = 0; i < 2; ++i)
        from.l2->exit(i);
    const auto data = from.l2->get_clock();
    EXPECT_EQ(data.clock, 40 * kNs);
    // read_data_from_socket(), set_guest_state()
    for (unsigned i = 0; i < 2; ++i)
        to.l2->exit(i);
    abi::kvm_clock_data set{};
    set.clock = data.clock;
    ASSERT_TRUE(to.l2->set_clock(set));
    EXPECT_EQ(KvmclockReader{*to.l2}.read(0), 0U) << "the page still has the old line";
    EXPECT_NE(to.l2->pending(0) & kClockUpdate, 0);
    // resume_guest()
    to.run_l2();
    for (unsigned i = 0; i < 2; ++i) {
        EXPECT_EQ(KvmclockReader{*to.l2}.read(i), 40 * kNs);
        EXPECT_EQ(to.l2->pending(i), 0);
    }
}

// S0.5: another frequency, in an L1 that does not scale.

TEST(NestedFrequency, WithoutScalingALowerOneIsRefusedAndAHigherOneIsCaughtUpWith) {
    for (const bool masterclock : {false, true}) {
        Nest nest{masterclock ? GuestClocksource::kTsc : GuestClocksource::kOther,
                  KernelRules::linux(6, 12)};
        const auto enter_again = [&] {
            for (unsigned i = 0; i < 2; ++i)
                nest.l2->exit(i);
            nest.run_l2();
        };
        const Status lower = nest.l2->set_tsc_khz(0, 1'000'000);
        ASSERT_FALSE(lower);
        EXPECT_EQ(lower.error().code, state::ErrorCode::kKernel);
        for (unsigned i = 0; i < 2; ++i)
            ASSERT_TRUE(nest.l2->set_tsc_khz(i, 3'000'000));
        enter_again();
        nest.sleep_s(1);
        enter_again();
        // At each entry it is where 3 GHz would have it, and between two it runs at L1's 2 GHz.
        // With a masterclock it is held against the last sample's instant instead, and stays
        // behind.
        const std::uint64_t caught = masterclock ? 2 * kNs : 3 * kNs;
        EXPECT_EQ(nest.l2->guest_tsc(1), caught);
        nest.host.counter += k2Ghz / 100;
        EXPECT_EQ(nest.l2->guest_tsc(1), caught + 20'000'000);
        enter_again();
        EXPECT_EQ(nest.l2->guest_tsc(1), caught + (masterclock ? 20'000'000 : 30'000'000));
    }
}

// The contract of every machine, on an L2.

using machine::ContractFactory;
using machine::MachineContract;

class L2Subject final : public machine::ContractSubject {
  public:
    L2Subject(GuestClocksource clocksource, const KernelRules& with, std::uint32_t l1_khz,
              std::size_t vcpus)
        : host_{3'499'912}, l1_{host_, with, 0} {
        EXPECT_TRUE(l1_.set_vm_tsc_khz(l1_khz));
        EXPECT_TRUE(l1_.create_vcpu());
        enable_pages(l1_);
        enter_all(l1_);
        kernel_.emplace(l1_, with, clocksource);
        l2_.emplace(*kernel_, with, static_cast<unsigned>(vcpus));
        enable_pages(*l2_);
        enter_all(*l2_);
        for (unsigned i = 0; i < vcpus; ++i)
            l2_->exit(i);
        host_.take_time(&random_, 200);
        machine_.emplace(*l2_);
    }
    machine::Machine& machine() override { return *machine_; }
    void sleep_ns(std::uint64_t ns) override { host_.sleep_ns(ns); }

  private:
    Random random_{3};
    HostPlatform host_;
    KvmVm l1_;
    std::optional<GuestPlatform> kernel_;
    std::optional<KvmVm> l2_;
    std::optional<KvmMachine> machine_;
};

ContractFactory l2(std::string name, GuestClocksource clocksource, KernelRules with,
                   std::uint32_t l1_khz) {
    return {std::move(name), [=](std::size_t vcpus) {
                return std::make_unique<L2Subject>(clocksource, with, l1_khz, vcpus);
            }};
}

INSTANTIATE_TEST_SUITE_P(
    L2, MachineContract,
    testing::Values(l2("tsc", GuestClocksource::kTsc, scaling_rules(), 3'499'912),
                    l2("tsc_scaled", GuestClocksource::kTsc, scaling_rules(), 2'400'000),
                    l2("kvmclock", GuestClocksource::kKvmclock, scaling_rules(), 3'499'912),
                    l2("kvmclock_proposed", GuestClocksource::kKvmclock, proposed_rules(),
                       3'499'912),
                    l2("other", GuestClocksource::kOther, scaling_rules(), 3'499'912)),
    [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace continuo::model
