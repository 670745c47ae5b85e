#include "shape.h"

#include <cstring>

namespace continuo::vmm {

namespace {
constexpr std::uint32_t kShapeInvariantTsc = 1;
}

void put_cpus(PayloadWriter& out, const VmShape& shape) {
    out.put(shape.config.invariant_tsc ? kShapeInvariantTsc : 0)
        .put(shape.config.tsc_khz)
        .put(static_cast<std::uint32_t>(shape.model.size()))
        .put(std::uint32_t{0})
        .put_bytes(std::as_bytes(std::span{shape.model}));
}

bool get_cpus(PayloadReader& in, VmShape& shape) {
    const auto flags = in.get<std::uint32_t>();
    shape.config.invariant_tsc = (flags & kShapeInvariantTsc) != 0;
    shape.config.tsc_khz = in.get<std::uint32_t>();
    const auto count = in.get<std::uint32_t>();
    const auto zero = in.get<std::uint32_t>();
    const bool whole = in.ok() && flags <= kShapeInvariantTsc && zero == 0 &&
                       count <= kvm::kCpuidEntriesMax &&
                       in.left() == count * sizeof(kvm::CpuidEntry);
    if (!whole) return false;
    shape.model.resize(count);
    const auto entries = in.get_bytes(in.left());
    if (!entries.empty()) std::memcpy(shape.model.data(), entries.data(), entries.size());
    return true;
}

}  // namespace continuo::vmm
