#include "continuo/sim/claims.h"

#include <vector>

#include "claim_trial.h"

namespace continuo::sim {

std::string_view name(Standing standing) {
    switch (standing) {
        case Standing::kReproduced:
            return "reproduced";
        case Standing::kNotReproduced:
            return "not_reproduced";
        case Standing::kUndecided:
            break;
    }
    return "undecided";
}

std::span<const Claim> claims() {
    static const std::vector<Claim> all = [] {
        std::vector<Claim> sum;
        for (const auto list : {nesting_claims(), notice_claims(), idempotent_claims(),
                                precise_claims(), masterclock_claims(), kvmclock_claims()})
            sum.insert(sum.end(), list.begin(), list.end());
        return sum;
    }();
    return all;
}

}  // namespace continuo::sim
