// continuo vm run: boots a kernel, or the witness guest, and runs it until told otherwise.
#include <fmt/format.h>
#include <unistd.h>

#include <memory>

#include "kernel_option.h"
#include "number.h"
#include "progress.h"
#include "running_vm.h"
#include "text.h"
#include "time_devices.h"
#include "vm.h"
#include "vm_options.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "With --kernel: a Linux bzImage or vmlinux (arm64: Image), or a multiboot payload, without\n"
    "firmware; its serial console (ttyS0) goes to stdout, with --json to stderr. Ends when the\n"
    "guest switches itself off; one that resets is started again, but for --once. A payload that\n"
    "writes another code than 0 to the debug exit port 0xf4 ends it with 1.\n"
    "Without: the witness, every vCPU of which reads its clocks (TSC and kvmclock; arm64: CNTVCT "
    "and\n"
    "CNTPCT) without pause and writes down every backward step, jump and skew. Ends with 1 where "
    "it\n"
    "has seen a clock go backwards.\n"
    "Example:\n"
    "  $ continuo vm run --vcpus 4 --control /tmp/vm.sock &\n"
    "  $ continuo capture --control /tmp/vm.sock\n"
    "  $ continuo vm send --control /tmp/vm.sock --to tcp:there:7000\n"
    "  $ continuo vm run --kernel vmlinuz --initrd initrd.gz --append console=ttyS0 --cpus 2 "
    "--memory 256M\n";

struct Options {
    WitnessOptions witness;
    KernelOptions kernel;
    ConsoleOptions console;
    bool once = false;
    bool no_notice = false;
    bool no_vmclock = false;
    std::string release_after = "5s";
    std::string control;
    std::string run_for;
    bool json = false;
};

using Machine = std::unique_ptr<vmm::VirtualMachine>;

std::string summary_text(const VmRun& run, const Json& json) {
    Table table{{{""}, {""}}};
    table.add({"ended by", std::string{name(run.end)}});
    for (const auto& [key, value] : json.items())
        if (value.is_number()) table.add({key, value.dump()});
    return table.text();
}

/// nullopt where no kernel is given.
Result<std::optional<vmm::GuestKernel>> kernel_of(const Options& options) {
    auto kernel = read_kernel(options.kernel);
    if (!kernel || !*kernel) return kernel;
    const auto release_after = parse_duration("--release-after", options.release_after);
    if (!release_after) return tl::unexpected(release_after.error());
    (*kernel)->notice = !options.no_notice;
    (*kernel)->vmclock = !options.no_vmclock;
    (*kernel)->release_after_ns = *release_after;
    return kernel;
}

/// The machine, running, and how it is made again where its guest resets it.
struct Boot {
    Machine machine;
    std::function<Result<Machine>()> again;
};

Result<Boot> boot(const LocalHost& host, const Options& options, const WitnessShape& shape) {
    auto kernel = kernel_of(options);
    if (!kernel) return tl::unexpected(std::move(kernel.error()));
    if (!*kernel) {
        auto machine = boot_witness(host.system, shape);
        if (!machine) return tl::unexpected(std::move(machine.error()));
        progress("the witness runs on {} vCPUs", shape.vm.vcpus);
        return Boot{std::move(*machine), {}};
    }
    const auto again = [&host, config = shape.vm, kernel = std::move(**kernel)] {
        return boot_kernel(host, config, {}, kernel);
    };
    auto machine = again();
    if (!machine) return tl::unexpected(std::move(machine.error()));
    Boot out{std::move(*machine), {}};
    if (!options.once) out.again = again;
    return out;
}

Result<GuestConsole> open_console(const Options& options) {
    const bool kernel = !options.kernel.kernel.empty();
    return GuestConsole::open(options.console, !kernel        ? -1
                                               : options.json ? STDERR_FILENO
                                                              : STDOUT_FILENO);
}

Result<ExitCode> run(const Options& options) {
    const auto shape = parse_witness_options(options.witness);
    if (!shape) return tl::unexpected(shape.error());
    const auto run_for = parse_run_for(options.run_for);
    if (!run_for) return tl::unexpected(run_for.error());
    auto console = open_console(options);
    if (!console) return tl::unexpected(std::move(console.error()));
    auto control = open_control(options.control);
    if (!control) return tl::unexpected(std::move(control.error()));
    const auto host = examine_local_host();
    if (!host) return tl::unexpected(host.error());
    auto booted = boot(*host, options, *shape);
    if (!booted) return tl::unexpected(std::move(booted.error()));
    end_vms_by_signals();
    RunOptions run_options{*control ? &**control : nullptr, *run_for, std::move(*console),
                           std::move(booted->again)};
    auto ended = run_vm(*host, std::move(booted->machine), std::move(run_options));
    if (!ended) return tl::unexpected(std::move(ended.error()));
    return options.kernel.kernel.empty() ? print_vm_run(*ended, options.json)
                                         : print_kernel_run(*ended, options.json);
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

Result<ExitCode> print_kernel_run(const VmRun& run, bool as_json) {
    const auto* machine = run.vm->machine();
    const auto exit_code = machine != nullptr ? machine->exit_code() : std::nullopt;
    const ExitCode code = exit_code.value_or(0) != 0 ? ExitCode::kDoesNotHold : ExitCode::kDone;
    if (!as_json) {
        // stdout is the guest's.
        progress("the VM ended by: {}{}", name(run.end),
                 exit_code ? fmt::format(", exit code {}", *exit_code) : "");
        return code;
    }
    Json json;
    json["ended_by"] = name(run.end);
    json["exit_code"] = exit_code ? Json(*exit_code) : Json{};
    json["resets"] = run.resets;
    json["notice"] = run.vm->machine() != nullptr ? notice_device_json(*run.vm->machine()) : Json{};
    json["migration"] = run.stats ? stats_json(*run.stats) : Json{};
    json["vmclock"] = run.vm->machine() != nullptr ? vmclock_json(*run.vm->machine()) : Json{};
    return print_json(json, code);
}

void add_vm_run(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(vm, invocation, "run", "Boot a kernel, or the witness guest",
                                    kExample, options, &run);
    add_kernel_options(*command, options->kernel);
    add_witness_options(*command, options->witness);
    add_console_options(*command, options->console);
    command->add_flag("--no-notice", options->no_notice,
                      "A machine without the device that tells its guest of gaps");
    command->add_flag("--no-vmclock", options->no_vmclock, "A machine without vmclock");
    command
        ->add_option("--release-after", options->release_after,
                     "How long readers of REALTIME wait for a guest that does not answer (else 5s)")
        ->type_name("DURATION");
    command->add_flag("--once", options->once, "End where the guest resets");
    command->add_option("--control", options->control, "Take commands on this Unix socket")
        ->type_name("PATH");
    command->add_option("--for", options->run_for, "End after this time, such as 10s")
        ->type_name("DURATION");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
