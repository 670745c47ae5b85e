// What is inconsistent in a record that nevertheless decodes, and the shape in which `inspect`
// tells of inconsistencies of any kind.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "continuo/abi/findings.h"
#include "continuo/state/json.h"
#include "continuo/state/record.h"

namespace continuo::cli {

using Findings = std::vector<abi::Finding>;

/// The key under which findings stand in every JSON document of `inspect`.
inline constexpr const char* kFindingsKey = "inconsistencies";

/// In the order of the record's keys. Domain: check(record) holds. What is said of a clock here is
/// what its own numbers contradict; whether a destination can honour it is the planner's to say.
Findings inconsistencies(const state::Record& record);

state::Json to_json(const Findings& findings);

/// The same record as JSON without the findings that `inspect record --json` added, so that its
/// output can be planned with. Text that holds no such key, or is no JSON, comes back as it is.
std::string without_findings(std::string_view text);

}  // namespace continuo::cli
