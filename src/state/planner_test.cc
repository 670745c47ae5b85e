#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "continuo/state/plan.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::state {
namespace {

using time::kNanosPerSecond;

constexpr std::uint64_t kTai = 1'700'000'000'000'000'000;

/// Two vCPUs of 2 GHz stopped at host counter 1000 with 500 and 700 ticks; kvmclock 1 s at tick 0,
/// 1/2 ns a tick.
Record record() {
    Record out;
    out.source.boot_id = {1};
    out.anchor.counter = Count<SourceCounter>::from_raw(1000);
    out.anchor.tai = Instant<Tai>::from_raw(kTai);
    out.anchor.tai_offset_sec = 37;
    out.anchor.frequency = *Hz::from_khz(2'000'000);
    out.anchor.rate_bound_ppb = 0;
    for (const std::uint64_t ticks : {500U, 700U}) {
        VcpuClock clock;
        clock.counter = Count<GuestCounter>::from_raw(ticks);
        clock.frequency = *Hz::from_khz(2'000'000);
        clock.system_time_msr = 0x1001;
        out.vcpus.push_back(clock);
    }
    KvmclockState kvmclock;
    kvmclock.line = PvclockLine{Count<GuestCounter>{}, Instant<Kvmclock>::from_raw(kNanosPerSecond),
                                PvclockScale::from_hz(*Hz::from_khz(2'000'000))};
    kvmclock.masterclock = true;
    kvmclock.origin = KvmclockOrigin::kPage;
    out.kvmclock = kvmclock;
    return out;
}

Destination destination() {
    Destination out;
    out.identity.boot_id = {2};
    out.anchor.counter = Count<HostCounter>::from_raw(9'000);
    out.anchor.tai = Instant<Tai>::from_raw(kTai + kNanosPerSecond);
    out.anchor.tai_offset_sec = 37;
    out.anchor.frequency = *Hz::from_khz(2'000'000);
    out.anchor.rate_bound_ppb = 0;
    out.vcpu_count = 2;
    return out;
}

Destination same_boot() {
    Destination out = destination();
    out.identity.boot_id = {1};
    out.same_boot = true;
    return out;
}

PlanOptions with(Policy policy) {
    PlanOptions options;
    options.policy = policy;
    return options;
}

Plan planned(const Record& r, const Destination& d, const PlanOptions& o) {
    const auto result = plan(r, d, o);
    EXPECT_TRUE(result) << (result ? "" : result.error().front().message);
    return result ? *result : Plan{};
}

Refusal refused(const Record& r, const Destination& d, const PlanOptions& o) {
    const auto result = plan(r, d, o);
    EXPECT_FALSE(result);
    return result ? Refusal{} : result.error().front();
}

std::uint64_t term(const Bound& bound, BoundSource source) {
    std::uint64_t sum = 0;
    for (const BoundTerm& entry : bound)
        if (entry.source == source) sum += entry.size;
    return sum;
}

std::vector<WriteKind> kinds(const Plan& p) {
    std::vector<WriteKind> out;
    for (const Write& write : p.writes)
        out.push_back(write.kind);
    return out;
}

// -- the counters --

TEST(PlanAdvance, OnOneBootTheSourcesLineGoesOn) {
    const Plan p = planned(record(), same_boot(), with(Policy::kAdvance));
    EXPECT_EQ(p.elapsed_by, ElapsedBy::kHostCounter);
    EXPECT_EQ(p.gap.raw(), 4'000);                             // (9000 - 1000) ticks at 2 GHz
    EXPECT_EQ(p.tsc[0].map.offset(), 0 - std::uint64_t{500});  // 500 - 1000
    EXPECT_EQ(p.tsc[1].map.offset(), 0 - std::uint64_t{300});  // 700 - 1000
    EXPECT_EQ(p.tsc[0].at_anchor.raw(), 8'500U);               // 500 + 8000
    EXPECT_EQ(p.tsc[0].advanced.raw(), 8'000);
    EXPECT_EQ(p.tsc[0].bound.total(), 0U);
}

TEST(PlanAdvance, AcrossHostsTheGapGoesByTai) {
    Record r = record();
    Destination d = destination();
    r.anchor.tai_bound_ns = 100;
    d.anchor.tai_bound_ns = 50;
    const Plan p = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(p.elapsed_by, ElapsedBy::kTai);
    EXPECT_EQ(p.gap.raw(), 1'000'000'000);
    EXPECT_EQ(p.tsc[0].at_anchor.raw(), 2'000'000'500U);  // 500 + 1 s * 2 GHz
    EXPECT_EQ(p.tsc[0].map.offset(), 2'000'000'500U - 9'000U);
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kSourceTai), 200U);       // 100 ns * 2
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kDestinationTai), 100U);  // 50 ns * 2
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kFrequency), 1'002U);  // 1 s * 1 kHz, in whole ns
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kRounding), 1U);
    EXPECT_EQ(p.tsc[0].bound.total(), 1'303U);
    EXPECT_EQ(p.tsc[1].at_anchor - p.tsc[0].at_anchor, Ticks<GuestCounter>::from_raw(200));
}

TEST(PlanFreeze, GoesOnFromTheStopAtTheResumeInstant) {
    PlanOptions options = with(Policy::kFreeze);
    options.resume_at = Count<HostCounter>::from_raw(11'000);
    const Plan p = planned(record(), destination(), options);
    EXPECT_EQ(p.tsc[0].at_resume.raw(), 500U);
    EXPECT_EQ(p.tsc[0].at_anchor.raw(), 0 - std::uint64_t{1'500});  // 500 - (11000 - 9000)
    EXPECT_EQ(p.tsc[0].advanced.raw(), 0);
    EXPECT_EQ(p.tsc[0].bound.total(), 0U);
    EXPECT_EQ(p.gap.raw(), 1'000'001'000);                   // 1 s + 2000 ticks
    EXPECT_EQ(p.kvmclock->at_resume.raw(), 1'000'000'250U);  // 1 s + 500 ticks
    EXPECT_EQ(p.kvmclock->advanced.raw(), 0);
}

TEST(PlanCounters, WrapIsNoSpecialCase) {
    Record r = record();
    Destination d = same_boot();
    r.anchor.counter =
        Count<SourceCounter>::from_raw(std::numeric_limits<std::uint64_t>::max() - 9);
    d.anchor.counter = Count<HostCounter>::from_raw(90);
    r.vcpus[0].counter = Count<GuestCounter>::from_raw(std::numeric_limits<std::uint64_t>::max());
    const Plan p = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(p.gap.raw(), 50);                // 100 ticks
    EXPECT_EQ(p.tsc[0].at_anchor.raw(), 99U);  // 2^64 - 1 + 100
}

TEST(PlanKvmclock, FollowsTheCounterUnderEveryPolicy) {
    for (const Policy policy :
         {Policy::kFreeze, Policy::kAdvance, Policy::kFreezeAndNotify, Policy::kAdvanceAndNotify}) {
        const Record r = record();
        const Plan p = planned(r, destination(), with(policy));
        EXPECT_EQ(p.kvmclock->line.system_time(), r.kvmclock->line.system_time());
        EXPECT_EQ(p.kvmclock->at_resume, r.kvmclock->line.at(p.tsc[0].at_resume)) << name(policy);
    }
}

// -- notices --

TEST(PlanNotice, FreezeTellsTheExactGapAndAnOddSequence) {
    Record r = record();
    r.notice_sequence = 6;
    const Plan p = planned(r, destination(), with(Policy::kFreezeAndNotify));
    ASSERT_TRUE(p.notice);
    EXPECT_EQ(p.notice->delta_realtime.raw(), 1'000'000'000);
    EXPECT_EQ(p.notice->sequence, 7U);
    EXPECT_EQ(p.writes.back().kind, WriteKind::kNotice);
    EXPECT_EQ(p.writes.back().value, 1'000'000'000U);
}

TEST(PlanNotice, ASecondMigrationWhileOneIsPendingStaysOdd) {
    Record r = record();
    r.notice_sequence = 7;
    EXPECT_EQ(planned(r, destination(), with(Policy::kFreezeAndNotify)).notice->sequence, 9U)
        << "an answer to the first must not pass for one to both";
}

TEST(PlanNotice, AdvanceTellsThatThereWasAGapAndNoStep) {
    const Plan p = planned(record(), destination(), with(Policy::kAdvanceAndNotify));
    EXPECT_EQ(p.notice->delta_realtime.raw(), 0);
    EXPECT_EQ(p.notice->gap.raw(), 1'000'000'000);
    EXPECT_FALSE(planned(record(), destination(), with(Policy::kAdvance)).notice);
}

// -- writes --

TEST(PlanWrites, StandInTheOrderThatWorks) {
    Record r = record();
    r.vcpus[1].guest_stopped_pending = true;
    using enum WriteKind;
    EXPECT_EQ(
        kinds(planned(r, destination(), with(Policy::kAdvance))),
        (std::vector{kTscAdjust, kTscAdjust, kTscOffset, kTscOffset, kKvmclock, kGuestStopped}));
    Destination faster = destination();
    faster.anchor.frequency = *Hz::from_khz(3'000'000);
    faster.scaling_frac_bits = 48;
    EXPECT_EQ(kinds(planned(record(), faster, with(Policy::kFreezeAndNotify))),
              (std::vector{kVcpuTscKhz, kTscAdjust, kVcpuTscKhz, kTscAdjust, kTscOffset, kTscOffset,
                           kKvmclock, kGuestStopped, kGuestStopped, kNotice}));
}

TEST(PlanWrites, OnlyAVcpuWithAPageIsToldThatItWasStopped) {
    Record r = record();
    r.vcpus[1].system_time_msr = 0;  // offline: KVM_KVMCLOCK_CTRL is EINVAL there
    r.vcpus[1].guest_stopped_pending = true;
    const Plan p = planned(r, destination(), with(Policy::kFreezeAndNotify));
    for (const Write& write : p.writes)
        if (write.kind == WriteKind::kGuestStopped) {
            EXPECT_EQ(write.vcpu, 0U);
        }
    const std::vector<WriteKind> all = kinds(p);
    EXPECT_EQ(std::count(all.begin(), all.end(), WriteKind::kGuestStopped), 1);
}

TEST(PlanWrites, ByValueWhereTheAttributeIsMissingAndItsCostIsInTheBound) {
    Destination d = destination();
    d.quirks = static_cast<Quirks>(Quirk::kNoTscOffset);
    d.by_value_bound_ns = 5'000;
    const Plan p = planned(record(), d, with(Policy::kFreeze));
    EXPECT_EQ(p.writes[2].kind, WriteKind::kTscByValue);
    EXPECT_EQ(p.tsc[0].bound.total(), 10'000U);  // 5 us at 2 GHz
    // kvmclock rides on vCPU 0's counter.
    EXPECT_EQ(term(p.kvmclock->bound, BoundSource::kByValueWrite), 5'000U);
}

TEST(PlanBound, KvmclockIsOffByWhateverVcpu0sCounterIsOff) {
    Record r = record();
    r.vcpus[0].counter_bound_ticks = 3'001;
    r.kvmclock->bound_ns = 7;
    for (const Policy policy : {Policy::kFreeze, Policy::kAdvance}) {
        const Plan p = planned(r, same_boot(), with(policy));
        EXPECT_EQ(term(p.kvmclock->bound, BoundSource::kCaptureRead), 7U + 1'501U);
    }
    // Who says that writes by value take no time has not made the closed loop any better.
    Destination blind = same_boot();
    blind.quirks = static_cast<Quirks>(Quirk::kNoClockTriple);
    blind.by_value_bound_ns = 0;
    EXPECT_EQ(term(planned(r, blind, with(Policy::kAdvance)).kvmclock->bound, BoundSource::kTrim),
              1U);
    // vCPUs that are apart have no masterclock, and without one KVM_GET_CLOCK says no counter
    // value.
    Destination loose = same_boot();
    loose.by_value_bound_ns = 9;
    Record apart = record();
    const auto trim_term = [&] {
        return term(planned(apart, loose, with(Policy::kAdvance)).kvmclock->bound,
                    BoundSource::kTrim);
    };
    ASSERT_NE(apart.vcpus[1].counter, apart.vcpus[0].counter);
    EXPECT_EQ(trim_term(), 9U);
    apart.vcpus[1].counter = apart.vcpus[0].counter;
    EXPECT_EQ(trim_term(), 1U);
    // A slow counter's tick is many ns: 1 MHz, 1000 ns.
    Record slow = record();
    slow.anchor.frequency = *Hz::from_khz(1'000);
    for (VcpuClock& clock : slow.vcpus)
        clock.frequency = *Hz::from_khz(1'000);
    slow.kvmclock->line = PvclockLine{Count<GuestCounter>{}, Instant<Kvmclock>{},
                                      PvclockScale::from_hz(*Hz::from_khz(1'000))};
    Destination d = destination();
    d.anchor.frequency = *Hz::from_khz(1'000);
    EXPECT_EQ(
        term(planned(slow, d, with(Policy::kAdvance)).kvmclock->bound, BoundSource::kRounding),
        1'001U);
}

TEST(PlanBound, OneSourceIsOneTermAndSaturates) {
    Bound bound;
    for (int i = 0; i < 20; ++i)
        bound.add(BoundSource::kTrim, 1);
    EXPECT_EQ(bound.end() - bound.begin(), 1);
    EXPECT_EQ(bound.total(), 20U);
    bound.add(BoundSource::kTrim, std::numeric_limits<std::uint64_t>::max());
    EXPECT_EQ(bound.total(), std::numeric_limits<std::uint64_t>::max());
}

// -- rates --

TEST(PlanRate, Within250PpmItIsUnscaledAndTheErrorIsTold) {
    Destination d = destination();
    d.anchor.frequency = *Hz::from_khz(2'000'400);  // +200 ppm
    d.scaling_frac_bits = 48;                       // KVM does not use it here
    const Plan p = planned(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(p.rate, RateChoice::kTolerated);
    EXPECT_FALSE(p.tsc[0].map.scales());
    // 200 ppm of a day: 17.28 s
    EXPECT_NEAR(static_cast<double>(time::ceil_drift(p.tsc_rate_error, 86'400 * kNanosPerSecond)),
                17.28e9, 1e6);
    EXPECT_GT(p.tsc_rate_error.two_pow_minus_64, 0);
    EXPECT_EQ(p.kvmclock->line.scale(), PvclockScale::from_hz(*Hz::from_khz(2'000'400)));
    EXPECT_FALSE(p.notes.empty());
}

TEST(PlanRate, TheGapIsCountedAtTheRateThatTheGuestHadOnTheSource) {
    Record r = record();
    r.anchor.frequency = *Hz::from_khz(2'000'400);  // 200 ppm off: KVM ran the guest unscaled
    r.kvmclock->line = PvclockLine{r.kvmclock->line.tsc_timestamp(), r.kvmclock->line.system_time(),
                                   PvclockScale::from_hz(*Hz::from_khz(2'000'400))};
    const Plan p = planned(r, destination(), with(Policy::kAdvance));
    EXPECT_EQ(p.tsc[0].advanced.raw(), 2'000'400'000);  // 1 s
    EXPECT_LE(std::abs(p.kvmclock->advanced.raw() - 1'000'000'000), 2);
}

TEST(PlanRate, AMultiplierAboveOneMultipliesTheFrequencysRounding) {
    Record r = record();
    r.anchor.frequency = *Hz::from_khz(500'000);  // truly up to 500 000.999: 4 times that
    const Plan p = planned(r, destination(), with(Policy::kAdvance));
    EXPECT_EQ(p.tsc[0].advanced.raw(), 2'000'000'000);
    // ... and 1 tick a second for the truncated multiplier.
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kFrequency), 4'001U);
}

TEST(PlanRate, BeyondItScalesAsKvmDoes) {
    Destination d = destination();
    d.anchor.frequency = *Hz::from_khz(3'000'000);
    for (const int bits : {32, 48}) {
        d.scaling_frac_bits = bits;
        const Plan p = planned(record(), d, with(Policy::kFreeze));
        EXPECT_EQ(p.rate, RateChoice::kScaled);
        EXPECT_EQ(p.tsc[0].map.ratio(), (std::uint64_t{2} << bits) / 3);  // floor(2/3 * 2^bits)
        EXPECT_EQ(p.tsc[0].at_resume.raw(), 500U);
        // 3 000 000 * floor(2/3 * 2^bits) >> bits = 1 999 999 kHz in the page
        EXPECT_EQ(p.kvmclock->line.scale(), PvclockScale::from_hz(*Hz::from_khz(1'999'999)));
        EXPECT_LT(p.tsc_rate_error.two_pow_minus_64, 0);
    }
}

TEST(PlanRate, WithoutScalingItIsRefusedWithTheSize) {
    Destination d = destination();
    d.anchor.frequency = *Hz::from_khz(2'100'000);
    const Refusal r = refused(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(r.reason, RefusalReason::kFrequency);
    EXPECT_EQ(r.clock, ClockKind::kTsc);
    EXPECT_EQ(r.unit, "ppb");
    EXPECT_EQ(r.size, 50'000'000U);  // 5 %
}

/// Two vCPUs on arm64, whose counters read `apart` ticks from each other, each within `bound`.
Record arm64_record(std::int64_t apart, std::uint64_t bound) {
    Record r = record();
    r.architecture = Architecture::kArm64;
    r.kvmclock.reset();
    for (VcpuClock& vcpu : r.vcpus)
        vcpu.counter_bound_ticks = bound;
    r.vcpus[1].counter = r.vcpus[0].counter + Ticks<GuestCounter>::from_raw(apart);
    return r;
}

Destination arm64_destination() {
    Destination d = destination();
    d.architecture = Architecture::kArm64;
    return d;
}

TEST(PlanRate, Arm64WantsTheSameFrequencyToTheHz) {
    const Record r = arm64_record(0, 0);
    Destination d = arm64_destination();
    EXPECT_TRUE(plan(r, d, with(Policy::kAdvance)));
    d.anchor.frequency = *Hz::from_hz(2'000'000'001);
    EXPECT_EQ(refused(r, d, with(Policy::kAdvance)).reason, RefusalReason::kFrequency);
}

TEST(PlanArm64, OneOffsetCannotGiveTwoCounters) {
    // Each is known within 3 ticks: 6 apart they may be one, 7 apart they are two.
    for (const std::int64_t apart : {std::int64_t{7}, std::int64_t{-7}, std::int64_t{1} << 40}) {
        const Refusal r =
            refused(arm64_record(apart, 3), arm64_destination(), with(Policy::kFreeze));
        EXPECT_EQ(r.reason, RefusalReason::kTscUncontrolled);
        EXPECT_EQ(r.vcpu, 1U);
        EXPECT_EQ(r.size, static_cast<std::uint64_t>(apart < 0 ? -apart : apart));
        EXPECT_EQ(r.unit, "ticks");
    }
    EXPECT_EQ(refused(arm64_record(1, 0), arm64_destination(), with(Policy::kAdvance)).size, 1U);
}

TEST(PlanArm64, WhatWasReadOfEachVcpuIsOneCounterAllTheSame) {
    for (const Policy policy : {Policy::kFreeze, Policy::kAdvance}) {
        const auto p = plan(arm64_record(-6, 3), arm64_destination(), with(policy));
        ASSERT_TRUE(p) << p.error().front().message;
        EXPECT_EQ(p->tsc[1].map, p->tsc[0].map);
        EXPECT_EQ(p->tsc[1].bound, p->tsc[0].bound);
    }
}

TEST(PlanArm64, APhysicalCounterThatNothingMovesIsTold) {
    Destination d = arm64_destination();
    const auto tells = [&] {
        const auto p = plan(arm64_record(0, 0), d, with(Policy::kAdvance));
        EXPECT_TRUE(p);
        return std::any_of(p->notes.begin(), p->notes.end(), [](const std::string& note) {
            return note.find("CNTPCT_EL0") != std::string::npos;
        });
    };
    EXPECT_FALSE(tells());
    d.quirks = static_cast<Quirks>(Quirk::kPhysicalCounterFixed);
    EXPECT_TRUE(tells());
}

// -- gaps that cannot be believed --

TEST(PlanGap, NegativeIsRefusedWithItsSizeUnderEveryPolicy) {
    Destination d = destination();
    d.anchor.tai = Instant<Tai>::from_raw(kTai - 5);
    for (const Policy policy :
         {Policy::kFreeze, Policy::kAdvance, Policy::kFreezeAndNotify, Policy::kAdvanceAndNotify}) {
        const Refusal r = refused(record(), d, with(policy));
        EXPECT_EQ(r.reason, RefusalReason::kNegativeGap);
        EXPECT_EQ(r.size, 5U);
        EXPECT_EQ(r.unit, "ns");
    }
}

TEST(PlanGap, ClampedWhereTheCallerSaysSoAndTold) {
    Destination d = destination();
    d.anchor.tai = Instant<Tai>::from_raw(kTai - 5 * kNanosPerSecond);
    PlanOptions options = with(Policy::kAdvance);
    options.clamp_gap = true;
    const Plan p = planned(record(), d, options);
    EXPECT_TRUE(p.gap_clamped);
    EXPECT_EQ(p.gap.raw(), 0);
    EXPECT_EQ(p.tsc[0].at_resume.raw(), 500U);
    ASSERT_FALSE(p.notes.empty());
    EXPECT_NE(p.notes.front().find("-5000000000"), std::string::npos) << p.notes.front();
}

TEST(PlanGap, WithinTheClocksBoundsItIsZero) {
    Record r = record();
    Destination d = destination();
    r.anchor.tai_bound_ns = 3;
    d.anchor.tai_bound_ns = 2;
    d.anchor.tai = Instant<Tai>::from_raw(kTai - 5);
    EXPECT_EQ(planned(r, d, with(Policy::kAdvance)).gap.raw(), 0);
    d.anchor.tai = Instant<Tai>::from_raw(kTai - 6);
    EXPECT_EQ(refused(r, d, with(Policy::kAdvance)).reason, RefusalReason::kNegativeGap);
}

TEST(PlanGap, AbsurdIsOverThirtyDays) {
    Destination d = destination();
    const std::uint64_t days30 = 30ULL * 86'400 * kNanosPerSecond;
    d.anchor.tai = Instant<Tai>::from_raw(kTai + days30);
    EXPECT_EQ(planned(record(), d, with(Policy::kAdvance)).gap.raw(),
              static_cast<std::int64_t>(days30));
    d.anchor.tai = Instant<Tai>::from_raw(kTai + days30 + 1);
    EXPECT_EQ(refused(record(), d, with(Policy::kFreeze)).reason, RefusalReason::kAbsurdGap);
    PlanOptions options = with(Policy::kAdvance);
    options.clamp_gap = true;
    EXPECT_EQ(planned(record(), d, options).gap.raw(), static_cast<std::int64_t>(days30));
    options.clamp_gap = false;
    options.gap_limit_ns = days30 + 1;
    EXPECT_EQ(planned(record(), d, options).gap.raw(), static_cast<std::int64_t>(days30 + 1));
}

TEST(PlanGap, WhatWasClampedAwayIsInEveryBound) {
    Destination d = destination();
    d.anchor.tai = Instant<Tai>::from_raw(kTai + 3 * kNanosPerSecond);
    PlanOptions options = with(Policy::kAdvance);
    options.clamp_gap = true;
    options.gap_limit_ns = kNanosPerSecond;
    const Plan p = planned(record(), d, options);
    EXPECT_EQ(p.gap.raw(), 1'000'000'000);
    EXPECT_GE(p.gap_bound_ns, 2 * kNanosPerSecond);
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kClamp), 4'000'000'000U);
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kFrequency), 3'000U) << "of what was measured";
    EXPECT_EQ(term(p.kvmclock->bound, BoundSource::kClamp), 2 * kNanosPerSecond);
    // Under freeze no clock counts the gap.
    options.policy = Policy::kFreeze;
    EXPECT_EQ(planned(record(), d, options).tsc[0].bound.total(), 0U);
    // On one boot too, where only a clamped gap is converted at all.
    Destination same = same_boot();
    same.anchor.counter = Count<HostCounter>::from_raw(998);
    options.policy = Policy::kAdvance;
    const Plan back = planned(record(), same, options);
    EXPECT_EQ(term(back.tsc[0].bound, BoundSource::kClamp), 2U);     // 2 ticks, 1 ns
    EXPECT_EQ(term(back.tsc[0].bound, BoundSource::kRounding), 3U);  // 1 ns and 1 tick
}

TEST(PlanGap, NoLimitLetsThroughWhat63BitsCannotHold) {
    Record r = record();
    r.anchor.tai = Instant<Tai>::from_raw(0);
    Destination d = destination();
    d.anchor.tai = Instant<Tai>::from_raw(1ULL << 63);
    PlanOptions options = with(Policy::kAdvance);
    options.gap_limit_ns = std::numeric_limits<std::uint64_t>::max();
    EXPECT_EQ(refused(r, d, options).reason, RefusalReason::kAbsurdGap);
    d.anchor.tai = Instant<Tai>::from_raw((1ULL << 63) - 1);
    EXPECT_EQ(planned(r, d, options).gap.raw(), std::numeric_limits<std::int64_t>::max());
    // A resume instant 2^63 ticks before the anchor brings a gap of 2^63.5 ns back under the limit.
    d.anchor.tai = Instant<Tai>::from_raw(13'000'000'000'000'000'000U);
    options.resume_at = Count<HostCounter>::from_raw(9'000 + (1ULL << 63));
    EXPECT_EQ(planned(r, d, options).gap.raw(), 13'000'000'000'000'000'000U - (1ULL << 62));
}

TEST(PlanGap, OnOneBootACounterThatWentBackIsRefused) {
    Destination d = same_boot();
    d.anchor.counter = Count<HostCounter>::from_raw(998);
    const Refusal r = refused(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(r.reason, RefusalReason::kNegativeGap);
    EXPECT_EQ(r.size, 1U);  // 2 ticks
}

TEST(PlanGap, ExtremeTaiValuesDoNotOverflow) {
    Record r = record();
    Destination d = destination();
    r.anchor.tai = Instant<Tai>::from_raw(0);
    d.anchor.tai = Instant<Tai>::from_raw(std::numeric_limits<std::uint64_t>::max());
    EXPECT_EQ(refused(r, d, with(Policy::kAdvance)).reason, RefusalReason::kAbsurdGap);
    std::swap(r.anchor.tai, d.anchor.tai);
    EXPECT_EQ(refused(r, d, with(Policy::kAdvance)).reason, RefusalReason::kNegativeGap);
}

TEST(PlanGap, AKernelThatWasNeverToldOfTaiIsRepaired) {
    Destination d = destination();
    d.anchor.tai_offset_sec = 0;  // its CLOCK_TAI is UTC, 37 s behind
    d.anchor.tai = Instant<Tai>::from_raw(kTai + kNanosPerSecond - 37 * kNanosPerSecond);
    EXPECT_EQ(planned(record(), d, with(Policy::kAdvance)).gap.raw(), 1'000'000'000);
    Record r = record();
    r.anchor.tai_offset_sec = 0;
    r.anchor.tai = Instant<Tai>::from_raw(kTai - 37 * kNanosPerSecond);
    EXPECT_EQ(planned(r, destination(), with(Policy::kAdvance)).gap.raw(), 1'000'000'000);
}

TEST(PlanGap, AnUnsynchronisedClockIsToldAndWidensTheBound) {
    Destination d = destination();
    d.anchor.synchronised = false;
    const Plan p = planned(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(term(p.kvmclock->bound, BoundSource::kDestinationTai), 16 * kNanosPerSecond);
    EXPECT_NE(p.notes.front().find("STA_UNSYNC"), std::string::npos);
}

// -- the exchange --

/// One round, in ticks of 2 GHz: the source's counter read 2000 and 2100 while the destination's
/// went from 3000 to 3300. The record's anchor is at 1000, the resume instant at 9000.
Exchange one_round() {
    return {{Count<HostCounter>::from_raw(3'000), Count<SourceCounter>::from_raw(2'000),
             Count<SourceCounter>::from_raw(2'100), Count<HostCounter>::from_raw(3'300)}};
}

TEST(PlanExchange, BracketsTheGapByCauseAndEffect) {
    Destination d = destination();
    d.exchange = one_round();
    const Plan p = planned(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(p.elapsed_by, ElapsedBy::kExchange);
    // At most 1001 ticks to `received` and 6000 since `asked`; at least 1100 ticks to `answered`
    // and 5699 since `heard`: 501 + 3001 and 550 + 2848 ns, kHz that may have been cut off
    // included.
    ASSERT_TRUE(p.measures.by_exchange);
    EXPECT_EQ(p.measures.by_exchange->gap.raw(), 3'450);  // (3502 + 3398) / 2
    EXPECT_EQ(p.measures.by_exchange->rounds, 1U);
    EXPECT_EQ(p.measures.by_exchange->bracket_ns + p.measures.by_exchange->drift_ns, 52U);
    EXPECT_EQ(p.measures.by_exchange->bound_ns, 53U);  // and 500 ppb of the longest gap
    EXPECT_EQ(p.gap.raw(), 3'450);
    EXPECT_EQ(p.gap_bound_ns, 53U);
    EXPECT_EQ(p.tsc[0].at_resume.raw(), 500U + 6'900U);
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kSourceTai), 0U);
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kExchange) +
                  term(p.tsc[0].bound, BoundSource::kFrequency),
              104U);
}

TEST(PlanExchange, ADisagreementBeyondBothBoundsIsAWrongClockAndItsLeastErrorIsTold) {
    Record r = record();
    Destination d = destination();
    r.anchor.tai_bound_ns = 1'000;  // the two say 1 s, within 1 us
    d.exchange = one_round();
    const Plan p = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(p.elapsed_by, ElapsedBy::kExchange);
    EXPECT_EQ(p.measures.by_tai->gap.raw(), 1'000'000'000);
    EXPECT_EQ(p.measures.clock_offset->gap.raw(), 1'000'000'000 - 3'450);
    EXPECT_EQ(p.measures.clock_offset->bound_ns, 53U);
    // 999 996 550 less 1000 and 53
    ASSERT_FALSE(p.notes.empty());
    EXPECT_NE(p.notes.front().find("wrong by at least 999995497 ns"), std::string::npos)
        << p.notes.front();
}

TEST(PlanExchange, TheNarrowerBoundIsUsedAndBothAreTold) {
    Record r = record();
    Destination d = destination();
    d.exchange = one_round();
    d.anchor.tai = Instant<Tai>::from_raw(kTai + 3'460);
    r.anchor.tai_bound_ns = 20;
    const Plan by_tai = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(by_tai.elapsed_by, ElapsedBy::kTai);
    EXPECT_EQ(by_tai.gap.raw(), 3'460);
    EXPECT_EQ(by_tai.measures.by_exchange->gap.raw(), 3'450);
    EXPECT_EQ(by_tai.measures.clock_offset->gap.raw(), 10);
    r.anchor.tai_bound_ns = 52;
    EXPECT_EQ(planned(r, d, with(Policy::kAdvance)).elapsed_by, ElapsedBy::kExchange);
    // Clocks that freeze are told true time, and in that the source's rate counts against it.
    EXPECT_EQ(planned(r, d, with(Policy::kFreeze)).elapsed_by, ElapsedBy::kTai);
    r.anchor.synchronised = false;
    const Plan unsynchronised = planned(r, d, with(Policy::kFreeze));
    EXPECT_EQ(unsynchronised.elapsed_by, ElapsedBy::kExchange);
    EXPECT_EQ(unsynchronised.measures.by_tai->bound_ns, 16 * kNanosPerSecond);
    EXPECT_NE(unsynchronised.notes.front().find("STA_UNSYNC"), std::string::npos);
    r.anchor.tai_bound_ns = 20 * kNanosPerSecond;
    EXPECT_EQ(planned(r, d, with(Policy::kFreeze)).measures.by_tai->bound_ns, 20 * kNanosPerSecond)
        << "the kernel's own maxerror says more";
}

TEST(PlanExchange, ForwardAndBackwardBoundsMayComeFromTwoRounds) {
    Destination d = destination();
    d.exchange = one_round();
    // The question of the first was fast and its answer slow, of the second the other way round.
    d.exchange.push_back(
        {Count<HostCounter>::from_raw(3'300), Count<SourceCounter>::from_raw(2'500),
         Count<SourceCounter>::from_raw(2'500), Count<HostCounter>::from_raw(3'610)});
    const Plan p = planned(record(), d, with(Policy::kAdvance));
    // Upper from the first, 3502; lower from the second: 750 ns to 2500 and 5389 ticks since.
    EXPECT_EQ(p.gap.raw(), (3'502 + 750 + 2'693) / 2);
    EXPECT_EQ(p.measures.by_exchange->rounds, 2U);
}

TEST(PlanExchange, RoundsThatContradictEachOtherAreRefusedWithTheSize) {
    Destination d = destination();
    d.exchange = one_round();
    // It held the question for 400 ticks, it says, and the answer was here after 300.
    d.exchange[0].answered = Count<SourceCounter>::from_raw(2'400);
    const Refusal r = refused(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(r.reason, RefusalReason::kExchange);
    EXPECT_EQ(r.size, 46U);  // 700 + 2848 is above 3502
    EXPECT_EQ(r.unit, "ns");
    EXPECT_FALSE(r.advice.empty());
}

TEST(PlanExchange, OnOneBootTheHostsCounterNeedsNone) {
    Destination d = same_boot();
    d.exchange = one_round();
    const Plan p = planned(record(), d, with(Policy::kAdvance));
    EXPECT_EQ(p.elapsed_by, ElapsedBy::kHostCounter);
    EXPECT_FALSE(p.measures.by_exchange || p.measures.by_tai || p.measures.clock_offset);
}

TEST(PlanExchange, WhatCannotBeIsNoExchange) {
    Exchange exchange = one_round();
    EXPECT_TRUE(check(exchange));
    exchange[0].answered = Count<SourceCounter>::from_raw(1'999);
    EXPECT_EQ(check(exchange).error().where, "/exchange/0/answered");
    exchange = one_round();
    exchange[0].heard = Count<HostCounter>::from_raw(2'999);
    EXPECT_EQ(check(exchange).error().where, "/exchange/0/heard");
    exchange.assign(kExchangeRoundsMax + 1, one_round()[0]);
    EXPECT_EQ(check(exchange).error().code, ErrorCode::kTooLarge);
}

TEST(PlanRates, WhatACounterMayBeOffItsRateIsInEveryConvertedLength) {
    Record r = record();
    Destination d = destination();
    r.anchor.rate_bound_ppb = 20'000;
    // 1 s of gap at 20 ppm and half a ppm of kHz, and their product.
    EXPECT_EQ(term(planned(r, d, with(Policy::kAdvance)).tsc[0].bound, BoundSource::kFrequency),
              2 * 20'501U);
    // 10 ms from the destination's anchor to the resume, at 50.5 ppm of its own counter.
    d.anchor.rate_bound_ppb = 50'000;
    PlanOptions options = with(Policy::kAdvance);
    options.resume_at = d.anchor.counter + Ticks<HostCounter>::from_raw(20'000'000);
    const Plan p = planned(r, d, options);
    EXPECT_EQ(term(p.tsc[0].bound, BoundSource::kFrequency), 2 * (506U + 20'706U));
    EXPECT_EQ(p.gap_bound_ns, 506U);
    // On one boot nothing is converted, and the gap in true time is known as well as the rate is.
    d = same_boot();
    d.anchor.rate_bound_ppb = 50'000;
    d.anchor.counter = Count<HostCounter>::from_raw(1'000 + 2'000'000'000);
    const Plan same = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(same.tsc[0].bound.total(), 0U);
    EXPECT_EQ(same.gap_bound_ns, 50'500U);  // 50 ppm, the kHz, and a ns for whole ones
}

// A host that is suspended: its counter may stand still, go on or start again.
TEST(Plan, OnOneBootTheCounterMeasuresOnlyWhileTheHostIsAwake) {
    Record r = record();
    Destination d = same_boot();
    d.anchor.counter = Count<HostCounter>::from_raw(1'000 + 2'000'000);  // 1 ms; TAI: 1 s
    const auto by = [&](std::optional<std::uint64_t> then, std::optional<std::uint64_t> now) {
        r.anchor.suspended_ns = then;
        d.anchor.suspended_ns = now;
        return planned(r, d, with(Policy::kAdvance));
    };
    constexpr std::uint64_t kLong = 90 * kNanosPerSecond;
    const std::pair<std::optional<std::uint64_t>, std::optional<std::uint64_t>> awake[] = {
        {std::nullopt, std::nullopt},
        {0, 0},
        {kLong, kLong},
        {kLong, kLong - 100'000},
        {0, 100'000},
        {std::nullopt, 0},
        {~0ULL, 3},  // a time namespace whose BOOTTIME is behind
    };
    for (const auto& [then, now] : awake) {
        const Plan p = by(then, now);
        EXPECT_EQ(p.elapsed_by, ElapsedBy::kHostCounter);
        EXPECT_EQ(p.gap.raw(), 1'000'000);
        EXPECT_EQ(p.tsc[0].bound.total(), 0U);
        EXPECT_FALSE(p.measures.by_tai);
    }
    struct Asleep {
        std::optional<std::uint64_t> then, now;
        std::uint64_t drift_ns;  ///< 501 ppm of the suspend, or of the 1 s between the anchors
    };
    const Asleep asleep[] = {
        {0, 100'001, 51},
        {kLong, 2 * kLong, 45'090'000},
        {kLong, kLong - 100'001, 51},
        {std::nullopt, kLong, 501'000},
        {0, std::nullopt, 501'000},
        {kLong, std::nullopt, 501'000},
        {kLong, 0, 45'090'000},
    };
    for (const auto& [then, now, drift_ns] : asleep) {
        const Plan p = by(then, now);
        EXPECT_EQ(p.elapsed_by, ElapsedBy::kTai);
        EXPECT_EQ(p.gap.raw(), static_cast<std::int64_t>(kNanosPerSecond));
        EXPECT_EQ(p.gap_bound_ns, 2 * kNanosPerSecond + drift_ns) << "whole seconds, read twice";
        EXPECT_EQ(p.tsc[0].advanced.raw(), 2'000'000'000);
        EXPECT_EQ(p.measures.by_tai->bound_ns, p.gap_bound_ns);
        EXPECT_FALSE(p.measures.by_exchange);
        ASSERT_FALSE(p.notes.empty());
        EXPECT_NE(p.notes.front().find("suspended"), std::string::npos) << p.notes.front();
    }
}

TEST(Plan, ACounterThatASuspendSetToZeroIsNoNegativeGap) {
    Record r = record();
    r.anchor.counter = Count<SourceCounter>::from_raw(1ULL << 50);
    r.anchor.suspended_ns = 0;
    Destination d = same_boot();
    d.anchor.suspended_ns = 60 * kNanosPerSecond;
    const Plan p = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(p.gap.raw(), static_cast<std::int64_t>(kNanosPerSecond));
    EXPECT_EQ(p.tsc[0].at_resume - r.vcpus[0].counter, p.tsc[0].advanced);
    // Without a suspend it is a record of another life.
    d.anchor.suspended_ns = 0;
    EXPECT_EQ(refused(r, d, with(Policy::kAdvance)).reason, RefusalReason::kNegativeGap);
}

// -- refusals --

TEST(PlanRefusal, FewerVcpus) {
    Destination d = destination();
    d.vcpu_count = 1;
    const Refusal r = refused(record(), d, with(Policy::kFreeze));
    EXPECT_EQ(r.reason, RefusalReason::kVcpus);
    EXPECT_EQ(r.size, 1U);
    EXPECT_EQ(r.vcpu, 1U);
}

TEST(PlanRefusal, AnotherArchitectureAndNoMasterclockBothAtOnce) {
    Destination d = destination();
    d.architecture = Architecture::kArm64;
    d.masterclock = false;
    const auto result = plan(record(), d, with(Policy::kFreeze));
    ASSERT_FALSE(result);
    ASSERT_EQ(result.error().size(), 2U);
    EXPECT_EQ(result.error()[0].reason, RefusalReason::kArchitecture);
    EXPECT_EQ(result.error()[1].reason, RefusalReason::kNoMasterclock);
    EXPECT_EQ(result.error()[1].clock, ClockKind::kKvmclock);
    EXPECT_EQ(result.error()[1].size, 150'000'000U);
    EXPECT_EQ(result.error()[1].unit, "ns");
}

TEST(PlanRefusal, NoVcpuAtAll) {
    Record r = record();
    r.vcpus.clear();
    EXPECT_EQ(refused(r, destination(), with(Policy::kFreeze)).reason, RefusalReason::kVcpus);
}

TEST(PlanRefusal, AClaimOfOneBootAgainstTwoIdentities) {
    Destination d = same_boot();
    d.identity.boot_id = {9};
    EXPECT_EQ(refused(record(), d, with(Policy::kAdvance)).reason, RefusalReason::kUnsynchronised);
    d.identity.boot_id = {};  // unknown: the caller vouches
    EXPECT_TRUE(plan(record(), d, with(Policy::kAdvance)));
}

TEST(PlanRefusal, AHostWhoseTscNothingMoves) {
    Record r = record();
    r.vcpus.resize(1);
    Destination d = same_boot();
    d.quirks = static_cast<Quirks>(Quirk::kTscOffsetIgnored) |
               static_cast<Quirks>(Quirk::kTscWriteIgnored);
    const Refusal frozen = refused(r, d, with(Policy::kFreeze));
    EXPECT_EQ(frozen.reason, RefusalReason::kTscUncontrolled);
    EXPECT_EQ(frozen.size, 8'500U);  // it would read 9000 and not 500
    EXPECT_EQ(frozen.unit, "ticks");
    // Where the guest's counter is the host's, advancing on one boot needs no control.
    r.vcpus[0].counter = Count<GuestCounter>::from_raw(1000);
    const Plan p = planned(r, d, with(Policy::kAdvance));
    EXPECT_EQ(p.tsc[0].map, TscMap{0});
    EXPECT_EQ(p.tsc[0].bound.total(), 0U) << "nothing is written, and so nothing lands late";
    for (const Write& write : p.writes)
        EXPECT_NE(write.kind, WriteKind::kTscByValue);
}

TEST(PlanRefusal, TscAdjustThatCannotBeWritten) {
    Record r = record();
    Destination d = destination();
    d.quirks = static_cast<Quirks>(Quirk::kNoTscAdjust);
    EXPECT_TRUE(plan(r, d, with(Policy::kFreeze)));
    r.vcpus[1].tsc_adjust = std::numeric_limits<std::int64_t>::min();
    const Refusal refusal = refused(r, d, with(Policy::kFreeze));
    EXPECT_EQ(refusal.clock, ClockKind::kTscAdjust);
    EXPECT_EQ(refusal.vcpu, 1U);
    EXPECT_EQ(refusal.size, 1ULL << 63);
}

TEST(PlanRefusal, EveryRefusalSaysWhatToDo) {
    Destination d = destination();
    d.vcpu_count = 0;
    d.masterclock = false;
    const auto result = plan(record(), d, with(Policy::kFreeze));
    ASSERT_FALSE(result);
    for (const Refusal& refusal : result.error()) {
        EXPECT_FALSE(refusal.message.empty());
        EXPECT_FALSE(refusal.advice.empty());
    }
}

}  // namespace
}  // namespace continuo::state
