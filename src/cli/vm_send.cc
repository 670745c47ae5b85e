// continuo vm send: has a running VM migrate to where a `vm receive` listens.
#include <fmt/format.h>

#include <memory>

#include "continuo/vmm/address.h"
#include "text.h"
#include "vm.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "The VM's process keeps it until the destination has said that it runs: whatever fails, "
    "exactly\n"
    "one VM is left, and the error says where.\n"
    "Example:\n"
    "  $ continuo vm send --control /tmp/vm.sock --to tcp:192.0.2.7:7000\n";

struct Options {
    std::string control;
    std::string to;
    bool json = false;
};

/// Longer than a migration's own time limits together.
constexpr std::chrono::minutes kPatience{10};

Result<ExitCode> run(const Options& options) {
    const auto address = vmm::parse_address(options.to);
    if (!address) return tl::unexpected(address.error());
    const auto path = control_path(options.control);
    if (!path) return tl::unexpected(path.error());
    const auto answer = ask(*path, {{"command", "send"}, {"to", options.to}}, kPatience);
    if (!answer) return tl::unexpected(answer.error());
    if (options.json) return print_json(*answer);
    Table table{{{""}, {""}}};
    table.add({"outcome", answer->value("outcome", "")});
    const auto stats = answer->find("migration");
    if (stats != answer->end())
        for (const auto& [key, value] : stats->items())
            table.add({key, value.dump()});
    return print_text(table.text());
}

}  // namespace

void add_vm_send(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(vm, invocation, "send", "Migrate a running VM live", kExample, options, &run);
    command->add_option("--control", options->control, "The VM's control socket")
        ->type_name("PATH")
        ->required();
    command->add_option("--to", options->to, "Where `vm receive` listens")
        ->type_name("unix:PATH|tcp:HOST:PORT")
        ->required();
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
