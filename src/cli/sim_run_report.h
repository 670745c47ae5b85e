// Runs of the simulator one by one, as text and as a JSON document.
#pragma once

#include <string>
#include <vector>

#include "continuo/sim/compare.h"
#include "continuo/state/json.h"

namespace continuo::cli {

/// Results in the order of the work: strategy by strategy, in each scenario by scenario, in each
/// seed by seed. Lifetime: that of what it refers to.
struct RunList {
    const sim::Work& work;
    const std::vector<sim::RunResult>& results;
};

/// A run that broke what its scenario says must be kept.
struct RunLapse {
    std::size_t result = 0;
    sim::Invariant invariant{};
};
std::vector<RunLapse> lapses(const RunList& list);

/// docs/cli.md has the schema, continuo/sim-run/1.
state::Json run_list_json(const RunList& list);
std::string run_list_text(const RunList& list);

}  // namespace continuo::cli
