#include "continuo/sim/oracle.h"

#include <algorithm>

namespace continuo::sim {

void Verdicts::hold(Invariant invariant, std::int64_t by_ns, TrueTime when, unsigned vcpu) {
    Verdict& verdict = at(invariant);
    if (verdict.outcome == Outcome::kNotApplicable) verdict.outcome = Outcome::kKept;
    if (by_ns <= 0) return;
    verdict.outcome = Outcome::kBroken;
    ++verdict.times;
    if (by_ns <= verdict.by_ns) return;
    verdict.by_ns = by_ns;
    verdict.at = when;
    verdict.vcpu = static_cast<std::uint8_t>(vcpu);
}

bool Verdicts::all_kept() const {
    return std::none_of(all_.begin(), all_.end(),
                        [](const Verdict& verdict) { return verdict.outcome == Outcome::kBroken; });
}

}  // namespace continuo::sim
