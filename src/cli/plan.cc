// continuo plan: what a move would do to each clock of a guest, and why, without moving anything.
#include "continuo/state/plan.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

#include "command.h"
#include "input.h"
#include "number.h"
#include "plan_table.h"
#include "policy_option.h"
#include "text.h"

namespace continuo::cli {

namespace {

using state::ErrorCode;
using state::fail;

constexpr const char* kExample =
    "The record is JSON or the wire format, the destination is JSON; docs/formats/ has both, with\n"
    "an example of each. - stands for standard input.\n"
    "Example:\n"
    "  $ continuo plan --record docs/formats/record.example.json \\\n"
    "      --destination docs/formats/destination.example.json --policy freeze\n";

struct Options {
    std::string record;
    std::string destination;
    std::string policy = "advance";
    std::string gap_limit;
    std::string resume_at;
    bool clamp_gap = false;
    bool json = false;
};

Result<state::Record> read_record(const std::string& path) {
    const auto input = read_file(path);
    if (!input) return tl::unexpected(input.error());
    return to_record(*input);
}

Result<state::Destination> read_destination(const std::string& path) {
    const auto input = read_file(path);
    if (!input) return tl::unexpected(input.error());
    auto destination = state::destination_from_json(text_of(*input));
    if (!destination) return tl::unexpected(in(*input, destination.error()));
    return destination;
}

Result<state::PlanOptions> plan_options(const Options& options) {
    state::PlanOptions out;
    const auto policy = parse_policy(options.policy);
    if (!policy) return tl::unexpected(policy.error());
    out.policy = *policy;
    out.clamp_gap = options.clamp_gap;
    if (!options.gap_limit.empty()) {
        const auto limit = parse_duration("--gap-limit", options.gap_limit);
        if (!limit) return tl::unexpected(limit.error());
        out.gap_limit_ns = *limit;
    }
    if (!options.resume_at.empty()) {
        const auto counter = parse_u64("--resume-at", options.resume_at);
        if (!counter) return tl::unexpected(counter.error());
        out.resume_at = time::Count<time::HostCounter>::from_raw(*counter);
    }
    return out;
}

Result<ExitCode> run(const Options& options) {
    const auto plan_with = plan_options(options);
    if (!plan_with) return tl::unexpected(plan_with.error());
    if (options.record == "-" && options.destination == "-")
        return fail(ErrorCode::kInvalidArgument, "--record, --destination",
                    "standard input cannot be both", "Put one of them into a file");
    const auto record = read_record(options.record);
    if (!record) return tl::unexpected(record.error());
    const auto destination = read_destination(options.destination);
    if (!destination) return tl::unexpected(destination.error());
    const state::PlanResult result = state::plan(*record, *destination, *plan_with);
    const ExitCode code = result ? ExitCode::kDone : ExitCode::kRefused;
    if (options.json) return print_json(state::plan_to_json(result), code);
    if (result) return print_text(plan_table(*result), code);
    return print_text(refusal_text(result.error()), code);
}

}  // namespace

void add_plan(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(program, invocation, "plan",
                                    "Show what a move would do to each clock of a guest, and why",
                                    kExample, options, &run);
    command->add_option("--record", options->record, "The clocks of the stopped guest")
        ->type_name("FILE|-")
        ->required();
    command->add_option("--destination", options->destination, "The host where it is to go on")
        ->type_name("FILE|-")
        ->required();
    add_policy_option(*command, options->policy);
    command
        ->add_option("--gap-limit", options->gap_limit,
                     "Longest gap that is believed, such as 90s, 12h or 30d (the default)")
        ->type_name("DURATION");
    command->add_flag("--clamp-gap", options->clamp_gap,
                      "Clamp a negative or longer gap, and say so, instead of refusing");
    command
        ->add_option("--resume-at", options->resume_at,
                     "The destination's counter at which all vCPUs enter (else its anchor)")
        ->type_name("COUNTER");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
