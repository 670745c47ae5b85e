// On arm64 every row of the quirk table is decided by one of doctor's own checks.
#include "continuo/kvm/quirk_table.h"

namespace continuo::kvm {

state::Architecture quirk_architecture() {
    return state::Architecture::kArm64;
}

QuirkEffect see_quirk(const System&, const DoctorReport& report, const QuirkRow& row) {
    for (QuirkEffect& effect : quirks_seen_by(report))
        if (effect.id == row.id) return std::move(effect);
    return {row.id, std::nullopt, "doctor did not look", {}, {}};
}

}  // namespace continuo::kvm
