// Whole migrations on ideal hosts whose true time is known: what the certificate bounds is held
// against the truth.
#include "continuo/machine/migration.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <limits>

#include "continuo/model/ideal_machine.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::model {
namespace {

using machine::Applied;
using machine::apply;
using machine::apply_by_value;
using machine::capture;
using machine::destination_for;
using machine::verify;
using state::Plan;
using state::PlanOptions;
using state::Policy;
using state::Record;
using time::i128;
using time::kNanosPerSecond;

constexpr std::size_t kVcpus = 3;

/// ns, exact to the floor, that `host` counts for so many of its ticks.
i128 true_ns(const IdealHost& host, std::uint64_t ticks) {
    return static_cast<i128>(ticks) * kNanosPerSecond / static_cast<i128>(host.frequency.hz());
}

/// Two hosts, a guest on the first, and the true length of the blackout between its stop and its
/// resume.
struct World {
    IdealHost source;
    IdealHost destination;
    Hz guest = *Hz::from_khz(2'000'000);
    std::int64_t source_tai_error_ns = 0;
    std::int64_t destination_tai_error_ns = 0;
    std::uint64_t blackout_ns = 0;
};

struct Moved {
    Record record;
    Plan plan;
    Applied applied;
    state::Certificate certificate;
};

/// Moves a guest and gives back everything. True time is the source's counter up to the stop and
/// the destination's counter from its anchor on; the destination's TAI is set so that exactly
/// blackout_ns of true time lie between.
class Migration {
  public:
    explicit Migration(World world) : world_{world}, from_{world_.source, kVcpus, world_.guest} {
        from_.enable_kvmclock();
        world_.source.sleep(world_.source.frequency.hz() / 3);
    }

    void run(const PlanOptions& options, std::size_t vcpus = kVcpus) {
        world_.source.boot_tai_ns += static_cast<std::uint64_t>(world_.source_tai_error_ns);
        auto record = capture(from_);
        ASSERT_TRUE(record) << record.error().message();
        moved.record = *record;

        set_destination_clock();
        to_.emplace(world_.destination, vcpus, world_.guest);
        to_->enable_kvmclock();
        const auto destination = destination_for(*to_, moved.record);
        ASSERT_TRUE(destination);
        auto plan = state::plan(moved.record, *destination, options);
        ASSERT_TRUE(plan) << plan.error().front().message;
        moved.plan = *plan;
        anchor_ = destination->anchor.counter;
        const auto applied = apply(*to_, moved.plan);
        ASSERT_TRUE(applied) << applied.error().message();
        moved.applied = *applied;
        auto certificate = verify(*to_, moved.plan, moved.applied);
        ASSERT_TRUE(certificate);
        moved.certificate = *certificate;
        ASSERT_TRUE(to_->settle());
    }

    /// The source's counter when the guest would have reached the resume instant there, rounded
    /// down.
    Count<HostCounter> uninterrupted() const {
        const i128 ticks = static_cast<i128>(world_.blackout_ns) *
                           static_cast<i128>(world_.source.frequency.hz()) /
                           static_cast<i128>(kNanosPerSecond);
        return time::same_boot_counter(moved.record.anchor.counter) +
               time::Ticks<HostCounter>::from_raw(static_cast<std::int64_t>(ticks));
    }

    World& world() { return world_; }
    IdealMachine& from() { return from_; }
    IdealMachine& to() { return *to_; }
    Moved moved;

  private:
    void set_destination_clock() {
        const i128 true_tai_at_stop =
            static_cast<i128>(moved.record.anchor.tai.raw()) - world_.source_tai_error_ns;
        const i128 tai_at_anchor = true_tai_at_stop + static_cast<i128>(world_.blackout_ns);
        const i128 boot = tai_at_anchor - true_ns(world_.destination, world_.destination.counter) +
                          world_.destination_tai_error_ns;
        world_.destination.boot_tai_ns = static_cast<std::uint64_t>(boot);
    }

    World world_;
    IdealMachine from_;
    std::optional<IdealMachine> to_;
    Count<HostCounter> anchor_;
};

IdealHost host(std::uint64_t khz, std::uint8_t boot, std::optional<int> bits = {}) {
    IdealHost out;
    out.frequency = *Hz::from_khz(khz);
    out.identity.boot_id = {boot};
    out.scaling_frac_bits = bits;
    return out;
}

World generated(bool jitter) {
    World world;
    const auto guest_khz = *rc::gen::inRange<std::uint32_t>(800'000, 5'000'000);
    world.guest = *Hz::from_khz(guest_khz);
    const int kind = *rc::gen::inRange(0, 3);
    const std::uint32_t host_khz = kind == 0 ? guest_khz
                                   : kind == 1
                                       ? guest_khz + guest_khz / 8'000
                                       : *rc::gen::inRange<std::uint32_t>(800'000, 5'000'000);
    // The source may scale the guest too, or run it unscaled at a rate that is not its own.
    const std::uint32_t source_khz =
        *rc::gen::element(guest_khz, guest_khz + guest_khz / 8'000,
                          *rc::gen::inRange<std::uint32_t>(800'000, 5'000'000));
    world.source = host(source_khz, 1, *rc::gen::element(32, 48));
    world.destination = host(host_khz, 2, *rc::gen::element(32, 48));
    world.source.counter = *rc::gen::arbitrary<std::uint64_t>() >> *rc::gen::inRange(1, 60);
    world.destination.counter = *rc::gen::arbitrary<std::uint64_t>() >> *rc::gen::inRange(1, 60);
    world.source.tai_bound_ns = *rc::gen::inRange<std::uint64_t>(0, 50'000'000);
    world.destination.tai_bound_ns = *rc::gen::inRange<std::uint64_t>(0, 50'000'000);
    const auto within = [](std::uint64_t bound) {
        const auto wide = static_cast<std::int64_t>(bound);
        return *rc::gen::inRange<std::int64_t>(-wide, wide + 1);
    };
    world.source_tai_error_ns = within(world.source.tai_bound_ns);
    world.destination_tai_error_ns = within(world.destination.tai_bound_ns);
    world.blackout_ns = *rc::gen::inRange<std::uint64_t>(200'000'000, 86'400 * kNanosPerSecond);
    if (jitter) {
        world.source.call_ticks_max = *rc::gen::inRange<std::uint64_t>(0, 3);
        world.destination.call_ticks_max = *rc::gen::inRange<std::uint64_t>(0, 3);
    }
    return world;
}

// The true error of every counter is inside its certified bound (invariant 6), whatever the two
// hosts' clocks do within what they admit.
RC_GTEST_PROP(MigrationAcrossHosts, AdvanceKeepsTheTruthInsideTheBound, ()) {
    Migration migration{generated(false)};
    migration.run({});
    RC_ASSERT_FALSE(testing::Test::HasFatalFailure());
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto& tsc = migration.moved.plan.tsc[vcpu];
        const auto realised = migration.to().guest_tsc(vcpu, migration.moved.plan.resume_at);
        // What the source itself would have shown: the next of its ticks is one of the guest's, or
        // a few where it is slower.
        const auto low = migration.from().guest_tsc(vcpu, migration.uninterrupted());
        const auto high = migration.from().guest_tsc(
            vcpu, migration.uninterrupted() + time::Ticks<HostCounter>::from_raw(1));
        const auto bound = static_cast<i128>(tsc.bound.total());
        RC_ASSERT((realised - high).raw() <= bound);
        RC_ASSERT((low - realised).raw() <= bound);
        RC_ASSERT(migration.moved.certificate.clocks[vcpu].seam == 0);
    }
}

RC_GTEST_PROP(MigrationAcrossHosts, AdvanceKeepsKvmclockInsideItsBound, ()) {
    Migration migration{generated(false)};
    migration.run({});
    const auto& kvmclock = *migration.moved.plan.kvmclock;
    const auto realised = migration.to().guest_kvmclock(migration.moved.plan.resume_at);
    // What the source's page would have shown, its truncated multiplier included.
    const auto low = migration.from().guest_kvmclock(migration.uninterrupted());
    const auto high = migration.from().guest_kvmclock(migration.uninterrupted() +
                                                      time::Ticks<HostCounter>::from_raw(1));
    const auto bound = static_cast<i128>(kvmclock.bound.total());
    RC_ASSERT((realised - high).raw() <= bound);
    RC_ASSERT((low - realised).raw() <= bound);
}

RC_GTEST_PROP(MigrationAcrossHosts, FreezeGoesOnFromTheStopToTheBit, ()) {
    Migration migration{generated(true)};
    PlanOptions options;
    options.policy = *rc::gen::element(Policy::kFreeze, Policy::kFreezeAndNotify);
    migration.run(options);
    const auto resume = migration.moved.plan.resume_at;
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu)
        RC_ASSERT(migration.to().guest_tsc(vcpu, resume) ==
                  migration.moved.record.vcpus[vcpu].counter);
    RC_ASSERT(migration.moved.certificate.holds());
    const auto& recorded = *migration.moved.record.kvmclock;
    const auto stopped = recorded.line.at(migration.moved.record.vcpus[0].counter);
    RC_ASSERT((migration.to().guest_kvmclock(resume) - stopped).magnitude() <= 2U);
}

RC_GTEST_PROP(MigrationOnOneHost, AdvanceIsTheLineThatWasThere, ()) {
    World world = generated(true);
    world.source.scaling_frac_bits = 48;
    world.source.frequency = world.destination.frequency;
    IdealHost& shared = world.source;
    IdealMachine from{shared, kVcpus, world.guest};
    from.enable_kvmclock();
    shared.sleep(*rc::gen::inRange<std::uint64_t>(0, 1ULL << 40));
    const auto record = capture(from);
    RC_ASSERT(record.has_value());
    shared.sleep(*rc::gen::inRange<std::uint64_t>(0, 1ULL << 45));
    IdealMachine to{shared, kVcpus, world.guest};
    to.enable_kvmclock();
    const auto destination = destination_for(to, *record);
    RC_ASSERT(destination->same_boot);
    const auto plan = state::plan(*record, *destination, {});
    RC_ASSERT(plan.has_value());
    RC_ASSERT(apply(to, *plan).has_value());
    const auto at =
        plan->resume_at + time::Ticks<HostCounter>::from_raw(
                              *rc::gen::inRange<std::int64_t>(0, std::int64_t{1} << 40));
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto off = to.guest_tsc(vcpu, at) - from.guest_tsc(vcpu, at);
        // Unscaled it is the same offset; scaled, the phase of the multiplier is not recorded: one
        // tick.
        RC_ASSERT(off.magnitude() <= (plan->tsc[vcpu].map.scales() ? 1U : 0U));
    }
}

RC_GTEST_PROP(MigrationByValue, TheTruthIsInsideTheBracket, ()) {
    World world = generated(true);
    world.source.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.source.call_ticks_max = *rc::gen::inRange<std::uint64_t>(1, 5'000);
    IdealMachine from{world.source, kVcpus, world.guest};
    const auto record = capture(from);
    RC_ASSERT(record.has_value());
    const auto anchor = time::same_boot_counter(record->anchor.counter);
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto off = record->vcpus[vcpu].counter - from.guest_tsc(vcpu, anchor);
        RC_ASSERT(off.magnitude() <= record->vcpus[vcpu].counter_bound_ticks);
    }
}

// No page, and a source that scales the guest or runs it unscaled 125 ppm off: the kernel's line is
// still the guest's within what the record says, whatever time the calls take.
RC_GTEST_PROP(MigrationByValue, TheKernelsLineIsWithinItsBound, ()) {
    World world = generated(true);
    if (*rc::gen::arbitrary<bool>())
        world.source.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.source.call_ticks_max = *rc::gen::inRange<std::uint64_t>(1, 50'000);
    IdealMachine from{world.source, 32, world.guest};
    world.source.sleep(*rc::gen::inRange<std::uint64_t>(0, 1ULL << 40));
    const auto record = capture(from);
    RC_ASSERT(record.has_value());
    RC_ASSERT(record->kvmclock->origin == state::KvmclockOrigin::kKernel);
    const auto anchor = time::same_boot_counter(record->anchor.counter);
    for (std::size_t vcpu = 0; vcpu < 32; ++vcpu) {
        const auto off = record->vcpus[vcpu].counter - from.guest_tsc(vcpu, anchor);
        RC_ASSERT(off.magnitude() <= record->vcpus[vcpu].counter_bound_ticks);
    }
    const auto off =
        record->kvmclock->line.at(record->vcpus[0].counter) - from.guest_kvmclock(anchor);
    RC_ASSERT(off.magnitude() <= record->kvmclock->bound_ns);
}

TEST(MigrationByValue, ADestinationWithoutTheAttributeIsWithinItsBound) {
    World world;
    world.source = host(2'000'000, 1);
    world.destination = host(2'000'000, 2);
    world.destination.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.destination.call_ticks_max = 20'000;
    world.blackout_ns = 500'000'000;
    Migration migration{world};
    migration.run({});
    for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto& clock = migration.moved.certificate.clocks[vcpu];
        EXPECT_TRUE(clock.holds()) << clock.seam;
        EXPECT_NE(clock.seam, 0) << "20 000 ticks of jitter and no seam: was anything measured?";
    }
}

TEST(MigrationByValue, KvmclockIsAsFarOffAsTheCounterThatItRidesOn) {
    World world;
    world.source = host(2'000'000, 1);
    world.destination = host(2'000'000, 2);
    world.destination.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.destination.call_ticks_max = 200'000;  // 100 us
    world.blackout_ns = 500'000'000;
    Migration migration{world};
    migration.run({});
    const auto& clock = migration.moved.certificate.clocks.back();
    ASSERT_EQ(clock.clock, state::ClockKind::kKvmclock);
    const auto truth = migration.to().guest_kvmclock(migration.moved.plan.resume_at);
    const auto off = truth - Instant<Kvmclock>::from_raw(clock.realised);
    EXPECT_LE(off.magnitude(), migration.moved.applied.map_bound_ticks[0] / 2 + 3);
    EXPECT_LT(clock.seam, -1'000) << "the counter is late by up to 100 us, and kvmclock with it";
    EXPECT_TRUE(clock.holds());
}

TEST(MigrationByValue, KvmsSynchronisationOfTheVcpusIsNoError) {
    World world;
    world.source = host(2'000'000, 1);
    world.destination = host(2'000'000, 2);
    world.destination.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.destination.synchronises_writes = true;
    world.destination.call_ticks_max = 20'000;
    world.blackout_ns = 500'000'000;
    for (std::uint64_t seed = 0; seed < 5'000; ++seed) {
        world.destination.seed = seed;
        Migration migration{world};
        migration.run({});  // the first write may be later than all that follow
        const auto resume = migration.moved.plan.resume_at;
        for (std::size_t vcpu = 1; vcpu < kVcpus; ++vcpu)
            EXPECT_EQ(migration.to().guest_tsc(vcpu, resume), migration.to().guest_tsc(0, resume));
    }
}

TEST(MigrationByValue, VcpusThatAreApartLandWhereKvmWouldSnapThem) {
    World world;
    world.source = host(2'000'000, 1);
    world.destination = host(2'000'000, 2);
    world.destination.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.destination.synchronises_writes = true;
    world.destination.call_ticks_max = 20'000;
    world.blackout_ns = 500'000'000;
    constexpr std::uint64_t kApart = 600'000'000;  // 0.3 s
    for (std::uint64_t seed = 0; seed < 1'000; ++seed) {
        world.destination.seed = seed;
        Migration migration{world};
        ASSERT_TRUE(migration.from().set_tsc_offset(1, kApart));
        migration.run({});
        for (std::size_t vcpu = 0; vcpu < kVcpus; ++vcpu) {
            const auto truth = migration.to().guest_tsc(vcpu, migration.moved.plan.resume_at);
            const auto& prescribed = migration.moved.plan.tsc[vcpu];
            // A write's own time, and the lead that the last one's gave.
            EXPECT_LE((truth - prescribed.at_resume).magnitude(), 4U * 20'000) << "vCPU " << vcpu;
            const auto& applied = migration.moved.applied;
            EXPECT_LE((truth - applied.maps[vcpu].at(migration.moved.plan.resume_at)).magnitude(),
                      applied.map_bound_ticks[vcpu]);
        }
    }
}

TEST(MigrationByValue, WhereNothingMovesTheTscItIsLookedAtAllTheSame) {
    World world;
    world.source = host(2'000'000, 1);
    world.source.counter = 0;  // guests are made with the host's own counter
    world.source.call_ticks_max = 100;
    world.source.quirks = static_cast<state::Quirks>(state::Quirk::kTscOffsetIgnored) |
                          static_cast<state::Quirks>(state::Quirk::kTscWriteIgnored);
    IdealMachine from{world.source, kVcpus, world.guest};
    world.source.sleep(1'000'000);
    const auto record = capture(from);
    ASSERT_TRUE(record);
    const auto destination = destination_for(from, *record);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan) << plan.error().front().message;
    const auto applied = apply(from, *plan);
    ASSERT_TRUE(applied) << applied.error().message();
    EXPECT_GT(applied->map_bound_ticks[0], 0U) << "the certificate rests on a look";
    EXPECT_EQ(applied->maps[0], plan->tsc[0].map) << "whose bracket moves no kvmclock";
    EXPECT_EQ(applied->maps[0], plan->tsc[0].map) << "a coarse look moves no kvmclock";
    // Another VM there has another line, and nothing in the plan would have touched it.
    IdealMachine other{world.source, kVcpus, world.guest};
    const auto refused = apply(other, *plan);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, state::ErrorCode::kKernel);
}

TEST(Migration, ATscAdjustThatTheKernelDropsIsFoundOut) {
    World world;
    world.source = host(2'000'000, 1);
    IdealMachine from{world.source, 2, world.guest};
    ASSERT_TRUE(from.set_tsc_adjust(1, -5));
    const auto record = capture(from);
    ASSERT_TRUE(record);
    const auto destination = destination_for(from, *record);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan);
    IdealMachine to{world.source, 2, world.guest};
    world.source.drops_tsc_adjust = true;
    const auto applied = apply(to, *plan);
    ASSERT_FALSE(applied);
    EXPECT_NE(applied.error().where.find("TSC_ADJUST"), std::string::npos);
}

TEST(MigrationByValue, AHostThatIgnoresTheWriteIsFoundOut) {
    World world;
    world.source = host(2'000'000, 1);
    world.destination = host(2'000'000, 2);
    // Claimed to work by value, and it does not: only reading back shows it.
    world.destination.quirks = static_cast<state::Quirks>(state::Quirk::kNoTscOffset);
    world.blackout_ns = 500'000'000;
    IdealMachine from{world.source, 1, world.guest};
    const auto record = capture(from);
    ASSERT_TRUE(record);
    IdealMachine to{world.destination, 1, world.guest};
    auto destination = destination_for(to, *record);
    destination->anchor.tai = record->anchor.tai + time::Nanos<time::Tai>::from_raw(500'000'000);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan);
    world.destination.quirks |= static_cast<state::Quirks>(state::Quirk::kTscWriteIgnored);
    const auto applied = apply(to, *plan);
    ASSERT_FALSE(applied);
    EXPECT_EQ(applied.error().code, state::ErrorCode::kKernel);
    EXPECT_NE(applied.error().where.find("IA32_TSC"), std::string::npos);
}

TEST(Migration, AHostThatAnswersZeroAndMovesNothingIsFoundOut) {
    World world;
    world.source = host(2'000'000, 1);
    IdealMachine from{world.source, 2, world.guest};
    const auto record = capture(from);
    ASSERT_TRUE(record);
    world.source.sleep(1'000'000);
    IdealMachine to{world.source, 2, world.guest};
    const auto destination = destination_for(to, *record);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan);
    world.source.quirks = static_cast<state::Quirks>(state::Quirk::kTscOffsetIgnored);
    const auto applied = apply(to, *plan);
    ASSERT_FALSE(applied);
    EXPECT_NE(applied.error().message().find("KVM_VCPU_TSC_OFFSET"), std::string::npos);
}

TEST(Migration, WhatVmmsDoTodayLosesTheBlackoutAndSkewsVcpus) {
    World world;
    world.source = host(2'000'000, 1);
    world.source.call_ticks_max = 2'000;
    IdealMachine from{world.source, kVcpus, world.guest};
    from.enable_kvmclock();
    world.source.sleep(2'000'000'000);
    const auto record = capture(from);
    ASSERT_TRUE(record);
    world.source.sleep(100'000'000);  // 50 ms of blackout
    IdealMachine to{world.source, kVcpus, world.guest};
    to.enable_kvmclock();
    const auto destination = destination_for(to, *record);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan);
    const auto applied = apply_by_value(to, *record, *plan);
    ASSERT_TRUE(applied);
    const auto certificate = verify(to, *plan, *applied);
    ASSERT_TRUE(certificate);
    EXPECT_FALSE(certificate->holds());
    EXPECT_LE(certificate->clocks[0].seam, -100'000'000);
    EXPECT_NE(certificate->clocks[0].seam, certificate->clocks[2].seam);
}

TEST(Migration, AGuestThatScribblesOverItsPageKeepsTheKernelsLine) {
    World world;
    world.source = host(2'000'000, 1);
    IdealMachine from{world.source, 2, world.guest};
    from.enable_kvmclock();
    world.source.sleep(2'000'000);
    const auto honest = capture(from);
    ASSERT_TRUE(honest);
    EXPECT_EQ(honest->kvmclock->origin, state::KvmclockOrigin::kPage);

    from.scribble_page(0, std::nullopt);
    const auto damaged = capture(from);
    ASSERT_TRUE(damaged);
    EXPECT_EQ(damaged->kvmclock->origin, state::KvmclockOrigin::kKernel);

    // A page that looks right and lies by an hour.
    const PvclockLine line = honest->kvmclock->line;
    from.scribble_page(0, line.shifted(time::Nanos<Kvmclock>::from_raw(3'600'000'000'000)));
    const auto lying = capture(from);
    ASSERT_TRUE(lying);
    EXPECT_EQ(lying->kvmclock->origin, state::KvmclockOrigin::kKernel);
    const auto tsc = lying->vcpus[0].counter;
    EXPECT_LE((lying->kvmclock->line.at(tsc) - line.at(tsc)).magnitude(), 1U);
}

TEST(Migration, AnOldPageOfAScaledGuestIsNotTakenForDamaged) {
    World world;
    world.source = host(3'000'000, 1, 48);
    world.guest = *Hz::from_khz(1'000'000);  // the page's rate is that of 999 999 kHz
    IdealMachine from{world.source, 1, world.guest};
    from.enable_kvmclock();
    const PvclockLine fresh = *from.pvclock_page(0).value();
    EXPECT_EQ(fresh.scale(), time::PvclockScale::from_hz(*Hz::from_khz(999'999)));
    // Five days after the last update of the masterclock KVM_GET_CLOCK, which counts the host's
    // ticks, is behind that page by 1 ppm of it: 432 ms.
    world.source.sleep(5ULL * 86'400 * 3'000'000'000);
    const auto ahead = time::Nanos<Kvmclock>::from_raw(432'000'000);
    from.scribble_page(0, fresh.shifted(ahead));
    const auto record = capture(from);
    ASSERT_TRUE(record);
    EXPECT_EQ(record->kvmclock->origin, state::KvmclockOrigin::kPage);
    EXPECT_NEAR(static_cast<double>(record->kvmclock->kernel_minus_line.raw()), -432e6, 1e6);
    // Ten times that is a lie.
    from.scribble_page(0, fresh.shifted(time::Nanos<Kvmclock>::from_raw(4'320'000'000)));
    EXPECT_EQ(capture(from)->kvmclock->origin, state::KvmclockOrigin::kKernel);
}

TEST(Migration, WithoutAMasterclockTheOtherVcpusPagesAreInTheBound) {
    World world;
    world.source = host(2'000'000, 1);
    IdealMachine from{world.source, 3, world.guest};
    from.enable_kvmclock();
    world.source.sleep(2'000'000);
    ASSERT_EQ(capture(from)->kvmclock->bound_ns, 0U);
    const PvclockLine page = *from.pvclock_page(2).value();
    from.scribble_page(2, page.shifted(time::Nanos<Kvmclock>::from_raw(-5'000)));
    EXPECT_EQ(capture(from)->kvmclock->bound_ns, 0U) << "one line for all: the page is damaged";
    ASSERT_TRUE(from.set_tsc_offset(1, 77));  // no masterclock any more
    from.scribble_page(1, std::nullopt);
    const auto record = capture(from);
    ASSERT_TRUE(record);
    EXPECT_FALSE(record->kvmclock->masterclock);
    EXPECT_EQ(record->kvmclock->bound_ns, 5'000U);
}

TEST(Migration, ACertificateHoldsANoticeOnlyWhereTheGuestWasTold) {
    World world;
    world.source = host(2'000'000, 1);
    world.destination = host(2'000'000, 2);
    world.blackout_ns = 500'000'000;
    Migration migration{world};
    PlanOptions options;
    options.policy = Policy::kFreezeAndNotify;
    migration.run(options);
    EXPECT_TRUE(migration.moved.plan.notice);
    EXPECT_FALSE(migration.moved.certificate.notice);
    EXPECT_NE(migration.moved.certificate.notes.front().find("NOT told"), std::string::npos);
    migration.moved.applied.notice_published = true;
    const auto told = verify(migration.to(), migration.moved.plan, migration.moved.applied);
    ASSERT_TRUE(told);
    EXPECT_TRUE(told->notice);
    EXPECT_EQ(told->notes, migration.moved.plan.notes);
}

TEST(Migration, ASecondApplyFindsEverythingOnItsLine) {
    World world;
    world.source = host(2'000'000, 1);
    IdealMachine from{world.source, 2, world.guest};
    from.enable_kvmclock();
    world.source.sleep(1'000'000);
    const auto record = capture(from);
    ASSERT_TRUE(record);
    IdealMachine to{world.source, 2, world.guest};
    const auto destination = destination_for(to, *record);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan);
    const auto first = apply(to, *plan);
    ASSERT_TRUE(first);
    EXPECT_GE(first->trim.rounds, 1U);
    const auto line = to.guest_kvmclock(plan->resume_at);
    world.source.sleep(12'345'678);
    const auto second = apply(to, *plan);
    ASSERT_TRUE(second);
    EXPECT_EQ(second->trim.rounds, 0U);
    EXPECT_EQ(second->maps, first->maps);
    EXPECT_EQ(to.guest_kvmclock(plan->resume_at), line);
}

// 2 001 000 kHz on 2 000 000: the page counts guest ticks at floor(2e6 x floor(2^48 x 1.0005) /
// 2^48) = 2 000 999 kHz, that is 1 / 2 000 999 = 500 ppb fast, and KVM_GET_CLOCK the host's. In the
// 10 s between restore and look they part by 10 s x 500 ppb = 5 us.
TEST(Migration, AScaledGuestsKvmclockIsHeldByItsPage) {
    World world;
    world.source = host(2'001'000, 1);
    world.destination = host(2'000'000, 2, 48);
    world.destination.clock_counts_host_ticks = true;
    world.guest = *Hz::from_khz(2'001'000);
    world.blackout_ns = 500'000'000;
    Migration migration{world};
    migration.run({});
    const auto kvmclock_seam = [&] {
        const auto certificate =
            verify(migration.to(), migration.moved.plan, migration.moved.applied);
        return certificate.value().clocks.back().seam;
    };
    EXPECT_EQ(migration.moved.certificate.clocks.back().clock, state::ClockKind::kKvmclock);
    EXPECT_LE(std::abs(migration.moved.certificate.clocks.back().seam), 1);

    migration.world().destination.sleep(10ULL * 2'000'000'000);
    const auto reading = migration.to().kvmclock();
    const auto page = migration.to().guest_kvmclock(*reading->host);
    EXPECT_NEAR(static_cast<double>((page - reading->clock).raw()), 4'998, 20);
    EXPECT_LE(std::abs(kvmclock_seam()), 1);

    const auto line = migration.to().guest_kvmclock(migration.moved.plan.resume_at);
    const auto again = apply(migration.to(), migration.moved.plan);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->trim.rounds, 0U) << "it is on its line, and must not be moved";
    EXPECT_EQ(migration.to().guest_kvmclock(migration.moved.plan.resume_at), line);
}

TEST(Migration, PendingGuestStoppedIsAskedForAgain) {
    World world;
    world.source = host(2'000'000, 1);
    IdealMachine from{world.source, 2, world.guest};
    from.enable_kvmclock();
    ASSERT_TRUE(from.signal_guest_stopped(1));
    const auto record = capture(from);
    ASSERT_TRUE(record);
    IdealMachine to{world.source, 2, world.guest};
    const auto destination = destination_for(to, *record);
    const auto plan = state::plan(*record, *destination, {});
    ASSERT_TRUE(plan);
    ASSERT_TRUE(apply(to, *plan));
    EXPECT_FALSE(to.vcpu_state(0)->guest_stopped_pending);
    EXPECT_TRUE(to.vcpu_state(1)->guest_stopped_pending);
}

}  // namespace
}  // namespace continuo::model
