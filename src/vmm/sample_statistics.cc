#include "continuo/vmm/sample_statistics.h"

#include <algorithm>
#include <string>

namespace continuo::vmm {

namespace {

using state::ErrorCode;

std::uint64_t percentile(const std::vector<std::uint64_t>& sorted, std::uint64_t percent) {
    const std::uint64_t rank = (percent * sorted.size() + 99) / 100;
    return sorted[std::max<std::uint64_t>(rank, 1) - 1];
}

}  // namespace

std::uint64_t SampleStatistics::floor_milli_deviation() const {
    if (count == 0) return 0;
    constexpr std::uint64_t square_of_milli = 1'000'000;
    const time::u128 spread =
        sum_of_squares * count - static_cast<time::u128>(sum) * sum;  // < 2^120
    const time::u128 divisor = static_cast<time::u128>(count) * count;
    // floor(spread x 10^6 / divisor), in two steps that both fit; a root of a floor is that of the
    // quotient itself.
    const time::u128 whole = spread / divisor * square_of_milli;
    const time::u128 rest = spread % divisor * square_of_milli / divisor;
    return floor_sqrt(whole + rest);
}

state::Result<SampleStatistics> reduce(std::vector<std::uint64_t> samples) {
    if (samples.empty() || samples.size() > kSamplesMax)
        return state::fail(ErrorCode::kInvalidArgument, "samples",
                           std::to_string(samples.size()) + " samples; 1 to 2^20 can be reduced");
    SampleStatistics out;
    out.count = samples.size();
    for (std::size_t i = 0; i < samples.size(); ++i) {
        if (samples[i] >= kSampleLimit)
            return state::fail(ErrorCode::kTooLarge, "sample " + std::to_string(i),
                               std::to_string(samples[i]) + " ticks; the limit is 2^40",
                               "the guest's clock jumped or went backwards during the sample");
        out.sum += samples[i];
        out.sum_of_squares += static_cast<time::u128>(samples[i]) * samples[i];
    }
    std::sort(samples.begin(), samples.end());
    out.min = samples.front();
    out.median = percentile(samples, 50);
    out.p95 = percentile(samples, 95);
    out.max = samples.back();
    return out;
}

}  // namespace continuo::vmm
