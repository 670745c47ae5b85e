// What is planted in a simulated guest is found, its size lies in the interval that is reported,
// and the interval is narrow; a guest in which nothing happens gives no event. Each property is
// held for many guests; a failure names the seed.
#include <gtest/gtest.h>

#include "continuo/guest/watch/analyst.h"
#include "continuo/guest/watch/line_fit.h"
#include "continuo/guest/watch/linux_clocks.h"
#include "continuo/guest/watch/sampler.h"
#include "simulated_guest.h"

namespace continuo::guest::watch {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kMs = 1'000'000;
constexpr std::uint64_t kSeeds = 100;
/// Readings take 40 to 160 ticks of 0.2 to 1 ns; the line is known as well as that, and over the
/// widest gap here twice as badly.
constexpr std::uint64_t kBoundNs = 1000;

class Silent final : public Listener {
  public:
    void event(const Event& event) override { events.push_back(event); }
    void ntp(const NtpChange&) override { ++ntp_changes; }
    void backward(const Backward& back, std::uint64_t) override { backwards.push_back(back); }
    std::vector<Event> events;
    std::vector<Backward> backwards;
    std::uint64_t ntp_changes = 0;
};

struct Watch {
    explicit Watch(std::uint32_t cpus, Nanos hole = Settings{}.hole)
        : analyst{{.cpus = cpus, .hole = hole}, found} {}
    Silent found;
    Analyst analyst;
};

Nanos ns(std::int64_t value) {
    return Nanos::from_raw(value);
}

void expect_holds(const std::optional<Seam>& seam, std::int64_t truth, const char* what,
                  std::uint64_t bound_ns = kBoundNs) {
    ASSERT_TRUE(seam) << what;
    EXPECT_TRUE(seam->seam.contains(ns(truth))) << what << ": " << seam->seam.lo().raw() << " to "
                                                << seam->seam.hi().raw() << ", truly " << truth;
    EXPECT_LE(static_cast<std::uint64_t>((seam->seam.hi() - seam->seam.lo()).raw()), 2 * bound_ns)
        << what;
    EXPECT_TRUE(seam->cpus_agree) << what;
}

TEST(LineFit, HoldsTheLineAndNothingThatContradictsAReading) {
    // 1 ns a tick through (100, 1000); readings take 10 ticks, the clock is read in the middle.
    std::vector<Bracket> readings;
    for (std::uint64_t x = 100; x <= 500; x += 100)
        readings.push_back(
            {Count::from_raw(x - 5), Instant::from_raw(x + 900), Count::from_raw(x + 5)});
    const auto fit = LineFit::through(readings, {}, End::kRight);
    ASSERT_TRUE(fit);
    EXPECT_EQ(fit->anchor(), Count::from_raw(505));
    // Steepest: from (105, 1000) to (495, 1401): 401/390; shallowest: (95, 1001) to (505, 1400).
    EXPECT_EQ(fit->slope_max().nanos, 401);
    EXPECT_EQ(fit->slope_max().ticks, 390);
    EXPECT_EQ(fit->slope_min().nanos, 399);
    EXPECT_EQ(fit->slope_min().ticks, 410);
    const auto at = fit->at(Count::from_raw(505));
    EXPECT_EQ(at.lo, Instant::from_raw(1400));
    EXPECT_EQ(at.hi, Instant::from_raw(1412));  // 1000 + ceil(400 * 401 / 390)
    const auto reading = [](std::uint64_t at_ns) {
        return Bracket{Count::from_raw(600), Instant::from_raw(at_ns), Count::from_raw(610)};
    };
    EXPECT_EQ(fit->contradiction(reading(1500), {}), ns(0));
    EXPECT_GT(fit->contradiction(reading(1600), {}), ns(0));
    EXPECT_LT(fit->contradiction(reading(1400), {}), ns(0));
    EXPECT_EQ(fit->contradiction(reading(1600), ns(100)), ns(0));
}

TEST(LineFit, NoLineGoesThroughAStep) {
    std::vector<Bracket> readings;
    for (std::uint64_t x = 0; x < 1000; x += 100)
        readings.push_back({Count::from_raw(x), Instant::from_raw(x + (x >= 500 ? 60 : 0)),
                            Count::from_raw(x + 10)});
    EXPECT_FALSE(LineFit::through(readings, {}, End::kRight));
    EXPECT_TRUE(LineFit::through(readings, ns(60), End::kRight));
    // The last half of it has one.
    EXPECT_TRUE(fit_last(readings, {}));
    EXPECT_TRUE(fit_first(readings, {}));
}

TEST(Watch, NothingIsFoundWhereNothingHappens) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        const std::uint32_t cpus = 1 + static_cast<std::uint32_t>(seed % 4);
        SimulatedGuest guest{seed, cpus};
        guest.with_vmclock = seed % 2 == 0;
        Watch watch{cpus};
        guest.run(watch.analyst, 4 * kSecond);
        watch.analyst.finish();
        EXPECT_TRUE(watch.found.events.empty());
        const Report& report = watch.analyst.report();
        EXPECT_EQ(report.events_total, 0U);
        for (const Track track : {Track::kMonotonic, Track::kMonotonicRaw, Track::kRealtime})
            EXPECT_EQ(report.of(track).backward_within + report.of(track).backward_across, 0U);
        for (std::uint32_t cpu = 1; cpu < cpus; ++cpu) {
            ASSERT_TRUE(report.cpus[cpu].skew);
            EXPECT_TRUE(report.cpus[cpu].skew->contains(guest.skew(cpu)));
            EXPECT_LE((report.cpus[cpu].skew->hi() - report.cpus[cpu].skew->lo()).raw(), 160);
        }
    }
}

// A stop in which the counters and the clocks miss whatever they like of the gap: all of it
// (freeze), nothing (advance), or anything (by value). Seams are against the counter; what was lost
// is against the host's clock, of which the page is the line.
TEST(Watch, AStopsSeamsAreInTheirIntervals) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        const std::uint32_t cpus = 1 + static_cast<std::uint32_t>(seed % 4);
        SimulatedGuest guest{seed, cpus};
        guest.with_vmclock = true;
        Watch watch{cpus};
        guest.run(watch.analyst, 2 * kSecond);
        const std::int64_t gap = guest.between(5 * kMs, 2 * kSecond);
        const std::int64_t whole = guest.ticks(gap);
        const std::int64_t counter_misses = seed % 3 == 0   ? 0
                                            : seed % 3 == 1 ? whole
                                                            : guest.between(0, whole);
        const std::int64_t clocks_miss = seed % 3 == 0   ? 0
                                         : seed % 3 == 1 ? guest.ns(whole)
                                                         : guest.between(0, gap);
        guest.stop(gap, counter_misses, clocks_miss);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();

        ASSERT_EQ(watch.found.events.size(), 1U);
        const Event& event = watch.found.events.front();
        EXPECT_TRUE(event.reasons.has(Reason::kDisruption));
        EXPECT_EQ(event.cpus, cpus);
        const std::int64_t counter_ns = guest.ns(counter_misses);
        const std::int64_t truth = counter_ns - clocks_miss;
        expect_holds(event.of(Track::kMonotonicRaw), truth, "raw");
        expect_holds(event.of(Track::kMonotonic), truth, "monotonic", 2 * kBoundNs);
        expect_holds(event.of(Track::kRealtime), truth, "realtime", 3 * kBoundNs);
        ASSERT_EQ(event.reference, Track::kVmclock);
        ASSERT_TRUE(event.of(Track::kMonotonicRaw)->lost);
        EXPECT_TRUE(event.of(Track::kMonotonicRaw)->lost->contains(ns(clocks_miss)));
        EXPECT_TRUE(event.of(Track::kCounter)->lost->contains(ns(counter_ns)));
        ASSERT_TRUE(event.blackout);
        EXPECT_GE(event.blackout->raw(), gap - 1);
        EXPECT_LE(event.blackout->raw(), gap + 20 * kMs);
        EXPECT_EQ(event.reasons.has(Reason::kStep),
                  event.of(Track::kMonotonicRaw)->seam.lo() > ns(0) ||
                      event.of(Track::kMonotonicRaw)->seam.hi() < ns(0) ||
                      event.of(Track::kMonotonic)->seam.lo() > ns(0) ||
                      event.of(Track::kMonotonic)->seam.hi() < ns(0));
    }
}

TEST(Watch, WithoutAReferenceAnAdvancedStopIsSeenAndAFrozenOneIsNot) {
    for (const bool frozen : {false, true}) {
        SimulatedGuest guest{5, 2};
        Watch watch{2};
        guest.run(watch.analyst, 2 * kSecond);
        const std::int64_t gap = 300 * kMs;
        guest.stop(gap, frozen ? guest.ticks(gap) : 0, frozen ? gap : 0);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        ASSERT_EQ(watch.found.events.size(), frozen ? 0U : 1U);
        if (frozen) continue;
        EXPECT_TRUE(watch.found.events[0].reasons.only(Reason::kStop));
        expect_holds(watch.found.events[0].of(Track::kMonotonicRaw), 0, "raw");
        EXPECT_FALSE(watch.found.events[0].of(Track::kMonotonicRaw)->lost);
    }
}

TEST(Watch, AStepOfRealtimeIsThatStepToTheNanosecondOrNearly) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        SimulatedGuest guest{seed, 2};
        Watch watch{2};
        guest.run(watch.analyst, 2 * kSecond);
        std::int64_t step = guest.between(1000, 10 * kSecond);
        if (seed % 2 == 1) step = -step;
        guest.step(Clock::kRealtime, step);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        ASSERT_EQ(watch.found.events.size(), 1U);
        const Event& event = watch.found.events[0];
        EXPECT_TRUE(event.reasons.only(Reason::kStep));
        // Many readings make an offset sharper than a line: what they share.
        expect_holds(event.of(Track::kRealtime), step, "realtime", 200);
        EXPECT_FALSE(event.of(Track::kMonotonic)) << "nothing happened to it";
        if (step < -20 * kMs) {
            EXPECT_GE(watch.analyst.report().of(Track::kRealtime).backward_within, 1U);
        }
    }
}

// A frozen gap, and an agent that steps REALTIME some milliseconds later: two events, each with its
// own figures.
TEST(Watch, ARepairSoonAfterAStopIsAnEventOfItsOwn) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        SimulatedGuest guest{seed, 2};
        guest.with_vmclock = true;
        Watch watch{2};
        guest.run(watch.analyst, 2 * kSecond);
        const std::int64_t gap = guest.between(30 * kMs, kSecond);
        guest.stop(gap, guest.ticks(gap), gap);
        const std::int64_t late = 5 * kMs * guest.between(1, 20);
        guest.run(watch.analyst, late);
        guest.step(Clock::kRealtime, gap);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        ASSERT_EQ(watch.found.events.size(), 2U);
        const Event &stop = watch.found.events[0], &repair = watch.found.events[1];
        ASSERT_TRUE(stop.of(Track::kMonotonic)->lost);
        EXPECT_TRUE(stop.of(Track::kMonotonic)->lost->contains(ns(gap)));
        ASSERT_TRUE(stop.of(Track::kRealtime)) << "a few readings fix an offset";
        EXPECT_TRUE(stop.of(Track::kRealtime)->lost->contains(ns(gap)));
        expect_holds(repair.of(Track::kRealtime), gap, "repair", 200);
        ASSERT_TRUE(repair.since_stop);
        EXPECT_NEAR(static_cast<double>(repair.since_stop->raw()), static_cast<double>(late), 10e6);
    }
}

// Under `advance` a guest whose clocks hang on the counter alone sees nothing of a stop that is
// shorter than what counts as one: the notice page tells of it, and all seams are 0.
TEST(Watch, TheNoticePageTellsOfAMoveThatLeavesNoTrace) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        const std::uint32_t cpus = 1 + static_cast<std::uint32_t>(seed % 4);
        SimulatedGuest guest{seed, cpus};
        guest.with_notice = seed % 2 == 0;
        Watch watch{cpus, ns(3 * kSecond)};
        guest.run(watch.analyst, 2 * kSecond);
        guest.stop(guest.between(5 * kMs, 2 * kSecond), 0, 0);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        ASSERT_EQ(watch.found.events.size(), guest.with_notice ? 1U : 0U);
        if (!guest.with_notice) continue;
        const Event& event = watch.found.events[0];
        EXPECT_TRUE(event.reasons.only(Reason::kNotice));
        expect_holds(event.of(Track::kMonotonic), 0, "MONOTONIC", 3000);
        expect_holds(event.of(Track::kMonotonicRaw), 0, "MONOTONIC_RAW", 3000);
    }
}

// NTP steers MONOTONIC just before a move, and one CPU finds that out in the pass before it: the
// move is one event all the same, and whatever else there is has another rate.
TEST(Watch, ARateThatChangesJustBeforeAMoveIsNotTheMove) {
    for (std::uint64_t seed = 0; seed < 3 * kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        const std::uint32_t cpus = 1 + static_cast<std::uint32_t>(seed % 3);
        SimulatedGuest guest{seed, cpus};
        guest.with_notice = seed % 2 == 0;
        guest.with_vmclock = !guest.with_notice;
        Watch watch{cpus, ns(3 * kSecond)};
        guest.run(watch.analyst, 2 * kSecond);
        guest.steer(guest.between(20'000, 500'000));
        guest.run(watch.analyst, 5 * kMs * guest.between(1, 8));
        for (std::uint32_t cpu = 0; cpu < seed % 3; ++cpu)
            watch.analyst.take(guest.pass(cpu));
        guest.stop(guest.between(5 * kMs, kSecond), 0, 0);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        std::size_t moves = 0;
        for (const Event& event : watch.found.events) {
            const bool move =
                event.reasons.has(Reason::kNotice) || event.reasons.has(Reason::kDisruption);
            moves += move ? 1 : 0;
            // Where too few readings came before the move, it says no more than that.
            const bool left = event.reasons.only(Reason::kStep) && !event.of(Track::kMonotonic);
            EXPECT_TRUE(move || left || event.reasons.only(Reason::kRate));
            if (move) {
                EXPECT_EQ(event.cpus, cpus);
            }
            const auto& seam = event.of(Track::kMonotonicRaw);
            EXPECT_TRUE(!seam || seam->seam.contains(ns(0)));
        }
        EXPECT_EQ(moves, 1U);
    }
}

// Two moves within what an event's lines are made of are two.
TEST(Watch, ASecondMoveSoonAfterTheFirstIsAnEventOfItsOwn) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        const std::uint32_t cpus = 1 + static_cast<std::uint32_t>(seed % 3);
        SimulatedGuest guest{seed, cpus};
        guest.with_notice = seed % 2 == 0;
        guest.with_vmclock = !guest.with_notice;
        Watch watch{cpus, ns(3 * kSecond)};
        guest.run(watch.analyst, 2 * kSecond);
        guest.stop(guest.between(5 * kMs, kSecond), 0, 0);
        guest.run(watch.analyst, 100 * kMs * guest.between(1, 8));
        guest.stop(guest.between(5 * kMs, kSecond), 0, 0);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        EXPECT_EQ(watch.found.events.size(), 2U);
    }
}

// The second CPU comes back when the agent has stepped REALTIME already, and sees one event where
// there are two: what the first one saw of each counts.
TEST(Watch, ACpuThatComesBackLateDoesNotBlurTheOthers) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        SimulatedGuest guest{seed, 2};
        guest.with_vmclock = true;
        Watch watch{2};
        guest.run(watch.analyst, 2 * kSecond);
        const std::int64_t gap = guest.between(30 * kMs, kSecond);
        guest.stop(gap, guest.ticks(gap), gap);
        for (int pass = 0; pass < 5; ++pass) {
            watch.analyst.take(guest.pass(0));
            guest.sleep_ns(5 * kMs);
        }
        guest.step(Clock::kRealtime, gap);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        const Event& stop = watch.found.events.front();
        ASSERT_TRUE(stop.reasons.has(Reason::kDisruption));
        ASSERT_TRUE(stop.of(Track::kRealtime));
        EXPECT_FALSE(stop.of(Track::kRealtime)->cpus_agree);
        EXPECT_TRUE(stop.of(Track::kRealtime)->lost->contains(ns(gap)));
        ASSERT_EQ(watch.found.events.size(), 2U);
        expect_holds(watch.found.events[1].of(Track::kRealtime), gap, "repair", 200);
    }
}

TEST(Watch, ACounterThatMovesAgainstTheOthersIsSkewWithItsSize) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        SimulatedGuest guest{seed, 3};
        Watch watch{3};
        guest.run(watch.analyst, 2 * kSecond);
        const Ticks before = guest.skew(2);
        guest.move_counter(2, guest.between(0, 1) == 0 ? -5000 : 5000);
        guest.run(watch.analyst, 2 * kSecond);
        watch.analyst.finish();
        // Its lines step against its own counter, too; one of the two events has the skew.
        const CpuSkew* moved = nullptr;
        for (const Event& event : watch.found.events)
            for (const CpuSkew& skew : event.skew)
                if (moved == nullptr && skew.cpu == 2 && skew.before && skew.after) moved = &skew;
        ASSERT_NE(moved, nullptr);
        EXPECT_TRUE(moved->before->contains(before));
        EXPECT_TRUE(moved->after->contains(guest.skew(2)));
    }
}

TEST(Watch, AClockThatIsLowerOnAnotherCpuIsCountedWithItsProof) {
    SimulatedGuest guest{11, 2};
    Watch watch{2};
    guest.run(watch.analyst, kSecond);
    Pass pass = guest.pass(0);
    Pass later = guest.pass(1);
    ASSERT_TRUE(later.seen[0]);
    later.clocks[0].at = later.seen[0]->value - ns(250);
    watch.analyst.take(pass);
    watch.analyst.take(later);
    ASSERT_FALSE(watch.found.backwards.empty());
    const Backward& back = watch.found.backwards.front();
    EXPECT_EQ(back.track, Track::kMonotonic);
    EXPECT_EQ(back.size, 250U);
    EXPECT_EQ(back.first_cpu, 0U);
    EXPECT_EQ(back.second_cpu, 1U);
    EXPECT_EQ(back.first_after, pass.clocks[0].after);
    EXPECT_EQ(back.second_before, later.clocks[0].before);
    EXPECT_GE(watch.analyst.report().of(Track::kMonotonic).backward_across, 1U);
}

TEST(Watch, ARateIsToldFromAStep) {
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
        SCOPED_TRACE(seed);
        SimulatedGuest guest{seed, 1};
        Watch watch{1};
        guest.run(watch.analyst, 2 * kSecond);
        // 0.5 to 500 ppm: found at once, or after as long as it takes to leave the readings' width.
        guest.steer(guest.between(500, seed % 2 == 0 ? 5'000 : 500'000));
        guest.run(watch.analyst, 3 * kSecond);
        watch.analyst.finish();
        if (seed % 2 == 1) {
            ASSERT_FALSE(watch.found.events.empty());
        }
        for (const Event& event : watch.found.events)
            EXPECT_TRUE(event.reasons.only(Reason::kRate))
                << event.of(Track::kMonotonic)->seam.lo().raw() << " to "
                << event.of(Track::kMonotonic)->seam.hi().raw();
    }
}

TEST(Watch, NtpStatesAreToldWhenTheyChange) {
    SimulatedGuest guest{3, 1};
    Watch watch{1};
    const auto give = [&](bool unsync, std::int64_t maxerror_us) {
        Pass pass = guest.pass(0);
        pass.ntp = NtpState{unsync, maxerror_us, 0, 0};
        watch.analyst.take(pass);
        guest.sleep_ns(5 * kMs);
    };
    give(false, 1000);
    give(false, 1500);  // grows by itself
    EXPECT_EQ(watch.found.ntp_changes, 0U);
    give(true, 16'000'000);
    give(false, 20'000);
    EXPECT_EQ(watch.found.ntp_changes, 2U);
    EXPECT_TRUE(watch.analyst.report().ntp_changes[0].after.unsync);
}

TEST(Watch, MemoryIsBoundedHoweverMuchHappens) {
    SimulatedGuest guest{17, 1};
    Watch watch{1, ns(200 * kMs)};
    guest.run(watch.analyst, kSecond, 50 * kMs);
    for (int i = 0; i < 3000; ++i) {
        guest.step(Clock::kRealtime, kMs);
        guest.run(watch.analyst, 500 * kMs, 50 * kMs);
    }
    watch.analyst.finish();
    const Report& report = watch.analyst.report();
    EXPECT_EQ(report.events_total, 3000U);
    EXPECT_EQ(report.events.size(), 400U);
    EXPECT_EQ(report.events.front().number, 1U);
    EXPECT_EQ(report.events.back().number, 3000U);
    EXPECT_LE(report.timeline.size(), 601U);
    EXPECT_GE(report.timeline.size(), 200U);
    const auto end = report.timeline.back().offset_ns[static_cast<std::size_t>(Track::kRealtime)];
    ASSERT_TRUE(end);
    EXPECT_NEAR(static_cast<double>(*end), static_cast<double>(3000 * kMs), 1000.0);
}

// The real thing, for half a second on this machine: its clocks give passes in which no bracket is
// turned round, and readings lie on lines.
TEST(Watch, ReadsThisMachine) {
    LinuxClocks clocks;
    const std::vector<int> cpus = Sampler::allowed_cpus();
    ASSERT_FALSE(cpus.empty());
    Sampler sampler{clocks, cpus, 2 * kMs};
    ASSERT_EQ(sampler.start(), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds{500});
    sampler.stop();
    const std::vector<Sample> samples = sampler.take();
    std::uint64_t passes = 0;
    for (const Sample& sample : samples) {
        const auto* pass = std::get_if<Pass>(&sample);
        if (pass == nullptr) continue;
        ++passes;
        for (const Bracket& bracket : pass->clocks) {
            EXPECT_GE((bracket.after - bracket.before).raw(), 0);
            EXPECT_GT(bracket.at.raw(), 0U);
        }
        EXPECT_EQ(pass->ntp.has_value(), pass->cpu == 0);
    }
    EXPECT_GT(passes, 10U);
    EXPECT_EQ(sampler.lost(), 0U);
}

}  // namespace
}  // namespace continuo::guest::watch
