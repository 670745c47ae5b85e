// A counter's stated frequency and how far its true one may be from it. Internal to state/. A
// length here is in ns at the stated frequency of the counter that counted it, unless it is said to
// be true.
#pragma once

#include <cstdint>

#include "continuo/state/record.h"
#include "continuo/time/wide.h"

namespace continuo::state {

/// In 10^-9 of the stated frequency, rounded up.
struct CounterRate {
    Hz frequency;
    std::uint64_t fast_ppb;  ///< true frequency <= stated * (1 + fast)
    std::uint64_t slow_ppb;  ///< true frequency >= stated * (1 - slow); below 10^9
};

/// x86-64 states whole kHz, truncated; arm64's CNTFRQ whole Hz.
CounterRate counter_rate(Hz frequency, std::uint32_t bound_ppb, Architecture architecture);
template <time::CounterAxis D>
CounterRate counter_rate(const Anchor<D>& anchor, Architecture architecture) {
    return counter_rate(anchor.frequency, anchor.rate_bound_ppb, architecture);
}

/// ns of so many ticks at the stated frequency, rounded down; and up.
time::i128 floor_nanos(std::int64_t ticks, Hz frequency);
time::i128 ceil_nanos(std::int64_t ticks, Hz frequency);

/// The most by which the true length of something is off the length that this counter gave it.
/// Domain of both: 0 <= length <= 2^64.
std::uint64_t true_length_bound(time::i128 length_ns, const CounterRate& counted_by);
/// The most by which the length that this counter gives something is off its true length.
std::uint64_t counted_length_bound(time::i128 true_ns, const CounterRate& counted_by);

/// A length that `by` has counted, as `as` would have counted it: no less than lo, no more than hi.
struct LengthRange {
    time::i128 lo;
    time::i128 hi;
};
/// Domain: |ticks of by| < 2^63. Rounded outwards.
LengthRange recounted(std::int64_t ticks, const CounterRate& by, const CounterRate& as);

}  // namespace continuo::state
