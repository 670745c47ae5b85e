// The --policy that several commands take.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "continuo/state/error.h"
#include "continuo/state/policy.h"

namespace continuo::cli {

/// Adds --policy, default advance, with all names in its help.
void add_policy_option(CLI::App& command, std::string& policy);

/// kInvalidArgument where there is no such policy.
state::Result<state::Policy> parse_policy(const std::string& name);

}  // namespace continuo::cli
