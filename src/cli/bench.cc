// continuo bench: what it costs a guest of this host to read its clocks.
#include <algorithm>
#include <memory>

#include "bench_table.h"
#include "command.h"
#include "continuo/kvm/system.h"
#include "continuo/vmm/counter_bench.h"
#include "local_host.h"
#include "number.h"
#include "progress.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Each clock is read natively and by a trap into the hypervisor, where this host has both "
    "ways;\n"
    "a way that it has not is named with the reason. Ends with 5 where nothing can be measured.\n"
    "Example:\n"
    "  $ continuo bench counter\n"
    "  $ lab/continuo-lab run -- continuo bench counter --json\n";

struct Options {
    std::string reads;
    std::string device = "/dev/kvm";
    bool keep_parameters = false;
    bool json = false;
};

Result<vmm::CounterBench> measure(const Options& options) {
    vmm::CounterBenchOptions how;
    if (!options.reads.empty()) {
        const auto reads = parse_u64("--reads", options.reads, {.min = 1, .max = 1'000'000});
        if (!reads) return tl::unexpected(reads.error());
        how.reads = *reads;
    }
    how.keep_parameters = options.keep_parameters;
    how.progress = [](std::string_view what) { progress("measuring {} ...", what); };
    const auto system = kvm::System::open(options.device);
    if (!system) return tl::unexpected(system.error());
    return vmm::run_counter_bench(*system, how);
}

Result<ExitCode> run(const Options& options) {
    const auto bench = measure(options);
    if (!bench) return tl::unexpected(bench.error());
    const bool any = std::any_of(bench->series.begin(), bench->series.end(), [](const auto& read) {
        return read.path != vmm::ReadPath::kNothing && read.cost;
    });
    const ExitCode code = any ? ExitCode::kDone : ExitCode::kUnsupported;
    const bool emulated = is_emulated_host();
    return options.json ? print_json(counter_bench_json(*bench, emulated), code)
                        : print_text(counter_bench_text(*bench, emulated), code);
}

void add_counter(CLI::App& bench, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(bench, invocation, "counter",
                                    "Measure reads of a guest's clocks, native and trapped",
                                    kExample, options, &run);
    command->add_option("--reads", options->reads, "Reads of each kind, 1 to 1000000 (else 10000)")
        ->type_name("N");
    command->add_option("--device", options->device, "The KVM device (else /dev/kvm)")
        ->type_name("PATH");
    command->add_flag("--keep-parameters", options->keep_parameters,
                      "Change no module parameter of KVM, not even for a second");
    add_json_flag(*command, options->json);
}

}  // namespace

void add_bench(CLI::App& program, Invocation& invocation) {
    CLI::App* bench = program.add_subcommand("bench", "Measure this host's guests");
    bench->require_subcommand(1);
    add_counter(*bench, invocation);
}

}  // namespace continuo::cli
