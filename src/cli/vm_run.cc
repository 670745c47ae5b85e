// continuo vm run: boots the witness guest and runs it until told otherwise.
#include <fmt/format.h>

#include <memory>

#include "progress.h"
#include "running_vm.h"
#include "text.h"
#include "vm.h"
#include "vm_options.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "The guest is the witness: every vCPU reads its clocks (TSC and kvmclock; arm64: CNTVCT and\n"
    "CNTPCT) without pause and writes down every backward step, jump and skew. Ends with 1 where "
    "it\n"
    "has seen a clock go backwards.\n"
    "Example:\n"
    "  $ continuo vm run --vcpus 4 --control /tmp/vm.sock &\n"
    "  $ continuo capture --control /tmp/vm.sock\n"
    "  $ continuo vm send --control /tmp/vm.sock --to tcp:there:7000\n";

struct Options {
    WitnessOptions witness;
    std::string control;
    std::string run_for;
    bool json = false;
};

std::string summary_text(const VmRun& run, const Json& json) {
    Table table{{{""}, {""}}};
    table.add({"ended by", std::string{name(run.end)}});
    for (const auto& [key, value] : json.items())
        if (value.is_number()) table.add({key, value.dump()});
    return table.text();
}

Result<ExitCode> run(const Options& options) {
    const auto shape = parse_witness_options(options.witness);
    if (!shape) return tl::unexpected(shape.error());
    const auto run_for = parse_run_for(options.run_for);
    if (!run_for) return tl::unexpected(run_for.error());
    auto control = open_control(options.control);
    if (!control) return tl::unexpected(std::move(control.error()));
    const auto host = examine_local_host();
    if (!host) return tl::unexpected(host.error());
    auto machine = boot_witness(host->system, *shape);
    if (!machine) return tl::unexpected(std::move(machine.error()));
    end_vms_by_signals();
    progress("the witness runs on {} vCPUs", shape->vm.vcpus);
    auto ended = run_vm(*host, std::move(*machine), *control ? &**control : nullptr, *run_for);
    if (!ended) return tl::unexpected(std::move(ended.error()));
    return print_vm_run(*ended, options.json);
}

}  // namespace

Result<std::optional<ControlServer>> open_control(const std::string& text) {
    if (text.empty()) return std::nullopt;
    const auto path = control_path(text);
    if (!path) return tl::unexpected(path.error());
    auto server = ControlServer::open(*path);
    if (!server) return tl::unexpected(std::move(server.error()));
    return std::optional<ControlServer>{std::move(*server)};
}

Result<ExitCode> print_vm_run(const VmRun& run, bool as_json) {
    const Json witness = run.vm->machine() != nullptr ? witness_json(*run.vm->machine()) : Json{};
    const bool backwards =
        witness.is_object() && witness.at("backward_steps").get<std::uint64_t>() != 0;
    const ExitCode code = backwards ? ExitCode::kDoesNotHold : ExitCode::kDone;
    const Json migration = run.stats ? stats_json(*run.stats) : Json{};
    if (!as_json) return print_text(summary_text(run, run.stats ? migration : witness), code);
    Json json;
    json["ended_by"] = name(run.end);
    json["witness"] = witness;
    json["migration"] = migration;
    return print_json(json, code);
}

void add_vm_run(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(vm, invocation, "run", "Boot the witness guest and run it",
                                    kExample, options, &run);
    add_witness_options(*command, options->witness);
    command->add_option("--control", options->control, "Take commands on this Unix socket")
        ->type_name("PATH");
    command->add_option("--for", options->run_for, "End after this time, such as 10s")
        ->type_name("DURATION");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
