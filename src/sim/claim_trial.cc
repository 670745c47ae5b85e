#include "claim_trial.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "continuo/state/error.h"

namespace continuo::sim {

namespace {

/// What differs from the defaults of a scenario; claims set the rest field by field.
constexpr std::string_view kPlain = R"(
name = "plain"
about = "two hosts whose clocks agree; what a claim varies is all that can go wrong"
[[host]]
tsc_sub_khz_hz = [0, 999]
drift_ppb = [-40_000, 40_000]
rate_bound_ppb = 100_000
counter_start = { up_to = 1_000_000_000_000_000 }
[[host]]
tsc_sub_khz_hz = [0, 999]
drift_ppb = [-40_000, 40_000]
rate_bound_ppb = 100_000
counter_start = { up_to = 1_000_000_000_000_000 }
[vmm]
cost_ns = [200, 2_000]
jitter_ns = [0, 200]
[[move]]
)";

}  // namespace

Scenario plain_scenario() {
    auto scenario = parse_scenario(kPlain, "plain scenario of the claims");
    CONTINUO_CHECK(scenario.has_value());
    return *std::move(scenario);
}

Tally trial(const Scenario& scenario, std::string_view strategy, Bug bug) {
    const Strategy* const found = strategy_from_name(strategy);
    CONTINUO_CHECK(found != nullptr);
    constexpr std::uint64_t last_seed = 200;
    Tally tally;
    for (std::uint64_t seed = 1; seed <= last_seed; ++seed)
        tally.add(run(scenario, *found, seed, bug), 0, {0, seed});
    return tally;
}

Tally everywhere(const Comparison& comparison, std::string_view strategy) {
    const auto& strategies = comparison.work.strategies;
    Tally sum;
    for (std::size_t i = 0; i < strategies.size(); ++i)
        if (strategies[i]->name() == strategy) sum.merge(comparison.tallies.total(i));
    return sum;
}

std::string in_units(std::uint64_t ns) {
    struct Unit {
        std::uint64_t ns;
        const char* name;
    };
    constexpr std::array units{Unit{86'400'000'000'000, "d"}, Unit{3'600'000'000'000, "h"},
                               Unit{1'000'000'000, "s"}, Unit{1'000'000, "ms"}, Unit{1'000, "us"}};
    for (const Unit& unit : units)
        if (ns >= unit.ns)
            return fmt::format(
                "{}.{:03} {}", ns / unit.ns,
                static_cast<std::uint64_t>(static_cast<time::u128>(ns % unit.ns) * 1000 / unit.ns),
                unit.name);
    return fmt::format("{} ns", ns);
}

std::string of_runs(std::uint64_t part, std::uint64_t whole) {
    return fmt::format("{} of {} runs", part, whole);
}

std::string spread_text(const Spread& spread) {
    if (spread.count() == 0) return "no run";
    return fmt::format("median {}, at most {}", in_units(spread.median()), in_units(spread.max()));
}

std::string tally_text(const InvariantTally& tally) {
    if (tally.checked == 0) return "nothing to hold it against";
    if (tally.broken == 0) return "kept in " + of_runs(tally.checked, tally.checked);
    return fmt::format("broken in {}, by up to {}", of_runs(tally.broken, tally.checked),
                       in_units(tally.worst.value));
}

Ruling ruling(bool holds, std::string figures, std::string otherwise) {
    if (holds) return {Standing::kReproduced, std::move(figures), {}};
    return {Standing::kNotReproduced, std::move(figures), std::move(otherwise)};
}

Ruling undecided(std::string why) {
    return {Standing::kUndecided, {}, std::move(why)};
}

}  // namespace continuo::sim
