#include "compare_command.h"

#include <fmt/format.h>

#include <utility>

#include "compare_report.h"
#include "continuo/sim/claims.h"
#include "report_page.h"
#include "run_progress.h"
#include "scenario_choice.h"

namespace continuo::cli {

namespace {

std::vector<RuledClaim> rule_all(const sim::Comparison& comparison) {
    RunProgress progress;
    std::vector<RuledClaim> out;
    for (const sim::Claim& claim : sim::claims()) {
        progress.show(fmt::format("claim {} of {}", out.size() + 1, sim::claims().size()));
        out.push_back({&claim, claim.decide(comparison)});
    }
    return out;
}

}  // namespace

void add_compare_options(CLI::App& command, CompareOptions& options) {
    command.add_option("--scenarios", options.scenarios, "Scenario files, or folders of *.toml")
        ->type_name("DIR|FILE...");
    command
        .add_option("--seeds", options.seeds,
                    "Seeds of each scenario: N for 1 to N, or A..B (else 200)")
        ->type_name("N|A..B");
    command.add_option("--html", options.html, "Also write one page with charts, self-contained")
        ->type_name("FILE");
    add_json_flag(command, options.json);
}

Result<sim::Work> compare_work(const CompareOptions& options,
                               std::vector<sim::Scenario> scenarios) {
    const auto seeds = parse_seeds("--seeds", options.seeds);
    if (!seeds) return tl::unexpected(seeds.error());
    const auto strategies = sim::all_strategies();
    return sim::Work{std::move(scenarios), {strategies.begin(), strategies.end()}, *seeds};
}

Result<ExitCode> print_comparison(const CompareOptions& options,
                                  const sim::Comparison& comparison) {
    const std::vector<RuledClaim> claims = rule_all(comparison);
    const ExitCode code =
        sim::lapses(comparison).empty() ? ExitCode::kDone : ExitCode::kDoesNotHold;
    if (options.html.empty() && !options.json)
        return print_text(compare_text(comparison, claims), code);
    const Json document = compare_json(comparison, claims);
    if (!options.html.empty())
        if (const auto written = write_page(options.html, ReportPage::kCompare, document); !written)
            return tl::unexpected(written.error());
    if (options.json) return print_json(document, code);
    return print_text(compare_text(comparison, claims), code);
}

}  // namespace continuo::cli
