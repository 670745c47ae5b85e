// Whole runs: the same seed is the same run, every situation is reached, what the threads say of
// the designs is seen, and Continuo's own way keeps what it promises.
#include "continuo/sim/run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>

namespace continuo::sim {
namespace {

const Scenario& scenario(const std::string& name) {
    static std::map<std::string, Scenario> read;
    auto found = read.find(name);
    if (found == read.end()) {
        auto loaded = load_scenario(std::string{CONTINUO_SCENARIOS} + "/" + name + ".toml");
        if (!loaded) ADD_FAILURE() << loaded.error().message();
        found = read.emplace(name, std::move(*loaded)).first;
    }
    return found->second;
}

std::vector<std::string> all_scenarios() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator{CONTINUO_SCENARIOS})
        names.push_back(entry.path().stem().string());
    std::sort(names.begin(), names.end());
    return names;
}

const Strategy& strategy(std::string_view name) {
    const Strategy* found = strategy_from_name(name);
    EXPECT_NE(found, nullptr) << name;
    return *found;
}

/// Runs of one strategy, and how often each invariant was broken in them.
struct Seen {
    std::array<int, kInvariants> broken{};
    std::array<std::int64_t, kInvariants> worst_ns{};
    std::array<std::uint64_t, kInvariants> seed{};
    int moved = 0;
    int refused = 0;
    ProbeSet probes = 0;
    int of(Invariant invariant) const { return broken[static_cast<std::size_t>(invariant)]; }
    std::int64_t worst(Invariant invariant) const {
        return worst_ns[static_cast<std::size_t>(invariant)];
    }
};
Seen runs(const std::string& of, std::string_view by, unsigned seeds, Bug bug = Bug::kNone) {
    Seen seen;
    for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
        const RunResult result = run(scenario(of), strategy(by), seed, bug);
        seen.probes |= result.probes;
        if (result.ending == Ending::kMoved) ++seen.moved;
        if (result.ending == Ending::kRefused) ++seen.refused;
        for (std::size_t i = 0; i < kInvariants; ++i) {
            const Verdict& verdict = result.verdicts[static_cast<Invariant>(i)];
            if (verdict.outcome != Outcome::kBroken) continue;
            ++seen.broken[i];
            if (verdict.by_ns <= seen.worst_ns[i]) continue;
            seen.worst_ns[i] = verdict.by_ns;
            seen.seed[i] = seed;
        }
    }
    return seen;
}

bool is_continuo(std::string_view name) {
    return name.starts_with("continuo-") || name == "quiesced";
}

TEST(Run, TheSameSeedIsTheSameRunAndAnotherIsAnother) {
    for (const std::string& name : all_scenarios())
        for (const Strategy* by : all_strategies()) {
            std::set<std::uint64_t> hashes;
            for (const std::uint64_t seed : {1ULL, 2ULL, ~0ULL}) {
                const RunResult first = run(scenario(name), *by, seed);
                const RunResult second = run(scenario(name), *by, seed);
                EXPECT_EQ(first.hash, second.hash) << name << " " << by->name() << " " << seed;
                EXPECT_EQ(first.verdicts, second.verdicts);
                EXPECT_EQ(first.ended, second.ended);
                hashes.insert(first.hash);
            }
            EXPECT_EQ(hashes.size(), 3U) << name << " " << by->name();
        }
}

TEST(Run, TheScenariosTogetherReachEverySituation) {
    ProbeSet reached = 0;
    for (const std::string& name : all_scenarios())
        for (const Strategy* by : all_strategies())
            reached |= runs(name, by->name(), 120).probes;
    for (std::size_t i = 0; i < kProbes; ++i)
        EXPECT_NE(reached & bit(static_cast<Probe>(i)), 0U) << name(static_cast<Probe>(i));
}

TEST(Run, ALimitEndsItAndItHasNoVerdict) {
    Scenario short_one = scenario("preempted-vmm");
    short_one.limits.steps = 24;
    for (const Strategy* by : all_strategies()) {
        const RunResult result = run(short_one, *by, 3);
        EXPECT_EQ(result.ending, Ending::kLimit) << by->name();
        EXPECT_EQ(result.reason, "limits.steps of the scenario was reached");
        EXPECT_EQ(result.verdicts, Verdicts{});
        EXPECT_LT(result.steps, 1'000U);
    }
    Scenario early = scenario("same-frequency-move");
    early.limits.true_time_ns = 1'000'100'000;
    const RunResult result = run(early, strategy("continuo-freeze"), 3);
    EXPECT_EQ(result.ending, Ending::kLimit);
    EXPECT_EQ(result.reason, "limits.true_time_ns of the scenario was reached");
}

/// What Continuo's own way breaks, and why; everything else it keeps in every scenario.
struct Exception {
    std::string_view scenario;
    std::string_view strategy;
    Invariant invariant;
    std::string_view why;
};
constexpr Exception kExceptions[] = {
    {"large-delta", "continuo-advance-and-notify", Invariant::kNoStaleRealtime,
     "the old guest's own multiplication overflows over a large delta (S3.7)"},
};
bool excepted(std::string_view of, std::string_view by, Invariant invariant) {
    return std::any_of(std::begin(kExceptions), std::end(kExceptions), [&](const Exception& one) {
        return one.scenario == of && one.strategy == by && one.invariant == invariant;
    });
}

TEST(Continuo, KeepsEveryInvariantInEveryScenario) {
    for (const std::string& of : all_scenarios())
        for (const Strategy* by : all_strategies()) {
            if (!is_continuo(by->name())) continue;
            const Seen seen = runs(of, by->name(), 400);
            EXPECT_GT(seen.moved + seen.refused, 0) << of << " " << by->name();
            for (std::size_t i = 0; i < kInvariants; ++i) {
                const auto invariant = static_cast<Invariant>(i);
                if (excepted(of, by->name(), invariant))
                    EXPECT_GT(seen.broken[i], 0) << "no exception any more: " << of;
                else
                    EXPECT_EQ(seen.broken[i], 0)
                        << of << ": " << by->name() << " breaks " << name(invariant) << " by "
                        << seen.worst_ns[i] << " ns, seed " << seen.seed[i];
            }
        }
}

// -- what the threads say --

TEST(Claims, RestoringByValueLosesTheTimeBetweenSettingAndEntry) {
    const Seen seen = runs("preempted-vmm", "by-value", 200);
    EXPECT_GT(seen.worst(Invariant::kMonotonicFrozen), 100'000'000);  // S3.8: 100 ms then
    EXPECT_GT(seen.of(Invariant::kIdempotent), 0);                    // S2
}

TEST(Claims, TheOffsetRecipeIsWrongUnderScalingAndIdempotentWithoutIt) {
    EXPECT_GT(runs("scaled-vmx", "offset-attribute", 100).of(Invariant::kCounterPerVcpu), 0);
    const Seen same = runs("same-frequency-move", "offset-attribute", 200);
    EXPECT_EQ(same.of(Invariant::kPromiseKept), 0);
    EXPECT_EQ(same.of(Invariant::kCounterAcrossVcpus), 0);
}

TEST(Claims, AdvancingAndFixingMonotonicBreaksTwoInvariants) {
    const Seen seen = runs("same-frequency-move", "advance-and-fix-monotonic", 100);
    EXPECT_EQ(seen.of(Invariant::kMonotonicFrozen), 100);  // it counts
    EXPECT_EQ(seen.of(Invariant::kMonotonicNoStep), 100);  // and it is stepped (S1.5)
}

TEST(Claims, CountingFromZeroTakesKvmclockBackWhereVcpu0IsReplugged) {
    EXPECT_EQ(runs("hotplug", "counts-from-zero", 50).of(Invariant::kKvmclockMonotonic), 50);
    EXPECT_EQ(runs("hotplug", "by-value", 50).of(Invariant::kKvmclockMonotonic), 0);
}

TEST(Claims, WithoutTheHeuristicsValuesLeaveVcpusApart) {
    EXPECT_GT(
        runs("same-frequency-move", "host-access-quirk", 50).of(Invariant::kCounterAcrossVcpus),
        40);
    EXPECT_EQ(runs("same-frequency-move", "by-value", 50).of(Invariant::kCounterAcrossVcpus), 0);
}

TEST(Claims, BeforeLinux6_7AFirstWriteNearTheCreationIsLost) {
    EXPECT_GT(runs("old-kernel", "by-value", 20).of(Invariant::kCounterPerVcpu), 0);
    EXPECT_EQ(runs("old-kernel", "continuo-freeze", 20).of(Invariant::kCounterPerVcpu), 0);
}

TEST(Claims, TheTupleByRealtimeGoesBackWhereTheDestinationsClockIsBehind) {
    EXPECT_GT(runs("clock-behind", "precise-tuple", 20).worst(Invariant::kCounterPerVcpu),
              1'000'000'000);
    const Seen continuo = runs("clock-behind", "continuo-advance", 20);
    EXPECT_EQ(continuo.moved, 0);
    EXPECT_EQ(continuo.refused, 20);
}

TEST(Claims, AQuiescedGuestsMonotonicDoesNotCountAndItsRealtimeIsRight) {
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
        const RunResult quiesced = run(scenario("same-frequency-move"), strategy("quiesced"), seed);
        const RunResult forced = run(scenario("same-frequency-move"), strategy("forced"), seed);
        EXPECT_EQ(quiesced.forward_jump_ns, 0);
        EXPECT_LT(std::abs(quiesced.lost_time_ns), 2'000'000);  // the two hosts' clocks
        EXPECT_GT(forced.lost_time_ns, 20'000'000);             // the gap
    }
}

TEST(Claims, ANoticeHoldsEveryStaleReadAndTheGapIsRepaired) {
    const RunResult told =
        run(scenario("same-frequency-move"), strategy("continuo-freeze-and-notify"), 1);
    const RunResult untold = run(scenario("same-frequency-move"), strategy("continuo-freeze"), 1);
    EXPECT_EQ(told.stale_exposure_ns, 0);
    EXPECT_EQ(told.held_ns, 200'000);
    EXPECT_GT(untold.stale_exposure_ns, 1'000'000'000);
    EXPECT_EQ(told.verdicts[Invariant::kNoStaleRealtime].outcome, Outcome::kKept);
    EXPECT_EQ(untold.verdicts[Invariant::kNoStaleRealtime].outcome, Outcome::kNotApplicable);
}

}  // namespace
}  // namespace continuo::sim
