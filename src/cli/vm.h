// The commands below `continuo vm`, and what they share.
#pragma once

#include <optional>
#include <string>

#include "command.h"
#include "control.h"
#include "running_vm.h"

namespace continuo::cli {

void add_vm_run(CLI::App& vm, Invocation& invocation);
void add_vm_send(CLI::App& vm, Invocation& invocation);
void add_vm_receive(CLI::App& vm, Invocation& invocation);
void add_vm_snapshot(CLI::App& vm, Invocation& invocation);
void add_vm_restore(CLI::App& vm, Invocation& invocation);
void add_vm_control(CLI::App& vm, Invocation& invocation);

/// none where the text is empty.
Result<std::optional<ControlServer>> open_control(const std::string& text);

/// How it ended, and what the witness saw; kDoesNotHold where a clock went backwards.
Result<ExitCode> print_vm_run(const VmRun& run, bool as_json);
/// The same of a VM that a kernel was booted in; kDoesNotHold where its exit code is not 0.
Result<ExitCode> print_kernel_run(const VmRun& run, bool as_json);

}  // namespace continuo::cli
