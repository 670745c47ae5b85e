// The four policies, and what each means for the guest.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace continuo::state {

/// What the guest's clocks do across the gap and what the guest is told.
enum class Policy : std::uint8_t {
    kFreeze,            ///< go on from the value at the stop; told nothing
    kAdvance,           ///< as if never stopped; told nothing
    kFreezeAndNotify,   ///< go on from the value at the stop; told the exact gap
    kAdvanceAndNotify,  ///< as if never stopped, best effort; told that a gap happened
};

constexpr bool freezes(Policy policy) {
    return policy == Policy::kFreeze || policy == Policy::kFreezeAndNotify;
}
constexpr bool notifies(Policy policy) {
    return policy == Policy::kFreezeAndNotify || policy == Policy::kAdvanceAndNotify;
}

/// "freeze", "advance", "freeze-and-notify", "advance-and-notify".
std::string_view name(Policy policy);
std::optional<Policy> policy_from_name(std::string_view name);
/// One sentence for the guest's owner.
std::string_view meaning(Policy policy);

}  // namespace continuo::state
