#include "continuo/time/pvclock_scale.h"

namespace continuo::time {

PvclockScale PvclockScale::from_hz(Hz counter) {
    // Bring ticks per second down to 32 bits and at most twice 10^9, then up above 10^9; what moved
    // is the shift. What is left of 10^9 / ticks is the fraction mul / 2^32 < 1, truncated.
    std::uint64_t ticks = counter.hz();
    int shift = 0;
    while (ticks > 2 * kNanosPerSecond) {
        ticks >>= 1;
        --shift;
    }
    while (ticks <= kNanosPerSecond) {
        ticks <<= 1;
        ++shift;
    }
    const auto mul = static_cast<std::uint32_t>((kNanosPerSecond << 32) / ticks);
    return PvclockScale{mul, static_cast<std::int8_t>(shift)};
}

std::optional<RateError> pvclock_rate_error(PvclockScale scale, Hz counter) {
    const auto actual = scale.ratio();
    if (!actual) return std::nullopt;
    return rate_error(*actual, ExactRatio::nanos_per_tick(counter));
}

}  // namespace continuo::time
