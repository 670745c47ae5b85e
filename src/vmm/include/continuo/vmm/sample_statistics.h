// Statistics of a series of samples, exact: integers and quotients of integers, rounded once, where
// a figure is made for people. Every sample counts: nothing here trims, weighs or smooths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "continuo/state/error.h"
#include "continuo/time/rate.h"
#include "continuo/time/wide.h"

namespace continuo::vmm {

/// More samples than this, or one of 2^40 or more, and the sum of squares would not fit 128 bits
/// when it is multiplied by their number.
inline constexpr std::size_t kSamplesMax = std::size_t{1} << 20;
inline constexpr std::uint64_t kSampleLimit = std::uint64_t{1} << 40;

/// `numerator`/`denominator` ticks of a counter of frequency `hz` in ps, rounded to the nearest,
/// halves up. Domain: numerator < 2^80, denominator not 0, denominator x hz < 2^126; the result
/// fits 64 bits (213 days).
///
/// Example: 3 ticks of 25 MHz are 120 000 ps.
constexpr std::uint64_t nearest_ps(time::u128 numerator, std::uint64_t denominator, time::Hz hz) {
    constexpr std::uint64_t ps_per_second = 1'000'000'000'000;
    const time::u128 divisor = static_cast<time::u128>(denominator) * hz.hz();
    return static_cast<std::uint64_t>((numerator * ps_per_second + divisor / 2) / divisor);
}

/// The largest integer whose square is not above `value`.
constexpr std::uint64_t floor_sqrt(time::u128 value) {
    std::uint64_t root = 0;
    for (std::uint64_t bit = std::uint64_t{1} << 63; bit != 0; bit >>= 1) {
        const std::uint64_t wider = root | bit;
        if (static_cast<time::u128>(wider) * wider <= value) root = wider;
    }
    return root;
}

/// What is kept of a series, in the unit of its samples.
struct SampleStatistics {
    std::uint64_t count = 0;
    std::uint64_t min = 0;
    std::uint64_t median = 0;  ///< the 50th percentile
    std::uint64_t p95 = 0;     ///< the 95th percentile
    std::uint64_t max = 0;
    std::uint64_t sum = 0;
    time::u128 sum_of_squares = 0;

    /// floor(1000 x standard deviation) in units of a sample, of the series itself: the root of the
    /// mean of the squares less the square of the mean (divisor n, not n - 1). 0 for no samples.
    ///
    /// Example: 2, 4, 4, 4, 5, 5, 7, 9 have mean 5 and deviation 2: 2000.
    std::uint64_t floor_milli_deviation() const;
};

/// Percentiles are by nearest rank: the sample at position ceil(percent x count / 100) of the
/// sorted series, so each is a sample that occurred. kInvalidArgument for no samples or too many;
/// kTooLarge, with its position, for a sample of kSampleLimit or more.
state::Result<SampleStatistics> reduce(std::vector<std::uint64_t> samples);

}  // namespace continuo::vmm
