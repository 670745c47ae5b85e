// Where a demo runs: on this machine's KVM where its controls work, else on an emulated host, with
// this same program inside.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "continuo/state/error.h"

namespace continuo::cli {

enum class HostChoice : std::uint8_t { kAuto, kLocal, kEmulated };

/// Adds --host auto|local|emulated.
void add_host_option(CLI::App& command, std::string& host);
state::Result<HostChoice> parse_host(const std::string& host);

/// Replaces this process by the lab running this program with `arguments` on an emulated host.
/// Comes back only with the reason why it could not.
state::Error run_on_emulated_host(const std::vector<std::string>& arguments);

/// The lab's tool: $CONTINUO_LAB, lab/continuo-lab of the source tree that this was built from, or
/// beside this program; nullopt where none of them can be executed.
std::optional<std::string> find_lab();

}  // namespace continuo::cli
