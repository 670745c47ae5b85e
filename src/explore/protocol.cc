#include "continuo/explore/protocol.h"

#include <fmt/format.h>

namespace continuo::explore {

namespace {

template <class Named>
std::string names(const std::vector<Named>& all) {
    std::string out;
    for (const Named& one : all)
        out += (out.empty() ? "" : ", ") + one.name;
    return out;
}

template <class Named>
state::Result<const Named*> find(const std::vector<Named>& all, std::string_view name,
                                 const std::string& option) {
    for (const Named& one : all)
        if (one.name == name) return &one;
    return state::fail(state::ErrorCode::kInvalidArgument, option,
                       fmt::format("there is no {}", name), "There are " + names(all));
}

}  // namespace

const std::vector<Protocol>& protocols() {
    static const std::vector<Protocol> all{pvclock_publish(),    pvclock_fallback(),
                                           time_travel_gate(),   vcpu_restore(),
                                           masterclock_update(), migration_handover()};
    return all;
}

state::Result<const Protocol*> find_protocol(std::string_view name) {
    return find(protocols(), name, "protocol");
}

state::Result<const Variant*> find_variant(const Protocol& protocol, std::string_view name) {
    return find(protocol.variants, name, "variant of " + protocol.name);
}

}  // namespace continuo::explore
