// continuo sim replay: takes a counterexample's steps again, one after the other, and says of each
// who took it, what it was, and what it changed.
#include <fmt/format.h>

#include <memory>

#include "continuo/explore/counterexample.h"
#include "input.h"
#include "sim.h"
#include "text.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Example:\n"
    "  $ continuo explore --protocol pvclock-publish --variant arm64-no-load-barriers \\\n"
    "        --counterexample torn.json\n"
    "  $ continuo sim replay torn.json\n"
    "Ends with 0 where every step did what the file says, and the last one fails as it says.\n";

struct Options {
    std::string file;
    bool json = false;
};

std::string shown(const explore::ToldStep& step) {
    std::string out;
    for (const auto& change : step.changes) {
        if (change.field.ends_with(".pc")) continue;  // the text says where the agent is
        if (!out.empty()) out += ", ";
        out += fmt::format("{} {} -> {}", change.field, change.before.empty() ? "-" : change.before,
                           change.after.empty() ? "-" : change.after);
    }
    return out;
}

std::string told(const explore::Counterexample& run) {
    Table table{{{"step", Table::Align::kRight}, {"who"}, {"does"}, {"changed"}}};
    for (std::size_t i = 0; i < run.steps.size(); ++i)
        table.add(
            {std::to_string(i + 1), run.steps[i].agent, run.steps[i].text, shown(run.steps[i])});
    return fmt::format("{}, variant {}\n\n{}\n{}: {}\n", run.protocol, run.variant, table.text(),
                       name(run.kind), run.what);
}

Result<ExitCode> run(const Options& options) {
    const auto input = read_file(options.file);
    if (!input) return tl::unexpected(input.error());
    const auto file = explore::counterexample_from_json(text_of(*input));
    if (!file) return tl::unexpected(in(*input, file.error()));
    const auto replayed = explore::replay(*file);
    if (!replayed) return tl::unexpected(in(*input, replayed.error()));
    if (options.json) return print_json(explore::counterexample_to_json(*replayed));
    return print_text(told(*replayed));
}

}  // namespace

void add_sim_replay(CLI::App& sim, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(
        sim, invocation, "replay", "Replay a counterexample step by step", kExample, options, &run);
    command->add_option("file", options->file, "A counterexample, or - for stdin")
        ->type_name("FILE|-")
        ->required();
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
