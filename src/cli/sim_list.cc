// continuo sim list: what there is to name: strategies, invariants, bugs to plant, probes.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>

#include "continuo/sim/bug.h"
#include "continuo/sim/compare.h"
#include "continuo/sim/oracle.h"
#include "continuo/sim/site.h"
#include "continuo/sim/strategy.h"
#include "scenario_choice.h"
#include "sim.h"
#include "text.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Example:\n"
    "  $ continuo sim list --json | jq '.bugs[].name'\n";

struct Options {
    bool json = false;
};

std::string text_of(std::string_view view) {
    return std::string{view};
}

Json named(std::string_view name, std::string_view about) {
    return {{"name", text_of(name)}, {"about", text_of(about)}};
}

Json list_json(const std::vector<sim::Scenario>& scenarios) {
    Json out;
    out["schema"] = "continuo/sim-list/1";
    for (const sim::Strategy* strategy : sim::all_strategies()) {
        out["strategies"].push_back(named(strategy->name(), strategy->about()));
        out["strategies"].back()["thread"] = text_of(strategy->source());
    }
    for (std::size_t i = 0; i < sim::kInvariants; ++i) {
        const auto invariant = static_cast<sim::Invariant>(i);
        out["invariants"].push_back(named(sim::name(invariant), sim::meaning(invariant)));
        out["invariants"].back()["number"] = text_of(sim::number(invariant));
    }
    for (std::size_t i = 1; i < sim::kBugs; ++i) {
        const auto bug = static_cast<sim::Bug>(i);
        out["bugs"].push_back(named(sim::name(bug), sim::meaning(bug)));
    }
    for (std::size_t i = 0; i < sim::kProbes; ++i)
        out["probes"].push_back(text_of(sim::name(static_cast<sim::Probe>(i))));
    for (std::size_t i = 0; i < sim::kQuantities; ++i) {
        const auto quantity = static_cast<sim::Quantity>(i);
        out["quantities"].push_back(named(sim::name(quantity), sim::meaning(quantity)));
    }
    for (const sim::Scenario& scenario : scenarios)
        out["scenarios"].push_back(named(scenario.name, scenario.about));
    return out;
}

std::string list_text(const Json& list) {
    std::string out;
    for (const char* key : {"strategies", "invariants", "bugs", "quantities", "scenarios"}) {
        out += fmt::format("{}{}\n", out.empty() ? "" : "\n", key);
        if (!list.contains(key)) continue;
        for (const Json& item : list[key])
            out += wrapped(item["about"].get<std::string>(),
                           fmt::format("  {:<28}", item["name"].get<std::string>()),
                           std::string(30, ' '));
    }
    return out;
}

Result<ExitCode> run(const Options& options) {
    const auto scenarios = load_scenarios({});
    if (!scenarios) return tl::unexpected(scenarios.error());
    const Json list = list_json(*scenarios);
    return options.json ? print_json(list) : print_text(list_text(list));
}

}  // namespace

void add_sim_list(CLI::App& sim, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(sim, invocation, "list",
                    "List strategies, invariants, bugs to plant, quantities and scenarios",
                    kExample, options, &run);
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
