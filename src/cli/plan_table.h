// A plan, and why there is none, for people.
#pragma once

#include <string>

#include "continuo/state/plan.h"
#include "text.h"

namespace continuo::cli {

std::string plan_table(const state::Plan& plan);
std::string refusal_text(const state::Refusals& refusals);

/// Rows for what the exchange and TAI say of the gap, where both do.
void add_measures(Table& table, const state::GapMeasures& measures);

/// "0", or the terms: "3 capture_read + 12 source_tai".
std::string terms_text(const state::Bound& bound);

/// A relative error for people: "-0.307 ppb".
std::string rate_error_text(state::RateError error);

}  // namespace continuo::cli
