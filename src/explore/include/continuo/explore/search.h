// Exhaustive search over every interleaving of a system's agents: breadth first, so that a
// counterexample has as few steps as any; every state is stored whole, so that "complete" is a fact
// and not a probability.
//
// Partial-order reduction. At a state the search may follow one agent alone (a persistent set, in
// Godefroid's words) where
//   1. what that agent's enabled steps touch conflicts with nothing that any other agent may touch
//      from here on, and no other agent can give it another step before it has taken one; and
//   2. each of those steps raises the agent's rank. Every cycle of the whole system contains a step
//      that does not, and the state before that step is expanded in full: nothing is postponed for
//      ever (the static proviso of Kurshan, Levin, Minea, Peled and Yenigun, 1998).
// What is looked for is found by a step itself (assertions over what the step reads), by a state
// without successors (deadlock), or is closed under steps (an end that cannot be reached any more),
// and all three are kept by such a reduction. Tests hold every protocol and random programs against
// the search without reduction.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "continuo/explore/system.h"
#include "continuo/state/error.h"

namespace continuo::explore {

struct SearchOptions {
    bool reduction = true;
    /// Also fail where from some state no state is reachable in which all agents may rest.
    bool progress = false;
    std::uint64_t states_max = 50'000'000;
    std::uint64_t bytes_max = std::uint64_t{4} << 30;
    /// Called every now and then with the states found and expanded so far.
    std::function<void(std::uint64_t found, std::uint64_t expanded)> report;
};

/// A step of a path: who, and which of its ways to take the step.
struct PathStep {
    unsigned agent = 0;
    unsigned choice = 0;
    friend bool operator==(const PathStep&, const PathStep&) = default;
};

/// How a system fails, and the steps from its initial state to there.
struct Violation {
    enum class Kind : std::uint8_t { kAssertion, kDeadlock, kNoProgress };
    Kind kind = Kind::kAssertion;
    std::string what;
    std::vector<PathStep> path;
};

std::string_view name(Violation::Kind kind);
std::optional<Violation::Kind> violation_kind(std::string_view name);

struct Outcome {
    std::uint64_t states = 0;
    std::uint64_t transitions = 0;
    std::uint64_t depth = 0;  ///< steps to the state that is farthest from the start
    std::uint64_t ends = 0;   ///< states in which nobody can take a step
    std::size_t state_bytes = 0;
    std::uint64_t bytes = 0;  ///< all memory of the search: states, parents, index
    /// Every reachable state (under the reduction) was expanded. False after a violation, too.
    bool complete = false;
    std::optional<Violation> violation;
};

/// Searches until all is seen, or a violation is found. kTooLarge, naming the limit, where
/// states_max or bytes_max would not hold.
state::Result<Outcome> search(const System& system, const SearchOptions& options);

}  // namespace continuo::explore
