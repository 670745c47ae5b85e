#include "policy_option.h"

#include <fmt/format.h>

#include "text.h"

namespace continuo::cli {

void add_policy_option(CLI::App& command, std::string& policy) {
    command
        .add_option("--policy", policy,
                    "freeze, advance (the default), freeze-and-notify or advance-and-notify")
        ->type_name("POLICY");
}

state::Result<state::Policy> parse_policy(const std::string& name) {
    if (const auto policy = state::policy_from_name(name)) return *policy;
    return state::fail(state::ErrorCode::kInvalidArgument, "--policy",
                       fmt::format("'{}' is no policy", printable(name)),
                       "Give freeze, advance, freeze-and-notify or advance-and-notify");
}

}  // namespace continuo::cli
