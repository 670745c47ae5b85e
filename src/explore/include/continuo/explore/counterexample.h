// A counterexample: how a variant of a protocol fails, step by step, in a form that can be kept
// (docs/formats/counterexample.md) and replayed. A replay takes each step again in the system and
// compares what it did with what stands in the file: a file from another build of a protocol is
// refused at the first step that differs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/explore/protocol.h"
#include "continuo/state/json.h"

namespace continuo::explore {

inline constexpr std::string_view kCounterexampleSchema = "continuo-counterexample-1";

/// One field of the state that a step changed.
struct Change {
    std::string field;
    std::string before;
    std::string after;
    friend bool operator==(const Change&, const Change&) = default;
};

/// One step as it is told.
struct ToldStep {
    std::string agent;
    unsigned choice = 0;
    std::string text;
    std::vector<Change> changes;
    friend bool operator==(const ToldStep&, const ToldStep&) = default;
};

struct Counterexample {
    std::string protocol;
    std::string variant;
    Violation::Kind kind = Violation::Kind::kAssertion;
    std::string what;
    std::vector<ToldStep> steps;
    friend bool operator==(const Counterexample&, const Counterexample&) = default;
};

/// The violation of a search over `variant.make()`, with each step told.
Counterexample told(const Protocol& protocol, const Variant& variant, const Violation& violation);

/// docs/formats/counterexample.md.
state::Json counterexample_to_json(const Counterexample& counterexample);
/// kMalformed, with the place; kVersion where "schema" names something else; kTooLarge over
/// state::kJsonBytesMax.
state::Result<Counterexample> counterexample_from_json(std::string_view text);

/// The counterexample with every step taken again. kInvalidArgument where its protocol or variant
/// is none that this build has, kMalformed, naming the step, where a step cannot be taken, does
/// something else than the file says, or does not fail as it says.
state::Result<Counterexample> replay(const Counterexample& counterexample);

}  // namespace continuo::explore
