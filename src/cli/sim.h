// The commands under `continuo sim`, one file each.
#pragma once

#include "command.h"

namespace continuo::cli {

void add_sim_replay(CLI::App& sim, Invocation& invocation);

}  // namespace continuo::cli
