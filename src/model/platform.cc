#include "continuo/model/platform.h"

namespace continuo::model {

KernelLine KernelLine::moved_to(std::uint64_t tsc) const {
    const auto run = static_cast<time::i128>(static_cast<std::int64_t>(tsc - counter));
    const time::i128 scaled = run * static_cast<time::i128>(mult) + static_cast<time::i128>(phase);
    KernelLine line = *this;
    line.counter = tsc;
    line.ns = at(tsc);
    line.phase = static_cast<std::uint64_t>(scaled) & ((std::uint64_t{1} << shift) - 1);
    return line;
}

KernelLine KernelLine::of_khz(std::uint32_t khz) {
    constexpr std::uint64_t seconds = 600;
    constexpr std::uint64_t ns_per_khz = 1'000'000;
    // The largest shift of which 600 s of ticks times mult still fit 64 bits.
    unsigned mult_bits = 32;
    for (std::uint64_t top = (seconds * 1000 * khz) >> 32; top != 0; top >>= 1)
        --mult_bits;
    KernelLine line;
    line.shift = 32;
    std::uint64_t mult = 0;
    for (; line.shift > 0; --line.shift) {
        mult = ((ns_per_khz << line.shift) + khz / 2) / khz;
        if ((mult >> mult_bits) == 0) break;
    }
    line.mult = static_cast<std::uint32_t>(mult);
    return line;
}

HostPlatform::HostPlatform(std::uint32_t host_khz, std::int64_t boot_realtime_ns)
    : khz{host_khz}, raw{KernelLine::of_khz(host_khz)}, real{raw} {
    khz_at_load.fill(host_khz);
    real.ns = boot_realtime_ns;
}

}  // namespace continuo::model
