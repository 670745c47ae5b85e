// The protocols that `continuo explore` knows, each with the variants that are right and the
// planted ones that are wrong. A right variant must be clean to the last state; a wrong one must be
// caught. Tests say so for all of them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/explore/search.h"
#include "continuo/explore/system.h"

namespace continuo::explore {

struct Variant {
    std::string name;
    std::string summary;
    /// How this variant fails; nullopt: it does not.
    std::optional<Violation::Kind> wrong;
    /// Whether it is also held to reach an end from everywhere.
    bool progress = false;
    std::function<std::unique_ptr<System>()> make;
};

struct Protocol {
    std::string name;
    std::string summary;
    std::vector<Variant> variants;
};

/// All of them, in the order in which they are told.
const std::vector<Protocol>& protocols();

/// kInvalidArgument, naming those that there are.
state::Result<const Protocol*> find_protocol(std::string_view name);
state::Result<const Variant*> find_variant(const Protocol& protocol, std::string_view name);

Protocol pvclock_publish();
Protocol pvclock_fallback();
Protocol time_travel_gate();
Protocol vcpu_restore();
Protocol masterclock_update();
Protocol migration_handover();

}  // namespace continuo::explore
