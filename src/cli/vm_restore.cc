// continuo vm restore: makes a VM of a snapshot's file, certifies its clocks, runs it.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "arrival.h"
#include "continuo/vmm/confinement.h"
#include "continuo/vmm/snapshot.h"
#include "kernel_option.h"
#include "number.h"
#include "policy_option.h"
#include "progress.h"
#include "vm.h"
#include "vm_options.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "The gap is from the snapshot to this restore; the certificate is printed once the VM runs.\n"
    "Any number of VMs may be made of one snapshot, also at once: each has its own gap and its "
    "own\n"
    "generation. What its guest prints goes to stderr. Ends with 1 where the certificate does not "
    "hold.\n"
    "Example:\n"
    "  $ continuo vm restore --from vm.snapshot --policy freeze-and-notify --control "
    "/tmp/vm.sock\n";

struct Options {
    std::string from;
    std::string policy = "advance";
    std::string gap_limit;
    std::string control;
    KernelOptions kernel;
    ConsoleOptions console;
    std::string run_for;
    bool json = false;
};

struct Settings {
    vmm::ArrivalOptions arrival;
    std::optional<std::chrono::nanoseconds> run_for;
};

Result<Settings> parse(const Options& options) {
    Settings out;
    const auto policy = parse_policy(options.policy);
    if (!policy) return tl::unexpected(policy.error());
    out.arrival.plan.policy = *policy;
    if (!options.gap_limit.empty()) {
        const auto limit = parse_duration("--gap-limit", options.gap_limit);
        if (!limit) return tl::unexpected(limit.error());
        out.arrival.plan.gap_limit_ns = *limit;
    }
    const auto run_for = parse_run_for(options.run_for);
    if (!run_for) return tl::unexpected(run_for.error());
    out.run_for = *run_for;
    out.arrival.generation = vmm::new_generation();
    return out;
}

Result<kvm::Fd> open_snapshot(const std::string& path) {
    kvm::Fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file) return file;
    return state::fail(state::ErrorCode::kIo, path, "cannot be read", "Check the path", errno);
}

/// Says every second how much has been read.
vmm::ReadProgress tell_progress() {
    const auto now = [] { return std::chrono::steady_clock::now(); };
    return [now, next = now() + std::chrono::seconds{1}](std::uint64_t done,
                                                         std::uint64_t of) mutable {
        if (now() < next) return;
        next = now() + std::chrono::seconds{1};
        progress("{} of {} MiB are read", done >> 20, of >> 20);
    };
}

Result<vmm::RestoredSnapshot> restore(const Options& options, vmm::KvmDestinationVm& vm) {
    const auto file = open_snapshot(options.from);
    if (!file) return tl::unexpected(file.error());
    const auto memory = vmm::this_hosts_memory();
    if (!memory) return tl::unexpected(memory.error());
    Result<vmm::RestoredSnapshot> restored;
    const auto confined = vmm::run_confined(vmm::Confinement::kMigration, [&] {
        restored = vmm::restore_snapshot(file->get(), vm, *memory, tell_progress());
    });
    if (!confined) return tl::unexpected(confined.error());
    if (restored) return restored;
    state::Error error = std::move(restored.error());
    error.where = options.from + (error.where.empty() ? "" : ", " + error.where);
    return tl::unexpected(std::move(error));
}

Json snapshot_json(const vmm::RestoredSnapshot& restored) {
    return {{"id", vmm::text_of(restored.id)},
            {"bytes", restored.bytes},
            {"pages", restored.pages},
            {"reading_ns", restored.reading.count()},
            {"total_ns", restored.total.count()}};
}

Result<ExitCode> run(const Options& options) {
    const auto settings = parse(options);
    if (!settings) return tl::unexpected(settings.error());
    auto console = GuestConsole::open(options.console, STDERR_FILENO);
    if (!console) return tl::unexpected(std::move(console.error()));
    auto kernel = read_kernel(options.kernel);
    if (!kernel) return tl::unexpected(std::move(kernel.error()));
    const auto control = open_control(options.control);
    if (!control) return tl::unexpected(control.error());
    const auto host = examine_local_host();
    if (!host) return tl::unexpected(host.error());
    vmm::KvmDestinationVm vm{host->system, host->findings, settings->arrival};
    const auto restored = restore(options, vm);
    if (!restored) return tl::unexpected(restored.error());
    const vmm::Generation& generation = *settings->arrival.generation;
    progress("snapshot {} runs as generation {}", vmm::text_of(restored->id),
             vmm::text_of(generation.id));
    const auto arrival = describe_arrival(vm, {});
    if (!arrival) return tl::unexpected(arrival.error());
    auto code = print_arrival(*arrival, options.json,
                              {{"snapshot", snapshot_json(*restored)},
                               {"generation", vmm::text_of(generation.id)},
                               {"generation_counter", generation.counter()},
                               {"generation_told", vm.generation_told()}});
    if (!code) return code;
    RunOptions run_options;
    run_options.control = *control ? &**control : nullptr;
    run_options.run_for = settings->run_for;
    run_options.console = std::move(*console);
    run_options.start_again = start_again_by(*host, *vm.machine(), std::move(*kernel));
    return run_arrived(*host, vm, std::move(run_options), *code);
}

}  // namespace

void add_vm_restore(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(vm, invocation, "restore", "Make a VM of a snapshot, certify its clocks",
                    kExample, options, &run);
    command->add_option("--from", options->from, "The snapshot's file")
        ->type_name("FILE")
        ->required();
    add_policy_option(*command, options->policy);
    command
        ->add_option("--gap-limit", options->gap_limit,
                     "Longest gap that is believed, such as 90s, 12h or 30d (the default)")
        ->type_name("DURATION");
    command->add_option("--control", options->control, "Take commands on this Unix socket")
        ->type_name("PATH");
    add_kernel_options(*command, options->kernel);
    add_console_options(*command, options->console);
    command->add_option("--for", options->run_for, "End this long after the restore")
        ->type_name("DURATION");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
