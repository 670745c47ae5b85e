// Options that several commands share which run a VM.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <optional>
#include <string>

#include "continuo/state/error.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/witness.h"

namespace continuo::cli {

/// The shape of a witness VM, as the line has it.
struct WitnessOptions {
    std::string vcpus = "4";
    std::string memory = "64";
    std::string dirty_rate = "1000";
};
void add_witness_options(CLI::App& command, WitnessOptions& options);

struct WitnessShape {
    vmm::VmConfig vm;
    vmm::WitnessConfig witness;
};
state::Result<WitnessShape> parse_witness_options(const WitnessOptions& options);

/// Creates the VM, loads the witness, lets it run.
state::Result<std::unique_ptr<vmm::VirtualMachine>> boot_witness(const kvm::System& system,
                                                                 const WitnessShape& shape);

/// MiB, or with a unit: 64, 64M, 1G. kInvalidArgument where it is none, or no VM has that much.
state::Result<std::uint64_t> parse_memory_bytes(const std::string& text);

/// none where the text is empty.
state::Result<std::optional<std::chrono::nanoseconds>> parse_run_for(const std::string& text);

}  // namespace continuo::cli
