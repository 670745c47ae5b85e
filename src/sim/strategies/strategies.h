// The strategies of each file of this folder, for the list in strategy.cc.
#pragma once

#include <array>

#include "continuo/sim/strategy.h"

namespace continuo::sim {

/// by_value.cc: what VMMs do today.
std::array<const Strategy*, 3> by_value_strategies();
/// kernel_controls.cc: by the kernel's controls as they are documented, or were proposed.
std::array<const Strategy*, 3> kernel_control_strategies();
/// continuo_plan.cc: capture, plan, apply and verify of this project.
std::array<const Strategy*, 7> continuo_strategies();

}  // namespace continuo::sim
