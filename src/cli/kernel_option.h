// --kernel, --initrd and --append: what a VM boots, and what it is started again from where its
// guest resets it. The files are read once and kept.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "continuo/vmm/guest_kernel.h"
#include "continuo/vmm/virtual_machine.h"
#include "local_host.h"

namespace continuo::cli {

/// As the line has them; empty: not given.
struct KernelOptions {
    std::string kernel;
    std::string initrd;
    std::string append;
};
void add_kernel_options(CLI::App& command, KernelOptions& options);

/// nullopt where no kernel is given. kInvalidArgument where only what goes with one is, kIo or
/// kTooLarge for a file.
state::Result<std::optional<vmm::GuestKernel>> read_kernel(const KernelOptions& options);

/// Boots `kernel` in a VM of that shape, and lets it run. `model` is what its CPUs are; none: what
/// this host offers.
state::Result<std::unique_ptr<vmm::VirtualMachine>> boot_kernel(
    const LocalHost& host, const vmm::VmConfig& config, const std::optional<vmm::CpuModel>& model,
    const vmm::GuestKernel& kernel);

/// How a guest that has come in is started again: with the shape, CPUs and devices of `machine`, by
/// `kernel`; empty where there is none.
std::function<state::Result<std::unique_ptr<vmm::VirtualMachine>>()> start_again_by(
    const LocalHost& host, vmm::VirtualMachine& machine, std::optional<vmm::GuestKernel> kernel);

}  // namespace continuo::cli
