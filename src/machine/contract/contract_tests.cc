#include "contract_tests.h"

#include <array>
#include <limits>

namespace continuo::machine {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MachineContract);

namespace {

using state::Plan;
using state::PlanOptions;
using state::Policy;
using state::Record;
using time::Ticks;

#define SKIP_UNLESS(condition, reason) \
    if (!(condition)) GTEST_SKIP() << "this host: " << (reason)

constexpr const char* kNotOfX86 = "kvmclock and IA32_TSC_ADJUST are x86-64's";

/// Ticks of a host bracket, as guest ticks are at most twice as fast in these tests.
std::uint64_t width(Count<HostCounter> before, Count<HostCounter> after) {
    return (after - before).magnitude();
}

/// value is on map somewhere between before and after.
testing::AssertionResult inside(const TscMap& map, const BracketedTsc& read) {
    const Ticks<GuestCounter> low = read.value - map.at(read.before);
    const Ticks<GuestCounter> high = map.at(read.after) - read.value;
    if (low.raw() >= 0 && high.raw() >= 0) return testing::AssertionSuccess();
    return testing::AssertionFailure()
           << "read " << low.raw() << " ticks after its bracket opened and " << high.raw()
           << " before it closed";
}

Plan plan_for(Machine& machine, const Record& record, Policy policy) {
    const auto destination = destination_for(machine, record);
    EXPECT_TRUE(destination) << destination.error().message();
    PlanOptions options;
    options.policy = policy;
    const auto plan = state::plan(record, *destination, options);
    EXPECT_TRUE(plan) << (plan ? "" : plan.error().front().message);
    return *plan;
}

}  // namespace

TEST_P(MachineContract, NowNeverGoesBack) {
    Count<HostCounter> last = machine().now();
    for (int i = 0; i < 1000; ++i) {
        const Count<HostCounter> next = machine().now();
        ASSERT_GE((next - last).raw(), 0);
        last = next;
    }
}

TEST_P(MachineContract, AnchorLiesBetweenTheReadingsAroundIt) {
    const Count<HostCounter> before = machine().now();
    const auto anchor = machine().anchor();
    const Count<HostCounter> after = machine().now();
    ASSERT_TRUE(anchor) << anchor.error().message();
    EXPECT_GE((anchor->counter - before).raw(), 0);
    EXPECT_GE((after - anchor->counter).raw(), 0);
}

TEST_P(MachineContract, TwoAnchorsAgreeWithinTheirBounds) {
    const auto first = machine().anchor();
    subject_->sleep_ns(2'000'000);
    const auto second = machine().anchor();
    ASSERT_TRUE(first && second);
    const auto line = time::clock_line(first->counter, first->tai, facts_.counter_frequency);
    const std::uint64_t apart = (second->tai - line.at(second->counter)).magnitude();
    // 2 ms at 500 ppm of slew is 1 us; the bounds hold the brackets.
    EXPECT_LE(apart, first->tai_bound_ns + second->tai_bound_ns + 1'001);
}

TEST_P(MachineContract, AnUnknownVcpuIsAnErrorAndNothingElse) {
    EXPECT_FALSE(machine().vcpu_state(kVcpus));
    EXPECT_FALSE(machine().tsc_map(kVcpus));
    EXPECT_FALSE(machine().set_tsc_offset(kVcpus, 0));
    EXPECT_FALSE(machine().set_tsc_adjust(std::numeric_limits<std::size_t>::max(), 0));
    EXPECT_FALSE(machine().read_tsc_by_value(kVcpus));
    EXPECT_FALSE(machine().pvclock_page(kVcpus));
    EXPECT_FALSE(machine().signal_guest_stopped(kVcpus));
    EXPECT_FALSE(machine().write_tsc_by_value(kVcpus, Count<GuestCounter>{}));
}

TEST_P(MachineContract, TheMapIsWhatTheGuestReads) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto map = machine().tsc_map(vcpu);
        ASSERT_TRUE(map) << map.error().message();
        const auto read = machine().read_tsc_by_value(vcpu);
        ASSERT_TRUE(read) << read.error().message();
        EXPECT_TRUE(inside(*map, *read)) << "vCPU " << vcpu;
    }
}

TEST_P(MachineContract, EveryOffsetReadsBackAndMovesTheGuest) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    constexpr std::array<std::uint64_t, 9> offsets{
        0,          1,         1U << 31, 1ULL << 32,        (1ULL << 63) - 1,
        1ULL << 63, ~0ULL - 1, ~0ULL,    0x123456789abcdef0};
    for (const std::uint64_t offset : offsets) {
        ASSERT_TRUE(machine().set_tsc_offset(1, offset));
        const auto map = machine().tsc_map(1);
        ASSERT_TRUE(map);
        EXPECT_EQ(map->offset(), offset);
        const auto read = machine().read_tsc_by_value(1);
        ASSERT_TRUE(read);
        EXPECT_TRUE(inside(*map, *read)) << "offset " << offset;
    }
}

TEST_P(MachineContract, AnOffsetIsIdempotentUnderAnyDelay) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    for (const std::uint64_t delay_ns : {0ULL, 1'000ULL, 3'000'000ULL}) {
        ASSERT_TRUE(machine().set_tsc_offset(2, 0x1234'5678'9abc));
        subject_->sleep_ns(delay_ns);
        ASSERT_TRUE(machine().set_tsc_offset(2, 0x1234'5678'9abc));
        EXPECT_EQ(machine().tsc_map(2)->offset(), 0x1234'5678'9abcU);
    }
}

TEST_P(MachineContract, TscAdjustReadsBackAndMovesNoCounter) {
    SKIP_UNLESS(x86(), kNotOfX86);
    SKIP_UNLESS(!lacks(state::Quirk::kNoTscAdjust), "IA32_TSC_ADJUST cannot be written");
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    const auto before = machine().tsc_map(0);
    ASSERT_TRUE(before);
    for (const std::int64_t value : {std::int64_t{-5}, std::int64_t{1} << 40, std::int64_t{0}}) {
        ASSERT_TRUE(machine().set_tsc_adjust(0, value));
        const auto state = machine().vcpu_state(0);
        ASSERT_TRUE(state);
        EXPECT_EQ(state->tsc_adjust, value);
        EXPECT_EQ(machine().tsc_map(0), *before);
    }
}

TEST_P(MachineContract, AValueWrittenIsOnItsLineWithinTheBrackets) {
    SKIP_UNLESS(value_works(), "host writes of IA32_TSC have no effect");
    // Far from the value that the vCPU has, so that no synchronisation heuristic takes the write
    // for its own.
    const auto value = Count<GuestCounter>::from_raw(0x0100'0000'0000'0000);
    const auto bracket = machine().write_tsc_by_value(3, value);
    ASSERT_TRUE(bracket) << bracket.error().message();
    const auto read = machine().read_tsc_by_value(3);
    ASSERT_TRUE(read);
    const Ticks<GuestCounter> passed = read->value - value;
    EXPECT_GE(passed.raw(), 0);
    EXPECT_LE(passed.magnitude(), 2 * width(bracket->before, read->after));
}

TEST_P(MachineContract, KvmclockIsALineOfTheHostCounter) {
    SKIP_UNLESS(x86(), kNotOfX86);
    const auto first = machine().kvmclock();
    ASSERT_TRUE(first) << first.error().message();
    SKIP_UNLESS(first->host, "KVM_GET_CLOCK gives no host counter");
    subject_->sleep_ns(1'000'000);
    const auto second = machine().kvmclock();
    ASSERT_TRUE(second && second->host);
    const auto line = time::clock_line(*first->host, first->clock, facts_.counter_frequency);
    // One masterclock update in between may move it by the kernel's rounding; 1 us is far above
    // that.
    EXPECT_LE((second->clock - line.at(*second->host)).magnitude(), 1'000U);
}

TEST_P(MachineContract, KvmclockSetIsReachedDuringTheCall) {
    SKIP_UNLESS(x86(), kNotOfX86);
    const auto wanted = Instant<Kvmclock>::from_raw(1ULL << 50);
    const Count<HostCounter> before = machine().now();
    ASSERT_TRUE(machine().set_kvmclock(wanted));
    const auto reading = machine().kvmclock();
    const Count<HostCounter> after = machine().now();
    ASSERT_TRUE(reading);
    const auto spent = time::clock_line(before, Instant<Kvmclock>{}, facts_.counter_frequency);
    EXPECT_GE((reading->clock - wanted).raw(), 0);
    EXPECT_LE(static_cast<std::uint64_t>((reading->clock - wanted).raw()),
              spent.ceil_at(after).raw() + 1);
}

TEST_P(MachineContract, CaptureTwiceGivesTheSameLines) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    const auto first = capture(machine());
    subject_->sleep_ns(1'000'000);
    const auto second = capture(machine());
    ASSERT_TRUE(first && second);
    const auto first_at = time::same_boot_counter(first->anchor.counter);
    const auto second_at = time::same_boot_counter(second->anchor.counter);
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto map = machine().tsc_map(vcpu);
        ASSERT_TRUE(map);
        EXPECT_EQ(first->vcpus[vcpu].counter, map->at(first_at));
        EXPECT_EQ(second->vcpus[vcpu].counter, map->at(second_at));
        EXPECT_EQ(first->vcpus[vcpu].tsc_offset, second->vcpus[vcpu].tsc_offset);
        EXPECT_EQ(first->vcpus[vcpu].counter_bound_ticks, 0U);
    }
}

TEST_P(MachineContract, AdvanceOnOneHostHasNoSeam) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    const auto record = capture(machine());
    ASSERT_TRUE(record) << record.error().message();
    subject_->sleep_ns(5'000'000);
    const Plan plan = plan_for(machine(), *record, Policy::kAdvance);
    const auto applied = apply(machine(), plan);
    ASSERT_TRUE(applied) << applied.error().message();
    const auto certificate = verify(machine(), plan, *applied);
    ASSERT_TRUE(certificate) << certificate.error().message();
    EXPECT_TRUE(certificate->holds());
    for (const auto& clock : certificate->clocks)
        if (clock.clock == state::ClockKind::kTsc) {
            EXPECT_EQ(clock.seam, 0) << "vCPU " << *clock.vcpu;
        }
    // The same maps as before: on one boot an advancing plan changes no offset.
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu)
        EXPECT_EQ(applied->maps[vcpu].offset(), record->vcpus[vcpu].tsc_offset);
}

TEST_P(MachineContract, FreezeGoesOnFromTheValueAtTheStop) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    const auto record = capture(machine());
    ASSERT_TRUE(record);
    subject_->sleep_ns(5'000'000);
    const Plan plan = plan_for(machine(), *record, Policy::kFreeze);
    const auto applied = apply(machine(), plan);
    ASSERT_TRUE(applied) << applied.error().message();
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu)
        EXPECT_EQ(applied->maps[vcpu].at(plan.resume_at), record->vcpus[vcpu].counter);
    const auto certificate = verify(machine(), plan, *applied);
    ASSERT_TRUE(certificate);
    EXPECT_TRUE(certificate->holds());
}

TEST_P(MachineContract, ApplyingTwiceChangesNothing) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    const auto record = capture(machine());
    ASSERT_TRUE(record);
    const Plan plan = plan_for(machine(), *record, Policy::kFreeze);
    const auto first = apply(machine(), plan);
    subject_->sleep_ns(4'000'000);
    const auto second = apply(machine(), plan);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->maps, second->maps);
    const auto certificate = verify(machine(), plan, *second);
    ASSERT_TRUE(certificate);
    EXPECT_TRUE(certificate->holds());
}

TEST_P(MachineContract, KvmclockIsTrimmedToItsTarget) {
    const auto record = capture(machine());
    ASSERT_TRUE(record);
    SKIP_UNLESS(record->kvmclock, "no kvmclock");
    SKIP_UNLESS(!lacks(state::Quirk::kNoClockTriple), "KVM_GET_CLOCK gives no host counter");
    const Plan plan = plan_for(machine(), *record, Policy::kAdvance);
    const auto applied = apply(machine(), plan);
    ASSERT_TRUE(applied) << applied.error().message();
    EXPECT_TRUE(applied->trim.converged)
        << applied->trim.rounds << " rounds, residual " << applied->trim.residual_ns << " ns";
}

TEST_P(MachineContract, EqualOffsetsAreOneClockAndUnequalAreNot) {
    SKIP_UNLESS(offset_works(), "the TSC offset has no effect");
    SKIP_UNLESS(facts_.masterclock, "no masterclock on this host");
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu)
        ASSERT_TRUE(machine().set_tsc_offset(vcpu, 77));
    ASSERT_TRUE(machine().settle());
    EXPECT_TRUE(machine().kvmclock()->stable);
    ASSERT_TRUE(machine().set_tsc_offset(1, 1ULL << 40));
    ASSERT_TRUE(machine().settle());
    EXPECT_FALSE(machine().kvmclock()->stable);
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu)
        ASSERT_TRUE(machine().set_tsc_offset(vcpu, 99));
    ASSERT_TRUE(machine().settle());
    EXPECT_TRUE(machine().kvmclock()->stable);
}

TEST_P(MachineContract, GuestStoppedIsInTheRecordUntilTheGuestHasSeenIt) {
    SKIP_UNLESS(x86(), kNotOfX86);
    SKIP_UNLESS(!lacks(state::Quirk::kNoKvmclockCtrl), "no KVM_KVMCLOCK_CTRL");
    const auto before = capture(machine());
    ASSERT_TRUE(before);
    SKIP_UNLESS((before->vcpus[1].system_time_msr & 1) != 0,
                "the guest under test uses no kvmclock");
    EXPECT_FALSE(before->vcpus[1].guest_stopped_pending);
    ASSERT_TRUE(machine().signal_guest_stopped(1));
    const auto after = capture(machine());
    ASSERT_TRUE(after);
    EXPECT_TRUE(after->vcpus[1].guest_stopped_pending);
    EXPECT_FALSE(after->vcpus[2].guest_stopped_pending);
}

}  // namespace continuo::machine
