// Thousands of moves between hosts that know nothing for sure: whatever a plan says within a bound
// is true, and an oracle that says so notices when it is not. CONTINUO_SEEDS=N runs more.
#include "continuo/model/two_hosts.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

namespace continuo::model {
namespace {

using state::BoundSource;
using state::ElapsedBy;
using state::Plan;

std::uint64_t seeds() {
    const char* more = std::getenv("CONTINUO_SEEDS");
    return more != nullptr ? std::strtoull(more, nullptr, 10) : 20'000;
}

std::string joined(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines)
        text += line + "\n";
    return text;
}

bool told(const Plan& plan, const char* what) {
    for (const std::string& note : plan.notes)
        if (note.find(what) != std::string::npos) return true;
    return false;
}

TEST(TwoHosts, EveryBoundHoldsTheTruthForEverySeed) {
    std::uint64_t by_exchange = 0;
    std::uint64_t by_tai_beside_an_exchange = 0;
    std::uint64_t wrong_clocks_told = 0;
    std::uint64_t unsynchronised_told = 0;
    for (std::uint64_t seed = 0; seed < seeds(); ++seed) {
        const TwoHosts world = TwoHosts::of(seed);
        const auto plan = state::plan(world.record, world.here, world.options);
        if (!plan) {
            // Only a clock can be so wrong, and only where there was nothing else.
            ASSERT_FALSE(world.clocks_are_honest) << seed << ": " << plan.error().front().message;
            ASSERT_TRUE(world.here.exchange.empty()) << seed << plan.error().front().message;
            continue;
        }
        const auto wrong = untrue(world, *plan);
        ASSERT_TRUE(wrong.empty()) << "seed " << seed << "\n" << joined(wrong);
        const bool exchanged = plan->measures.by_exchange.has_value();
        by_exchange += plan->elapsed_by == ElapsedBy::kExchange ? 1U : 0U;
        by_tai_beside_an_exchange += exchanged && plan->elapsed_by == ElapsedBy::kTai ? 1U : 0U;
        if (told(*plan, "is wrong by at least")) {
            ++wrong_clocks_told;
            ASSERT_FALSE(world.clocks_are_honest) << seed << ": an honest clock is called wrong";
            ASSERT_EQ(plan->elapsed_by, ElapsedBy::kExchange) << seed;
        }
        unsynchronised_told += told(*plan, "STA_UNSYNC") ? 1U : 0U;
        ASSERT_EQ(told(*plan, "STA_UNSYNC"),
                  !world.source.synchronised || !world.destination.synchronised)
            << seed;
    }
    // Situations that must have been met.
    EXPECT_GT(by_exchange, seeds() / 20);
    EXPECT_GT(by_tai_beside_an_exchange, seeds() / 200);
    EXPECT_GT(wrong_clocks_told, seeds() / 20);
    EXPECT_GT(unsynchronised_told, seeds() / 20);
}

TEST(TwoHosts, TheSameSeedIsTheSameWorld) {
    for (std::uint64_t seed = 0; seed < 100; ++seed) {
        const TwoHosts once = TwoHosts::of(seed);
        const TwoHosts again = TwoHosts::of(seed);
        EXPECT_EQ(once.record, again.record);
        EXPECT_EQ(once.here.exchange, again.here.exchange);
        EXPECT_EQ(once.uninterrupted, again.uninterrupted);
    }
}

TEST(TwoHosts, MoreRoundsNeverMakeItWorse) {
    for (std::uint64_t seed = 0; seed < 2'000; ++seed) {
        TwoHosts world = TwoHosts::of(seed);
        std::optional<std::uint64_t> before;
        const state::Exchange all = world.here.exchange;
        world.here.exchange.clear();
        for (const state::ExchangeRound& round : all) {
            world.here.exchange.push_back(round);
            const auto plan = state::plan(world.record, world.here, world.options);
            ASSERT_TRUE(plan) << seed;
            const auto& measure = *plan->measures.by_exchange;
            const std::uint64_t now = measure.bracket_ns + measure.drift_ns;
            if (before) {
                // The middle of a narrower interval is rounded down again: 1 ns.
                ASSERT_LE(now, *before + 1) << seed;
            }
            before = now;
        }
    }
}

// ---- Bugs: what the planner would do wrong, done to what goes in or comes out of it ----

state::Bound without(const state::Bound& bound, BoundSource dropped) {
    state::Bound rest;
    for (const state::BoundTerm& term : bound)
        if (term.source != dropped) rest.add(term.source, term.size);
    return rest;
}

struct Bug {
    const char* name;
    std::function<void(TwoHosts&)> before;  ///< what the planner takes for what it was told
    std::function<void(Plan&)> after;       ///< what it leaves out of its answer
};

void PrintTo(const Bug& bug, std::ostream* out) {
    *out << bug.name;
}

std::function<void(Plan&)> drop(BoundSource source) {
    return [source](Plan& plan) {
        for (auto& tsc : plan.tsc)
            tsc.bound = without(tsc.bound, source);
        plan.kvmclock->bound = without(plan.kvmclock->bound, source);
    };
}

std::function<void(TwoHosts&)> each_round(void (*change)(state::ExchangeRound&, const TwoHosts&)) {
    return [change](TwoHosts& world) {
        for (state::ExchangeRound& round : world.here.exchange)
            change(round, world);
    };
}

const Bug kBugs[] = {
    {"the frequency term is left out", {}, drop(BoundSource::kFrequency)},
    {"the bracket is left out", {}, drop(BoundSource::kExchange)},
    {"the source's TAI bound is left out", {}, drop(BoundSource::kSourceTai)},
    {"the destination's TAI bound is left out", {}, drop(BoundSource::kDestinationTai)},
    {"asked is taken for the middle",
     each_round([](state::ExchangeRound& round, const TwoHosts&) {
         round.heard = round.asked;
         round.answered = round.received;
     }),
     {}},
    {"heard is taken for the middle",
     each_round([](state::ExchangeRound& round, const TwoHosts&) {
         round.asked = round.heard;
         round.received = round.answered;
     }),
     {}},
    {"the way from the exchange to the stop has the wrong sign",
     each_round([](state::ExchangeRound& round, const TwoHosts& world) {
         const auto anchor = world.record.anchor.counter;
         const auto received = anchor + (anchor - round.answered);
         round.answered = anchor + (anchor - round.received);
         round.received = received;
     }),
     {}},
    {"the counters are taken to run as stated",
     [](TwoHosts& world) {
         world.record.anchor.rate_bound_ppb = 0;
         world.here.anchor.rate_bound_ppb = 0;
     },
     {}},
    {"the source's rate alone is taken to be as stated",
     [](TwoHosts& world) { world.record.anchor.rate_bound_ppb = 0; },
     {}},
    {"STA_UNSYNC is not looked at",
     [](TwoHosts& world) {
         world.record.anchor.synchronised = true;
         world.here.anchor.synchronised = true;
     },
     {}},
    {"the gap is a microsecond short",
     {},
     [](Plan& plan) {
         plan.gap = plan.gap - time::Nanos<time::Tai>::from_raw(1'000);
         for (auto& tsc : plan.tsc)
             tsc.at_resume = tsc.at_resume - time::Ticks<time::GuestCounter>::from_raw(1'000);
     }},
};

class PlantedBug : public testing::TestWithParam<Bug> {};

TEST_P(PlantedBug, IsFound) {
    std::uint64_t found = 0;
    for (std::uint64_t seed = 0; seed < 4'000 && found == 0; ++seed) {
        const TwoHosts truth = TwoHosts::of(seed);
        TwoHosts told = truth;
        if (GetParam().before) GetParam().before(told);
        auto plan = state::plan(told.record, told.here, told.options);
        if (!plan) {
            // Refused where the truth is planned: found too.
            found += state::plan(truth.record, truth.here, truth.options) ? 1U : 0U;
            continue;
        }
        if (GetParam().after) GetParam().after(*plan);
        found += untrue(truth, *plan).empty() ? 0U : 1U;
    }
    EXPECT_GT(found, 0U) << "4000 moves and nobody noticed that " << GetParam().name;
}

INSTANTIATE_TEST_SUITE_P(Each, PlantedBug, testing::ValuesIn(kBugs), [](const auto& bug) {
    std::string name{bug.param.name};
    for (char& c : name)
        if (c == ' ' || c == '\'') c = '_';
    return name;
});

}  // namespace
}  // namespace continuo::model
