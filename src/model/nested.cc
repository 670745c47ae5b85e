#include "continuo/model/nested.h"

#include "continuo/state/error.h"

namespace continuo::model {

namespace {

using time::TscMap;

/// a * ratio / 2^frac of a signed number, rounded towards zero (mul_s64_u64_shr()).
std::uint64_t scale_signed(std::uint64_t a, const TscMap& map) {
    const bool negative = (a >> 63) != 0;
    const std::uint64_t size = map.wrap_scale(negative ? 0 - a : a);
    return negative ? 0 - size : size;
}

TscMap with_ratio(std::uint64_t ratio, int frac_bits, std::uint64_t offset) {
    if (frac_bits == time::kSvmFracBits)
        return TscMap{*time::SvmTscScale::from_ratio(ratio), offset};
    return TscMap{*time::VmxTscScale::from_ratio(ratio), offset};
}

}  // namespace

TscMap combined_map(const TscMap& l1, const TscMap& l2, int frac_bits) {
    CONTINUO_CHECK(!l1.scales() || l1.frac_bits() == frac_bits);
    CONTINUO_CHECK(!l2.scales() || l2.frac_bits() == frac_bits);
    const std::uint64_t offset =
        (l2.scales() ? scale_signed(l1.offset(), l2) : l1.offset()) + l2.offset();
    if (!l2.scales()) return l1.with_offset(offset);
    const std::uint64_t ratio = l1.scales() ? l2.wrap_scale(l1.ratio()) : l2.ratio();
    return with_ratio(ratio, frac_bits, offset);
}

time::Count<time::GuestCounter> chained(const TscMap& l1, const TscMap& l2,
                                        time::Count<time::HostCounter> host) {
    return l2.at(time::Count<time::HostCounter>::from_raw(l1.at(host).raw()));
}

}  // namespace continuo::model
