// The program: parses the line, runs the one command that it names, and turns errors into a message
// and an exit code. Whatever is thrown, by CLI11, the JSON library or the heap, ends here.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string_view>

#include "command.h"
#include "compare_command.h"

namespace continuo::cli {

namespace {

std::string footer() {
    return std::string{"Each command has --help with an example. docs/cli.md has all of it.\n"} +
           exit_code_table() + "\n";
}

void set_up(CLI::App& program, Invocation& invocation) {
    program.set_version_flag("--version", "continuo " CONTINUO_VERSION);
    program.require_subcommand(1);
    program.footer(footer());
    program.get_formatter()->column_width(26);
    add_demo(program, invocation);
    add_doctor(program, invocation);
    add_vm(program, invocation);
    add_capture(program, invocation);
    add_scale(program, invocation);
    add_inspect(program, invocation);
    add_plan(program, invocation);
    add_explore(program, invocation);
    add_compare(program, invocation);
    add_sim(program, invocation);
    add_watch(program, invocation);
    add_bench(program, invocation);
    add_version(program, invocation);
}

/// The command for which help is to be shown: the innermost one that the line names.
std::string help_advice(const CLI::App& program) {
    const CLI::App* app = &program;
    std::string path = "continuo";
    while (!app->get_subcommands().empty()) {
        app = app->get_subcommands().front();
        path += " " + app->get_name();
    }
    return "See `" + path + " --help`";
}

/// CLI11's way to say that the line asked for help or the version, or that it is wrong.
ExitCode on_parse_exit(const CLI::App& program, const CLI::ParseError& exit, bool json) {
    if (exit.get_exit_code() == 0) {
        const auto printed = exit.get_name() == "CallForVersion"
                                 ? print_text(std::string{exit.what()} + "\n")
                                 : print_text(program.help());
        return printed ? *printed : report(printed.error(), json);
    }
    return report(
        {state::ErrorCode::kInvalidArgument, "command line", exit.what(), help_advice(program), 0},
        json);
}

ExitCode run_program(int argc, char** argv, bool json) {
    CLI::App program{
        "continuo carries a virtual machine's clocks across its pauses, snapshots and\n"
        "moves, and certifies how well it did.",
        "continuo"};
    Invocation invocation;
    set_up(program, invocation);
    try {
        program.parse(argc, argv);
    } catch (const CLI::ParseError& exit) {
        return on_parse_exit(program, exit, json);
    }
    const auto code = invocation.run();
    return code ? *code : report(code.error(), json);
}

}  // namespace

}  // namespace continuo::cli

int main(int argc, char** argv) {
    using continuo::cli::ExitCode;
    // Known before the line is parsed, because a line that does not parse must be told in JSON too.
    const bool json = std::any_of(
        argv, argv + argc, [](const char* word) { return std::string_view{word} == "--json"; });
    try {
        return static_cast<int>(continuo::cli::run_program(argc, argv, json));
    } catch (const std::bad_alloc&) {
        std::fputs("continuo: error: out of memory\n  do next: free some, and try again\n", stderr);
        return static_cast<int>(ExitCode::kKernel);
    } catch (const std::exception& error) {
        std::fprintf(stderr,
                     "continuo: error: internal: %s\n  do next: this is a bug; please report it "
                     "with the command line\n",
                     error.what());
        return static_cast<int>(ExitCode::kInternal);
    }
}
