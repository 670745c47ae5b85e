// The commands under `continuo sim`, one file each.
#pragma once

#include "command.h"

namespace continuo::cli {

void add_sim_list(CLI::App& sim, Invocation& invocation);
void add_sim_replay(CLI::App& sim, Invocation& invocation);
void add_sim_run(CLI::App& sim, Invocation& invocation);

}  // namespace continuo::cli
