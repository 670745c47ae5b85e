#include "vmclock_watch.h"

#include <time.h>

namespace continuo::guest {
namespace {

constexpr std::uint32_t kAttempts = 100'000;
constexpr int kLooks = 3;
constexpr std::int64_t kNanosPerSecond = 1'000'000'000;
/// TAI - UTC is whole seconds. A guest whose REALTIME was this close to UTC kept UTC.
constexpr std::int64_t kKeptUtcNs = 100'000'000;
/// Less than this is NTP's to slew.
constexpr std::uint64_t kStepMinNs = 1'000'000;

std::int64_t nearest_second(std::int64_t ns) {
    const std::int64_t half = ns < 0 ? -kNanosPerSecond / 2 : kNanosPerSecond / 2;
    return (ns + half) / kNanosPerSecond * kNanosPerSecond;
}

std::uint64_t magnitude(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    return value < 0 ? 0 - bits : bits;
}

}  // namespace

VmclockWatch::Difference VmclockWatch::difference() {
    Difference best{false, 0, 0};
    for (int i = 0; i < kLooks; ++i) {
        std::int64_t before = 0, after = 0;
        continuo_vmclock_reading reading{};
        if (system_.clock_ns(CLOCK_REALTIME, before) != 0) return {false, 0, 0};
        if (continuo_vmclock_read(&page_, kAttempts, &reading) != CONTINUO_VMCLOCK_OK ||
            reading.tai_ns > static_cast<std::uint64_t>(INT64_MAX))
            return {false, 0, 0};
        if (system_.clock_ns(CLOCK_REALTIME, after) != 0) return {false, 0, 0};
        const std::int64_t half = (after - before) / 2;
        const std::uint64_t host = reading.bounded ? reading.latest_ns - reading.earliest_ns : 0;
        const std::uint64_t radius = continuo_saturating_add(host, magnitude(half));
        if (best.known && radius >= best.radius_ns) continue;
        best = {true, static_cast<std::int64_t>(reading.tai_ns) - before - half, radius};
    }
    return best;
}

void VmclockWatch::settle() {
    marker_ = CONTINUO_LOAD_ACQUIRE(page_.disruption_marker);
    settled_ = difference();
}

// REALTIME stood at TAI less a difference before the gap, and stands at TAI less another now. The
// first is some time old, and REALTIME has been disciplined since; but where it was UTC, the whole
// seconds of the difference say all of it, whatever its age.
VmclockWatch::Disruption VmclockWatch::look() {
    if (CONTINUO_LOAD_ACQUIRE(page_.disruption_marker) == marker_)
        return {Found::kNothing, false, 0, 0};
    const Difference now = difference();
    if (!now.known || !settled_.known) return {Found::kDisrupted, false, 0, 0};
    const std::int64_t whole = nearest_second(settled_.ns);
    const bool kept_utc = magnitude(settled_.ns - whole) <= static_cast<std::uint64_t>(kKeptUtcNs);
    const std::int64_t delta = now.ns - (kept_utc ? whole : settled_.ns);
    const std::uint64_t bound =
        kept_utc ? now.radius_ns : continuo_saturating_add(now.radius_ns, settled_.radius_ns);
    const bool worth_it = magnitude(delta) > bound && magnitude(delta) >= kStepMinNs;
    return {Found::kDisrupted, true, worth_it ? delta : 0, bound};
}

}  // namespace continuo::guest
