// What the five threads claim about designs, each with the rule that decides it. A rule looks at
// the runs of a comparison, or runs a small experiment on the model of KVM, and answers with the
// figures that it saw: no verdict is written down anywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "continuo/sim/compare.h"

namespace continuo::sim {

/// How a claim stands.
enum class Standing : std::uint8_t {
    kReproduced,     ///< what the runs show is what the claim says
    kNotReproduced,  ///< what the runs show contradicts it; `why` says how
    kUndecided,      ///< the runs, or any simulation, do not decide it; `why` says what is missing
};

/// "reproduced", "not_reproduced", "undecided".
std::string_view name(Standing standing);

/// What became of a claim.
struct Ruling {
    Standing standing = Standing::kUndecided;
    std::string figures;  ///< what was seen, with its units
    std::string why;      ///< for people; where not reproduced or undecided always there
};

/// A claim about a design.
struct Claim {
    const char* name;        ///< stable, for links: "s1-advance-counts-the-gap"
    const char* thread;      ///< item of the requirements: "S1.5"
    const char* who;         ///< "Oliver Upton, 2022"
    const char* text;        ///< the claim, in our own words
    const char* decided_by;  ///< which strategies, scenarios and quantities, and what must hold
    Ruling (*decide)(const Comparison&);
};

/// All of them, in the order of the threads.
std::span<const Claim> claims();

}  // namespace continuo::sim
