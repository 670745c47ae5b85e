#include "vm_options.h"

#include <memory>

#include "number.h"

namespace continuo::cli {

using state::Result;

void add_witness_options(CLI::App& command, WitnessOptions& options) {
    command.add_option("--vcpus,--cpus", options.vcpus, "vCPUs, 1 to 64 (else 4)")->type_name("N");
    command
        .add_option("--memory", options.memory, "Memory, from 4M on (else 64M); MiB without M or G")
        ->type_name("SIZE");
    command
        .add_option("--dirty-rate", options.dirty_rate,
                    "Pages that each vCPU writes in a second (else 1000)")
        ->type_name("PAGES");
}

Result<WitnessShape> parse_witness_options(const WitnessOptions& options) {
    const auto vcpus = parse_u64("--vcpus", options.vcpus, {.min = 1, .max = vmm::kVcpusMax});
    if (!vcpus) return tl::unexpected(vcpus.error());
    const auto memory = parse_memory_bytes(options.memory);
    if (!memory) return tl::unexpected(memory.error());
    const auto rate = parse_u64("--dirty-rate", options.dirty_rate, {.min = 0, .max = 1'000'000});
    if (!rate) return tl::unexpected(rate.error());
    WitnessShape shape;
    shape.vm.vcpus = static_cast<std::uint32_t>(*vcpus);
    shape.vm.memory_bytes = *memory;
    shape.witness.dirty_pages_a_second = *rate;
    return shape;
}

Result<std::unique_ptr<vmm::VirtualMachine>> boot_witness(const kvm::System& system,
                                                          const WitnessShape& shape) {
    auto machine = vmm::VirtualMachine::create(system, shape.vm);
    if (!machine) return machine;
    if (auto loaded = vmm::load_witness(**machine, shape.witness); !loaded)
        return tl::unexpected(std::move(loaded.error()));
    if (auto running = (*machine)->resume(); !running)
        return tl::unexpected(std::move(running.error()));
    return machine;
}

Result<std::uint64_t> parse_memory_bytes(const std::string& text) {
    const bool gib = text.ends_with('G');
    const unsigned shift = gib ? 30 : 20;
    const std::string_view digits{text.data(), text.size() - (gib || text.ends_with('M') ? 1 : 0)};
    const std::uint64_t unit = std::uint64_t{1} << shift;
    const auto count =
        parse_u64("--memory", digits,
                  {.min = (vmm::kMemoryMin + unit - 1) >> shift, .max = vmm::kMemoryMax >> shift});
    if (!count) return count;
    return *count << shift;
}

Result<std::optional<std::chrono::nanoseconds>> parse_run_for(const std::string& text) {
    if (text.empty()) return std::nullopt;
    const auto length = parse_duration("--for", text);
    if (!length) return tl::unexpected(length.error());
    return std::chrono::nanoseconds{static_cast<std::int64_t>(*length)};
}

}  // namespace continuo::cli
