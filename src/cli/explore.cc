// continuo explore: every interleaving of the small protocols, each variant to the last state or to
// a counterexample.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>

#include "command.h"
#include "continuo/explore/counterexample.h"
#include "number.h"
#include "progress.h"
#include "text.h"

namespace continuo::cli {

namespace {

using explore::Outcome;
using explore::Protocol;
using explore::Variant;
using state::ErrorCode;
using state::fail;

constexpr const char* kExample =
    "Every variant is searched to its last state, each state stored whole. A right variant must "
    "be\n"
    "clean, a wrong one (planted) must be caught: the command ends with 1 where one is not.\n"
    "Example:\n"
    "  $ continuo explore --all\n"
    "  $ continuo explore --protocol pvclock-publish --variant arm64-no-load-barriers \\\n"
    "        --counterexample torn.json\n"
    "  $ continuo sim replay torn.json\n";

struct Options {
    bool all = false;
    bool list = false;
    std::string protocol;
    std::string variant;
    bool no_reduction = false;
    std::string limit = "50000000";
    std::string memory = "4096";
    std::string counterexample;
    bool json = false;
};

struct Task {
    const Protocol* protocol = nullptr;
    const Variant* variant = nullptr;
};

/// What came of one variant: an outcome, or the limit that ended it.
struct Finding {
    Task task;
    std::optional<Outcome> outcome;
    std::optional<state::Error> limit;
    double seconds = 0;

    bool as_expected() const {
        if (!outcome) return false;
        if (task.variant->wrong)
            return outcome->violation && outcome->violation->kind == *task.variant->wrong;
        return outcome->complete;
    }
};

Result<std::vector<Task>> tasks(const Options& options) {
    std::vector<Task> out;
    if (options.all || options.list) {
        if (!options.protocol.empty() || !options.variant.empty())
            return fail(ErrorCode::kInvalidArgument, "continuo explore",
                        "--all and --list are of all protocols",
                        "Leave out --protocol and --variant");
        for (const Protocol& protocol : explore::protocols())
            for (const Variant& variant : protocol.variants)
                out.push_back({&protocol, &variant});
        return out;
    }
    if (options.protocol.empty())
        return fail(ErrorCode::kInvalidArgument, "continuo explore", "nothing is asked for",
                    "Give --all, --list, or --protocol NAME [--variant NAME]");
    const auto protocol = explore::find_protocol(options.protocol);
    if (!protocol) return tl::unexpected(protocol.error());
    if (!options.variant.empty()) {
        const auto variant = explore::find_variant(**protocol, options.variant);
        if (!variant) return tl::unexpected(variant.error());
        return std::vector<Task>{{*protocol, *variant}};
    }
    for (const Variant& variant : (*protocol)->variants)
        out.push_back({*protocol, &variant});
    return out;
}

Result<explore::SearchOptions> limits(const Options& options) {
    explore::SearchOptions out;
    const auto states = parse_u64("--limit", options.limit, {.min = 1, .max = UINT32_MAX - 2});
    if (!states) return tl::unexpected(states.error());
    const auto mib = parse_u64("--memory", options.memory, {.min = 1, .max = 1U << 20});
    if (!mib) return tl::unexpected(mib.error());
    out.states_max = *states;
    out.bytes_max = *mib << 20;
    out.reduction = !options.no_reduction;
    return out;
}

Finding search_one(const Task& task, explore::SearchOptions options) {
    const auto system = task.variant->make();
    const bool shows = isatty(STDERR_FILENO) != 0;
    options.progress = task.variant->progress;
    if (shows)
        options.report = [&task](std::uint64_t found, std::uint64_t expanded) {
            std::fprintf(stderr, "\r\033[Kcontinuo: %s %s: %s states, %s to expand",
                         task.protocol->name.c_str(), task.variant->name.c_str(),
                         grouped(found).c_str(), grouped(found - expanded).c_str());
        };
    Finding out{task, {}, {}, 0};
    const auto begun = std::chrono::steady_clock::now();
    auto outcome = explore::search(*system, options);
    out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    if (shows) std::fprintf(stderr, "\r\033[K");
    if (outcome)
        out.outcome = std::move(*outcome);
    else
        out.limit = outcome.error();
    return out;
}

/// The violation with the fewest steps: what the reduction leaves out may be shorter.
explore::Violation shortest(const Finding& finding, explore::SearchOptions options) {
    const auto& found = *finding.outcome->violation;
    if (!options.reduction) return found;
    options.reduction = false;
    options.progress = finding.task.variant->progress;
    const auto again = explore::search(*finding.task.variant->make(), options);
    return again && again->violation ? *again->violation : found;
}

Result<void> write_counterexample(const std::string& path, const Finding& finding,
                                  const explore::SearchOptions& options) {
    const auto told =
        explore::told(*finding.task.protocol, *finding.task.variant, shortest(finding, options));
    std::ofstream file{path, std::ios::binary | std::ios::trunc};
    file << state::json_text(explore::counterexample_to_json(told));
    file.flush();
    if (file) return {};
    return fail(ErrorCode::kIo, path, "the counterexample could not be written",
                "Name a file in a folder that can be written", errno);
}

std::string verdict(const Finding& finding) {
    const bool planted = finding.task.variant->wrong.has_value();
    if (finding.limit) return "NOT COMPLETE: " + finding.limit->what;
    const auto& violation = finding.outcome->violation;
    if (!violation) return planted ? "NOT CAUGHT, complete" : "clean, complete";
    const std::string how = fmt::format("{} after {} steps: {}", name(violation->kind),
                                        violation->path.size(), violation->what);
    return (finding.as_expected() ? "caught: " : "FAILS: ") + how;
}

std::string table_of(const std::vector<Finding>& findings) {
    using Align = Table::Align;
    Table table{{{"protocol"},
                 {"variant"},
                 {"states", Align::kRight},
                 {"transitions", Align::kRight},
                 {"depth", Align::kRight},
                 {"B/state", Align::kRight},
                 {"seconds", Align::kRight},
                 {"verdict"}}};
    for (const Finding& finding : findings) {
        std::vector<std::string> row{finding.task.protocol->name, finding.task.variant->name};
        if (const auto& outcome = finding.outcome)
            row.insert(row.end(), {grouped(outcome->states), grouped(outcome->transitions),
                                   std::to_string(outcome->depth),
                                   std::to_string(outcome->bytes / outcome->states),
                                   fmt::format("{:.2f}", finding.seconds)});
        else
            row.insert(row.end(), {"", "", "", "", fmt::format("{:.2f}", finding.seconds)});
        row.push_back(verdict(finding));
        table.add(std::move(row));
    }
    return table.text();
}

Json to_json(const Finding& finding) {
    Json json;
    json["protocol"] = finding.task.protocol->name;
    json["variant"] = finding.task.variant->name;
    json["planted"] = finding.task.variant->wrong.has_value();
    json["as_expected"] = finding.as_expected();
    json["seconds"] = finding.seconds;
    json["limit"] = finding.limit ? Json(finding.limit->what) : Json(nullptr);
    if (!finding.outcome) return json;
    const Outcome& outcome = *finding.outcome;
    json["complete"] = outcome.complete;
    json["states"] = outcome.states;
    json["transitions"] = outcome.transitions;
    json["depth"] = outcome.depth;
    json["state_bytes"] = outcome.state_bytes;
    json["bytes"] = outcome.bytes;
    json["progress_checked"] = finding.task.variant->progress;
    json["violation"] = nullptr;
    if (outcome.violation)
        json["violation"] = {{"kind", name(outcome.violation->kind)},
                             {"what", outcome.violation->what},
                             {"steps", outcome.violation->path.size()}};
    return json;
}

std::string closing(const std::vector<Finding>& findings) {
    std::uint64_t states = 0;
    double seconds = 0;
    std::size_t clean = 0;
    std::size_t caught = 0;
    std::size_t wrong = 0;
    for (const Finding& finding : findings) {
        if (finding.outcome) states += finding.outcome->states;
        seconds += finding.seconds;
        if (!finding.as_expected())
            ++wrong;
        else
            ++(finding.task.variant->wrong ? caught : clean);
    }
    return fmt::format(
        "\n{} states in {:.1f} s: {} variants clean and complete, {} planted ones "
        "caught, {} otherwise than they should be\n",
        grouped(states), seconds, clean, caught, wrong);
}

Result<ExitCode> list(const std::vector<Task>& all) {
    Table table{{{"protocol"}, {"variant"}, {""}, {"what it is"}}};
    for (const Task& task : all)
        table.add({task.protocol->name, task.variant->name,
                   task.variant->wrong ? "planted" : "right", task.variant->summary});
    return print_text(table.text());
}

Result<ExitCode> print(const std::vector<Finding>& findings, const Options& options) {
    bool holds = true;
    for (const Finding& finding : findings)
        holds = holds && finding.as_expected();
    const ExitCode code = holds ? ExitCode::kDone : ExitCode::kDoesNotHold;
    if (!options.json) return print_text(table_of(findings) + closing(findings), code);
    Json json;
    json["reduction"] = !options.no_reduction;
    json["findings"] = Json::array();
    for (const Finding& finding : findings)
        json["findings"].push_back(to_json(finding));
    return print_json(json, code);
}

Result<ExitCode> run(const Options& options) {
    const auto all = tasks(options);
    if (!all) return tl::unexpected(all.error());
    if (options.list) return list(*all);
    const auto how = limits(options);
    if (!how) return tl::unexpected(how.error());
    std::vector<Finding> findings;
    const Finding* shown = nullptr;
    findings.reserve(all->size());
    for (const Task& task : *all) {
        findings.push_back(search_one(task, *how));
        const Finding& last = findings.back();
        if (last.limit)
            progress("{} {}: {}. {}", task.protocol->name, task.variant->name, last.limit->what,
                     last.limit->advice);
        if (shown == nullptr && last.outcome && last.outcome->violation) shown = &last;
    }
    if (!options.counterexample.empty()) {
        if (shown == nullptr)
            return fail(ErrorCode::kInvalidArgument, "--counterexample",
                        "no variant that was searched fails, so there is none to write",
                        "Choose a planted variant; `continuo explore --list` names them");
        const auto written = write_counterexample(options.counterexample, *shown, *how);
        if (!written) return tl::unexpected(written.error());
        progress("the counterexample of {} is in {}", shown->task.variant->name,
                 options.counterexample);
    }
    return print(findings, options);
}

}  // namespace

void add_explore(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(program, invocation, "explore",
                    "Search every interleaving of the clock protocols", kExample, options, &run);
    command->add_flag("--all", options->all, "Every variant of every protocol");
    command->add_flag("--list", options->list, "Name protocols and variants, and search nothing");
    command->add_option("--protocol", options->protocol, "All variants of this protocol")
        ->type_name("NAME");
    command->add_option("--variant", options->variant, "Of --protocol, this variant alone")
        ->type_name("NAME");
    command->add_flag("--no-reduction", options->no_reduction,
                      "Without partial-order reduction: every state there is");
    command->add_option("--limit", options->limit, "Most states of a variant [50000000]")
        ->type_name("N");
    command->add_option("--memory", options->memory, "Most memory of a search, in MiB [4096]")
        ->type_name("MIB");
    command
        ->add_option("--counterexample", options->counterexample,
                     "Write the first counterexample, with the fewest steps, to this file")
        ->type_name("FILE");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
