// continuo vm status, vm resume, vm stop: what an operator asks of a VM and decides about it.
#include <memory>

#include "text.h"
#include "vm.h"

namespace continuo::cli {

namespace {

constexpr const char* kStatusExample =
    "Example:\n"
    "  $ continuo vm status --control /tmp/vm.sock --json\n";
constexpr const char* kResumeExample =
    "For a VM that stands still because nobody could tell whether its migration succeeded. Resume\n"
    "it only where you know that the destination does not run it.\n"
    "Example:\n"
    "  $ continuo vm resume --control /tmp/vm.sock\n";
constexpr const char* kStopExample =
    "Example:\n"
    "  $ continuo vm stop --control /tmp/vm.sock\n";

struct Options {
    std::string control;
    bool json = false;
};

Result<ExitCode> tell(const Options& options, const char* command) {
    const auto path = control_path(options.control);
    if (!path) return tl::unexpected(path.error());
    const auto answer = ask(*path, {{"command", command}}, std::chrono::seconds{30});
    if (!answer) return tl::unexpected(answer.error());
    if (options.json) return print_json(*answer);
    Table table{{{""}, {""}}};
    for (const auto& [key, value] : answer->items())
        table.add({key, value.dump()});
    return print_text(table.text());
}

Result<ExitCode> run_status(const Options& options) {
    return tell(options, "status");
}
Result<ExitCode> run_resume(const Options& options) {
    return tell(options, "resume");
}
Result<ExitCode> run_stop(const Options& options) {
    return tell(options, "stop");
}

void add_one(CLI::App& vm, Invocation& invocation, const std::string& name,
             const std::string& summary, const std::string& example,
             Result<ExitCode> (*run)(const Options&)) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(vm, invocation, name, summary, example, options, run);
    command->add_option("--control", options->control, "The VM's control socket")
        ->type_name("PATH")
        ->required();
    add_json_flag(*command, options->json);
}

}  // namespace

void add_vm_control(CLI::App& vm, Invocation& invocation) {
    add_one(vm, invocation, "status", "Say how a VM is", kStatusExample, &run_status);
    add_one(vm, invocation, "resume", "Let a VM that stands still go on", kResumeExample,
            &run_resume);
    add_one(vm, invocation, "stop", "End a running VM", kStopExample, &run_stop);
}

}  // namespace continuo::cli
