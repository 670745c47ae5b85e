// Planted bugs between the stages of Continuo's own way. Each does nothing unless its bug is the
// run's.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "continuo/sim/sides.h"
#include "continuo/state/plan.h"
#include "continuo/state/record.h"

namespace continuo::sim {

/// What a wrong capture would have put into the record.
void plant_in_record(SourceSide& source, state::Record& record);
/// The bytes that a decoder which does not check would have taken for whole; none where this run
/// has no such bug.
std::optional<std::vector<std::byte>> plant_in_bytes(const World& world,
                                                     const std::vector<std::byte>& bytes);
/// What a destination that knows itself badly would have stated.
void plant_in_destination(DestinationSide& side, state::Destination& destination);
/// The plan that a planner without that refusal would have made.
state::PlanResult plant_in_refusal(World& world, const state::Record& record,
                                   const state::Destination& destination,
                                   const state::PlanOptions& options,
                                   const state::PlanResult& refused);
/// What a wrong planner would have prescribed.
void plant_in_plan(const World& world, const state::Record& record, state::Plan& plan);

}  // namespace continuo::sim
