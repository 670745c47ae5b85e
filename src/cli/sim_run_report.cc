#include "sim_run_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "text.h"

namespace continuo::cli {

namespace {

using sim::Invariant;
using sim::Outcome;
using sim::RunResult;
using state::Json;

std::string text_of(std::string_view view) {
    return std::string{view};
}

/// Which run stands at an index of the list.
struct Place {
    const sim::Scenario& scenario;
    const sim::Strategy& strategy;
};
Place place_of(const RunList& list, std::size_t index) {
    const std::size_t cell = index / static_cast<std::size_t>(list.work.seeds.count());
    const std::size_t scenarios = list.work.scenarios.size();
    return {list.work.scenarios[cell % scenarios], *list.work.strategies[cell / scenarios]};
}

std::string_view outcome_name(Outcome outcome) {
    switch (outcome) {
        case Outcome::kKept:
            return "kept";
        case Outcome::kBroken:
            return "broken";
        case Outcome::kNotApplicable:
            break;
    }
    return "not_promised";
}

Json verdicts_json(const RunResult& result) {
    Json out;
    for (std::size_t i = 0; i < sim::kInvariants; ++i) {
        const auto invariant = static_cast<Invariant>(i);
        const sim::Verdict& verdict = result.verdicts[invariant];
        Json& to = out[text_of(sim::name(invariant))];
        to["outcome"] = text_of(outcome_name(verdict.outcome));
        if (verdict.outcome != Outcome::kBroken) continue;
        to["by_ns"] = verdict.by_ns;
        to["times"] = verdict.times;
        to["vcpu"] = verdict.vcpu;
        to["at_ns"] = sim::floor_ns(verdict.at);
    }
    return out;
}

Json run_json(const RunList& list, std::size_t index) {
    const RunResult& result = list.results[index];
    const Place place = place_of(list, index);
    Json out;
    out["scenario"] = place.scenario.name;
    out["strategy"] = text_of(place.strategy.name());
    out["seed"] = result.seed;
    out["ending"] = text_of(sim::name(result.ending));
    out["reason"] = text_of(result.reason);
    out["verdicts"] = verdicts_json(result);
    for (std::size_t i = 0; i < sim::kQuantities; ++i) {
        const auto quantity = static_cast<sim::Quantity>(i);
        out["quantities"][text_of(sim::name(quantity)) + "_ns"] =
            sim::quantity_of(result, quantity);
    }
    out["probes"] = Json::array();
    for (std::size_t i = 0; i < sim::kProbes; ++i)
        if ((result.probes & sim::bit(static_cast<sim::Probe>(i))) != 0)
            out["probes"].push_back(text_of(sim::name(static_cast<sim::Probe>(i))));
    out["steps"] = result.steps;
    out["hash"] = fmt::format("{:#018x}", result.hash);
    return out;
}

/// "kvmclock_monotonic by 1.2 us, ...", or "all kept", or why there is no verdict.
std::string verdicts_text(const RunResult& result) {
    std::string broken;
    for (std::size_t i = 0; i < sim::kInvariants; ++i) {
        const auto invariant = static_cast<Invariant>(i);
        if (result.verdicts.kept(invariant)) continue;
        broken += fmt::format("{}{} by {}", broken.empty() ? "broken: " : ", ",
                              sim::name(invariant), show_ns(result.verdicts[invariant].by_ns));
    }
    if (!broken.empty()) return broken;
    return result.ending == sim::Ending::kMoved ? "all kept" : text_of(result.reason);
}

}  // namespace

std::vector<RunLapse> lapses(const RunList& list) {
    std::vector<RunLapse> out;
    for (std::size_t i = 0; i < list.results.size(); ++i) {
        const Place place = place_of(list, i);
        for (std::size_t j = 0; j < sim::kInvariants; ++j) {
            const auto invariant = static_cast<Invariant>(j);
            if (!list.results[i].verdicts.kept(invariant) &&
                place.scenario.must_keep(place.strategy, invariant))
                out.push_back({i, invariant});
        }
    }
    return out;
}

Json run_list_json(const RunList& list) {
    Json out;
    out["schema"] = "continuo/sim-run/1";
    out["bug"] = text_of(sim::name(list.work.bug));
    out["runs"] = Json::array();
    for (std::size_t i = 0; i < list.results.size(); ++i)
        out["runs"].push_back(run_json(list, i));
    out["lapses"] = Json::array();
    for (const RunLapse& lapse : lapses(list)) {
        const Place place = place_of(list, lapse.result);
        out["lapses"].push_back({{"scenario", place.scenario.name},
                                 {"strategy", text_of(place.strategy.name())},
                                 {"seed", list.results[lapse.result].seed},
                                 {"invariant", text_of(sim::name(lapse.invariant))}});
    }
    return out;
}

std::string run_list_text(const RunList& list) {
    using Align = Table::Align;
    Table table{
        {{"scenario"}, {"strategy"}, {"seed", Align::kRight}, {"hash"}, {"ending"}, {"verdict"}}};
    for (std::size_t i = 0; i < list.results.size(); ++i) {
        const RunResult& result = list.results[i];
        const Place place = place_of(list, i);
        table.add({place.scenario.name, text_of(place.strategy.name()), std::to_string(result.seed),
                   fmt::format("{:016x}", result.hash), text_of(sim::name(result.ending)),
                   verdicts_text(result)});
    }
    std::string out = table.text();
    const std::vector<RunLapse> all = lapses(list);
    for (const RunLapse& lapse : all) {
        const Place place = place_of(list, lapse.result);
        out += fmt::format("must be kept and was not: {} in {} by {}, seed {}\n",
                           sim::name(lapse.invariant), place.scenario.name, place.strategy.name(),
                           list.results[lapse.result].seed);
    }
    return out + fmt::format("{} runs; {} that a scenario says must be kept\n", list.results.size(),
                             all.empty() ? "none broke anything"
                                         : "some broke what stands above, all of it");
}

}  // namespace continuo::cli
