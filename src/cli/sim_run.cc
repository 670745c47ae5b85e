// continuo sim run: single runs of the simulator, each with its verdicts, seed and hash.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "continuo/sim/compare.h"
#include "continuo/sim/run.h"
#include "run_progress.h"
#include "scenario_choice.h"
#include "sim.h"
#include "sim_run_report.h"
#include "text.h"

namespace continuo::cli {

namespace {

using state::ErrorCode;
using state::fail;

constexpr const char* kExample =
    "The same scenario, strategy, seed and bug give the same run, to the hash. What a scenario "
    "says\n"
    "must be kept ([[must_keep]]) and was not ends it with 1.\n"
    "Example:\n"
    "  $ continuo sim run tests/scenarios/*.toml\n"
    "  $ continuo sim run tests/scenarios/plain.toml --strategy by-value --seeds 7..7 --json\n";

struct Options {
    std::vector<std::string> files;
    std::string seeds = "1";
    std::vector<std::string> strategies;
    std::string jobs;
    std::string bug;
    bool json = false;
};

/// Listed one by one, and in memory until they are printed.
constexpr std::uint64_t kRunsMax = 100'000;

std::string names_of_strategies() {
    std::string all;
    for (const sim::Strategy* strategy : sim::all_strategies())
        all += (all.empty() ? "" : ", ") + std::string{strategy->name()};
    return all;
}

Result<std::vector<const sim::Strategy*>> chosen(const std::vector<std::string>& names) {
    const auto all = sim::all_strategies();
    if (names.empty()) return std::vector<const sim::Strategy*>{all.begin(), all.end()};
    std::vector<const sim::Strategy*> out;
    for (const std::string& name : names) {
        const sim::Strategy* const strategy = sim::strategy_from_name(name);
        if (strategy == nullptr)
            return fail(ErrorCode::kInvalidArgument, "--strategy",
                        fmt::format("there is no strategy \"{}\"", printable(name)),
                        "There are " + names_of_strategies());
        out.push_back(strategy);
    }
    return out;
}

Result<sim::Bug> chosen_bug(const std::string& name) {
    if (name.empty()) return sim::Bug::kNone;
    if (const auto bug = sim::bug_from_name(name)) return *bug;
    std::string all;
    for (std::size_t i = 1; i < sim::kBugs; ++i)
        all += (i == 1 ? "" : ", ") + std::string{sim::name(static_cast<sim::Bug>(i))};
    return fail(ErrorCode::kInvalidArgument, "--bug",
                fmt::format("there is no bug \"{}\" to plant", printable(name)),
                "There are " + all);
}

Result<sim::Work> work_of(const Options& options) {
    auto scenarios = load_scenarios(options.files);
    if (!scenarios) return tl::unexpected(scenarios.error());
    const auto seeds = parse_seeds("--seeds", options.seeds);
    if (!seeds) return tl::unexpected(seeds.error());
    auto strategies = chosen(options.strategies);
    if (!strategies) return tl::unexpected(strategies.error());
    const auto bug = chosen_bug(options.bug);
    if (!bug) return tl::unexpected(bug.error());
    sim::Work work{*std::move(scenarios), *std::move(strategies), *seeds, *bug};
    if (work.runs() > kRunsMax)
        return fail(
            ErrorCode::kInvalidArgument, "--seeds",
            fmt::format("{} runs, and at most {} are listed one by one", work.runs(), kRunsMax),
            "Ask for fewer, or use `continuo compare`, which has no such limit");
    return work;
}

Result<ExitCode> run(const Options& options) {
    const auto work = work_of(options);
    if (!work) return tl::unexpected(work.error());
    const auto jobs = parse_jobs("--jobs", options.jobs);
    if (!jobs) return tl::unexpected(jobs.error());
    RunProgress progress;
    const std::vector<sim::RunResult> results =
        sim::run_each(*work, *jobs, [&progress](std::uint64_t done, std::uint64_t runs) {
            progress.show_share("runs", done, runs);
        });
    progress.end();
    const RunList list{*work, results};
    const ExitCode code = lapses(list).empty() ? ExitCode::kDone : ExitCode::kDoesNotHold;
    return options.json ? print_json(run_list_json(list), code)
                        : print_text(run_list_text(list), code);
}

}  // namespace

void add_sim_run(CLI::App& sim, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(sim, invocation, "run", "Run scenarios, and say what became of each invariant",
                    kExample, options, &run);
    command->add_option("files", options->files, "Scenario files, or folders of *.toml")
        ->type_name("FILE...")
        ->required();
    command->add_option("--seeds", options->seeds, "Seeds: A..B, or N for 1 to N (else 1)")
        ->type_name("A..B|N");
    command
        ->add_option("--strategy", options->strategies,
                     "One strategy; may be given again (else all of them)")
        ->type_name("S");
    command->add_option("--jobs", options->jobs, "Threads (else one for each processor)")
        ->type_name("N");
    command->add_option("--bug", options->bug, "Plant this bug")->type_name("B");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
