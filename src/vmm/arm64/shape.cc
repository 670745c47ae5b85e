#include "shape.h"

namespace continuo::vmm {

void put_cpus(PayloadWriter& out, const VmShape& shape) {
    out.put(shape.model.target)
        .put(shape.model.features)
        .put(shape.model.counter_hz)
        .put(static_cast<std::uint32_t>(shape.model.interrupts))
        .put(std::uint32_t{0});
}

bool get_cpus(PayloadReader& in, VmShape& shape) {
    shape.model.target = in.get<std::uint32_t>();
    shape.model.features = in.get<decltype(shape.model.features)>();
    shape.model.counter_hz = in.get<std::uint64_t>();
    // Releases whose VMs had no interrupt controller said nothing of it.
    if (in.ok() && in.left() == 0) return true;
    const auto interrupts = in.get<std::uint32_t>();
    const auto zero = in.get<std::uint32_t>();
    shape.model.interrupts = static_cast<InterruptController>(interrupts);
    const bool known = shape.model.interrupts == InterruptController::kNone ||
                       shape.model.interrupts == InterruptController::kGicV3;
    return in.complete() && known && zero == 0;
}

}  // namespace continuo::vmm
