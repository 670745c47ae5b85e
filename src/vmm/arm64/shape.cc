#include "shape.h"

namespace continuo::vmm {

void put_cpus(PayloadWriter& out, const VmShape& shape) {
    out.put(shape.model.target).put(shape.model.features).put(shape.model.counter_hz);
}

bool get_cpus(PayloadReader& in, VmShape& shape) {
    shape.model.target = in.get<std::uint32_t>();
    shape.model.features = in.get<decltype(shape.model.features)>();
    shape.model.counter_hz = in.get<std::uint64_t>();
    return in.complete();
}

}  // namespace continuo::vmm
