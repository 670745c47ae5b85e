#include "guest_page.h"

#include "continuo/time/tsc_scale.h"

namespace continuo::machine {

namespace {

/// The page may be this far from the kernel's own line before it is taken for damaged: 300 s, the
/// time between two refreshes of a page, at 500 ppm, where the kernel gives up on a TSC.
constexpr std::uint64_t kPageFromKernelNsMax = 150'000'000;

/// How far the kernel's line and an honest page may be apart. Between two updates of the
/// masterclock, which may be days, KVM_GET_CLOCK counts host ticks and the page a scaled guest's,
/// at a frequency in whole kHz.
std::uint64_t believable_ns(const PvclockLine& kernel, const PvclockLine& page, const TscMap& map,
                            Hz effective) {
    const std::int64_t age_ticks = (kernel.tsc_timestamp() - page.tsc_timestamp()).raw();
    if (!map.scales() || age_ticks <= 0) return kPageFromKernelNsMax;
    const auto truncated = time::rate_error(
        *time::ExactRatio::make(effective.hz() + 1000, effective.hz()), time::ExactRatio{});
    const auto nanos = time::clock_line(Count<GuestCounter>{}, Instant<Kvmclock>{}, effective);
    const std::uint64_t age_ns =
        nanos.ceil_at(Count<GuestCounter>::from_raw(static_cast<std::uint64_t>(age_ticks))).raw();
    return kPageFromKernelNsMax + time::ceil_drift(truncated, age_ns);
}

}  // namespace

Hz effective_frequency(const TscMap& map, const HostFacts& facts) {
    return Hz::from_khz(map.wrap_scale(facts.counter_frequency.floor_khz()))
        .value_or(facts.counter_frequency);
}

std::optional<PvclockLine> believable_page(Machine& machine, const PvclockLine& kernel,
                                           const TscMap& map, Hz effective) {
    const auto page = machine.pvclock_page(0);
    if (!page || !*page)
        return std::nullopt;  // not enabled, or damaged by the guest: the kernel's line then
    const auto apart = kernel.system_time() - (*page)->at(kernel.tsc_timestamp());
    const bool far = apart.magnitude() > believable_ns(kernel, **page, map, effective);
    return far ? std::nullopt : *page;
}

}  // namespace continuo::machine
