#include "counter_rate.h"

#include <algorithm>
#include <limits>

#include "continuo/state/error.h"

namespace continuo::state {

namespace {

using time::i128;
using time::kNanosPerSecond;

/// Parts in 10^9, as a factor's denominator.
constexpr i128 kUnit = 1'000'000'000;
constexpr std::uint64_t kKilohertz = 1'000;

i128 ceil_divide(i128 dividend, i128 divisor) {
    return (dividend + divisor - 1) / divisor;  // domain: neither is negative
}

std::uint64_t saturated(i128 value) {
    constexpr i128 max = std::numeric_limits<std::uint64_t>::max();
    return static_cast<std::uint64_t>(std::min(value, max));
}

}  // namespace

CounterRate counter_rate(Hz frequency, std::uint32_t bound_ppb, Architecture architecture) {
    const std::uint64_t step = architecture == Architecture::kX86_64 ? kKilohertz : 1;
    const std::uint64_t truncated = (step * kNanosPerSecond + frequency.hz() - 1) / frequency.hz();
    CONTINUO_CHECK(bound_ppb < kUnit);
    // (1 + step/f)(1 + bound): the cross term too.
    const i128 cross = ceil_divide(static_cast<i128>(truncated) * bound_ppb, kUnit);
    return {frequency, bound_ppb + truncated + static_cast<std::uint64_t>(cross), bound_ppb};
}

i128 floor_nanos(std::int64_t ticks, Hz frequency) {
    return time::floor_divide(static_cast<i128>(ticks) * static_cast<i128>(kNanosPerSecond),
                              frequency.hz())
        .quotient;
}

i128 ceil_nanos(std::int64_t ticks, Hz frequency) {
    return -time::floor_divide(-static_cast<i128>(ticks) * static_cast<i128>(kNanosPerSecond),
                               frequency.hz())
                .quotient;
}

std::uint64_t true_length_bound(i128 length_ns, const CounterRate& counted_by) {
    // true = length / (1 + d) with -slow <= d <= fast.
    const i128 slow = static_cast<i128>(counted_by.slow_ppb);
    const i128 longer = ceil_divide(length_ns * slow, kUnit - slow);
    const i128 fast = static_cast<i128>(counted_by.fast_ppb);
    const i128 shorter = ceil_divide(length_ns * fast, kUnit + fast);
    return saturated(std::max(longer, shorter));
}

std::uint64_t counted_length_bound(i128 true_ns, const CounterRate& counted_by) {
    return saturated(ceil_divide(true_ns * static_cast<i128>(counted_by.fast_ppb), kUnit));
}

LengthRange recounted(std::int64_t ticks, const CounterRate& by, const CounterRate& as) {
    // length * (1 + as) / (1 + by), with each at its own extreme.
    const i128 size_lo =
        ticks < 0 ? -ceil_nanos(ticks, by.frequency) : floor_nanos(ticks, by.frequency);
    const i128 size_hi =
        ticks < 0 ? -floor_nanos(ticks, by.frequency) : ceil_nanos(ticks, by.frequency);
    const i128 least = size_lo * (kUnit - static_cast<i128>(as.slow_ppb)) /
                       (kUnit + static_cast<i128>(by.fast_ppb));
    const i128 most = ceil_divide(size_hi * (kUnit + static_cast<i128>(as.fast_ppb)),
                                  kUnit - static_cast<i128>(by.slow_ppb));
    return ticks < 0 ? LengthRange{-most, -least} : LengthRange{least, most};
}

}  // namespace continuo::state
