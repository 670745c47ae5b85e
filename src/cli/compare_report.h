// What `continuo compare` says: one JSON document, and the same as aligned text. The page of --html
// is made of the document.
#pragma once

#include <string>
#include <vector>

#include "continuo/sim/claims.h"
#include "continuo/sim/compare.h"
#include "continuo/state/json.h"

namespace continuo::cli {

/// A claim of the threads, and what the runs make of it.
struct RuledClaim {
    const sim::Claim* claim = nullptr;
    sim::Ruling ruling;
};

/// docs/compare.md has the schema, continuo/compare/1.
state::Json compare_json(const sim::Comparison& comparison, const std::vector<RuledClaim>& claims);
std::string compare_text(const sim::Comparison& comparison, const std::vector<RuledClaim>& claims);

}  // namespace continuo::cli
