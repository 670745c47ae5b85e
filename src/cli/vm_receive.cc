// continuo vm receive: takes in a VM that a `vm send` migrates here, certifies its clocks, runs it.
#include <fmt/format.h>
#include <unistd.h>

#include <memory>

#include "arrival.h"
#include "continuo/vmm/confinement.h"
#include "kernel_option.h"
#include "number.h"
#include "policy_option.h"
#include "progress.h"
#include "vm.h"
#include "vm_options.h"

namespace continuo::cli {

namespace {

using namespace std::chrono_literals;

constexpr const char* kExample =
    "The certificate is printed once the VM runs here; then it goes on running until a signal, "
    "--for\n"
    "or a migration away. What its guest prints goes to stderr. A guest that resets its machine "
    "is\n"
    "started again from --kernel; without one it ends. Ends with 1 where the certificate does not "
    "hold.\n"
    "Example:\n"
    "  $ continuo vm receive --listen tcp:0.0.0.0:7000 --policy advance --control /tmp/vm.sock\n";

struct Options {
    std::string listen;
    std::string policy = "advance";
    std::string control;
    KernelOptions kernel;
    ConsoleOptions console;
    std::string run_for;
    std::string wait = "1h";
    bool json = false;
};

struct Settings {
    vmm::Address address;
    vmm::ArrivalOptions arrival;
    std::optional<std::chrono::nanoseconds> run_for;
    std::chrono::milliseconds wait{};
};

Result<Settings> parse(const Options& options) {
    Settings out;
    const auto address = vmm::parse_address(options.listen);
    if (!address) return tl::unexpected(address.error());
    out.address = *address;
    const auto policy = parse_policy(options.policy);
    if (!policy) return tl::unexpected(policy.error());
    out.arrival.plan.policy = *policy;
    const auto run_for = parse_run_for(options.run_for);
    if (!run_for) return tl::unexpected(run_for.error());
    out.run_for = *run_for;
    const auto wait = parse_duration("--wait", options.wait);
    if (!wait) return tl::unexpected(wait.error());
    out.wait = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::nanoseconds{static_cast<std::int64_t>(*wait)});
    return out;
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
    auto receiver = vmm::Receiver::open(settings->address);
    if (!receiver) return tl::unexpected(std::move(receiver.error()));
    progress("listening on {}", (*receiver)->address().text());
    vmm::KvmDestinationVm vm{host->system, host->findings, settings->arrival};
    Result<vmm::DestinationOutcome> outcome = vmm::Discarded{};
    const auto confined = vmm::run_confined(vmm::Confinement::kMigration, [&] {
        outcome = (*receiver)->receive(vm, {}, settings->wait);
    });
    if (!confined) return tl::unexpected(confined.error());
    if (!outcome) return tl::unexpected(std::move(outcome.error()));
    if (const auto* discarded = std::get_if<vmm::Discarded>(&*outcome))
        return tl::unexpected(discarded->reason);
    const auto arrival = describe_arrival(vm, std::get<vmm::Arrived>(*outcome));
    if (!arrival) return tl::unexpected(arrival.error());
    auto code = print_arrival(
        *arrival, options.json,
        {{"migration", stats_json(arrival->stats)}, {"taken_over", arrival->taken_over}});
    if (!code) return code;
    RunOptions run_options;
    run_options.control = *control ? &**control : nullptr;
    run_options.run_for = settings->run_for;
    run_options.console = std::move(*console);
    run_options.start_again = start_again_by(*host, *vm.machine(), std::move(*kernel));
    return run_arrived(*host, vm, std::move(run_options), *code);
}

}  // namespace

void add_vm_receive(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(vm, invocation, "receive", "Receive a VM, certify its clocks",
                                    kExample, options, &run);
    command->add_option("--listen", options->listen, "Where to wait for a source")
        ->type_name("unix:PATH|tcp:HOST:PORT")
        ->required();
    add_policy_option(*command, options->policy);
    command->add_option("--control", options->control, "Take commands on this Unix socket")
        ->type_name("PATH");
    add_kernel_options(*command, options->kernel);
    add_console_options(*command, options->console);
    command->add_option("--wait", options->wait, "Longest time to wait for a source (else 1h)")
        ->type_name("DURATION");
    command->add_option("--for", options->run_for, "End this long after the arrival")
        ->type_name("DURATION");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
