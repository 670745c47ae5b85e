// What every command is made of: it adds itself to the command line, and hands back what to run.
// A command prints its result on stdout, as a table or as one JSON document, and returns an exit
// code or a typed error; main.cc prints errors. Nothing of a command runs while the line is parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "continuo/state/error.h"
#include "continuo/state/json.h"
#include "exit_code.h"

namespace continuo::cli {

using state::Json;
using state::Result;

/// The command that the line names, with its options bound.
struct Invocation {
    std::function<Result<ExitCode>()> run;
};

void add_bench(CLI::App& program, Invocation& invocation);
void add_capture(CLI::App& program, Invocation& invocation);
void add_demo(CLI::App& program, Invocation& invocation);
void add_doctor(CLI::App& program, Invocation& invocation);
void add_explore(CLI::App& program, Invocation& invocation);
void add_scale(CLI::App& program, Invocation& invocation);
void add_inspect(CLI::App& program, Invocation& invocation);
void add_plan(CLI::App& program, Invocation& invocation);
void add_sim(CLI::App& program, Invocation& invocation);
void add_version(CLI::App& program, Invocation& invocation);
void add_vm(CLI::App& program, Invocation& invocation);
void add_watch(CLI::App& program, Invocation& invocation);

/// Adds a command of this name: `run` is called with its options once the whole line is parsed.
/// `example` stands at the end of its --help.
template <class Options>
CLI::App* add_command(CLI::App& parent, Invocation& invocation, const std::string& name,
                      const std::string& summary, const std::string& example,
                      const std::shared_ptr<Options>& options,
                      Result<ExitCode> (*run)(const Options&)) {
    CLI::App* command = parent.add_subcommand(name, summary);
    command->footer(example);
    command->callback(
        [&invocation, options, run] { invocation.run = [options, run] { return run(*options); }; });
    return command;
}

/// The --json of a command that prints results.
void add_json_flag(CLI::App& command, bool& json);

/// Prints text or a JSON document on stdout. kIo where stdout does not take it.
Result<ExitCode> print_text(std::string_view text, ExitCode code = ExitCode::kDone);
Result<ExitCode> print_json(const Json& json, ExitCode code = ExitCode::kDone);

/// The error on stderr for people: what, where, what to do next; with `json` also as one JSON
/// document on stdout. The exit code that goes with it.
ExitCode report(const state::Error& error, bool json);

}  // namespace continuo::cli
