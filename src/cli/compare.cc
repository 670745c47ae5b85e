// continuo compare: every strategy in every scenario, held against the invariants, and what the
// runs make of the claims of the threads; as text, JSON, or a page with charts.
#include "continuo/sim/compare.h"

#include <memory>
#include <string>
#include <utility>

#include "compare_command.h"
#include "run_progress.h"
#include "scenario_choice.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Without --scenarios it takes those that the program was built with (tests/scenarios/). What "
    "a\n"
    "scenario says must be kept and was not ends it with 1; a strategy that breaks what nobody\n"
    "asked of it does not.\n"
    "Example:\n"
    "  $ continuo compare --html report.html\n"
    "  $ continuo compare --scenarios tests/scenarios --seeds 1000 --json\n";

struct Options {
    CompareOptions compare;
    std::string jobs;
};

Result<ExitCode> run(const Options& options) {
    auto scenarios = load_scenarios(options.compare.scenarios);
    if (!scenarios) return tl::unexpected(scenarios.error());
    auto work = compare_work(options.compare, *std::move(scenarios));
    if (!work) return tl::unexpected(work.error());
    const auto jobs = parse_jobs("--jobs", options.jobs);
    if (!jobs) return tl::unexpected(jobs.error());
    RunProgress progress;
    const sim::Comparison comparison =
        sim::compare(*std::move(work), *jobs, [&progress](std::uint64_t done, std::uint64_t runs) {
            progress.show_share("runs", done, runs);
        });
    progress.end();
    return print_comparison(options.compare, comparison);
}

}  // namespace

void add_compare(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(
        program, invocation, "compare",
        "Hold every design against every scenario, and the threads' claims against both", kExample,
        options, &run);
    add_compare_options(*command, options->compare);
    command->add_option("--jobs", options->jobs, "Threads (else one for each processor)")
        ->type_name("N");
}

}  // namespace continuo::cli
