// What `continuo compare` and continuo-sweep share: how they are asked, and how they answer.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "command.h"
#include "continuo/sim/compare.h"

namespace continuo::cli {

void add_compare(CLI::App& program, Invocation& invocation);

struct CompareOptions {
    std::vector<std::string> scenarios;
    std::string seeds = "200";
    std::string html;
    bool json = false;
};

/// --scenarios, --seeds, --html, --json.
void add_compare_options(CLI::App& command, CompareOptions& options);

/// Every strategy in these scenarios with the seeds of the options.
Result<sim::Work> compare_work(const CompareOptions& options, std::vector<sim::Scenario> scenarios);

/// Decides the claims, writes the page and prints the rest. kDoesNotHold where a scenario's
/// [[must_keep]] was broken.
Result<ExitCode> print_comparison(const CompareOptions& options, const sim::Comparison& comparison);

}  // namespace continuo::cli
