#include "continuo/sim/guest.h"

#include <algorithm>

#include "continuo/model/platform.h"

namespace continuo::sim {

namespace {

constexpr std::uint64_t kNanos = 1'000'000'000;
constexpr std::uint32_t kTaiOffsetSec = 37;

std::uint64_t bits(std::int64_t value) {
    return static_cast<std::uint64_t>(value);
}

}  // namespace

void NoticePage::publish(std::int64_t delta_ns, std::int64_t gap_ns, std::uint64_t new_sequence,
                         std::int64_t accounted_ns, Bug bug) {
    // The bug is a field that holds the last delta alone: what was not accounted for is gone.
    if (bug == Bug::kSecondNoticeOverwrites) total_delta_ns = accounted_ns;
    total_delta_ns += delta_ns;
    total_gap_ns += gap_ns;
    sequence = bug == Bug::kNoticeSequenceEven ? new_sequence & ~std::uint64_t{1} : new_sequence;
}

std::uint64_t Timekeeper::monotonic(std::uint64_t cycles) const {
    const std::uint64_t delta = cycles - cycle_last;
    // x86's readers take a counter that is behind for one that stands (vdso_calc_ns()).
    if (delta >> 63 != 0) return mono_ns;
    if (clamps) {
        const auto wide = static_cast<time::u128>(delta) * mult + frac;
        return mono_ns + static_cast<std::uint64_t>(wide >> shift);
    }
    return mono_ns + ((delta * mult + frac) >> shift);
}

bool Timekeeper::beyond(std::uint64_t cycles) const {
    const std::uint64_t delta = cycles - cycle_last;
    return delta >> 63 == 0 && ((static_cast<time::u128>(delta) * mult + frac) >> 64) != 0;
}

void Timekeeper::accumulate(std::uint64_t cycles, bool in_time) {
    const std::uint64_t delta = cycles - cycle_last;
    if (delta >> 63 != 0) return;
    const bool wide_enough = clamps || in_time;
    const auto wide = wide_enough ? static_cast<time::u128>(delta) * mult + frac
                                  : time::u128{delta * mult + frac};
    mono_ns += static_cast<std::uint64_t>(wide >> shift);
    frac = static_cast<std::uint64_t>(wide) & ((std::uint64_t{1} << shift) - 1);
    cycle_last = cycles;
}

void Timekeeper::resume(std::uint64_t cycles) {
    const std::uint64_t delta = cycles - cycle_last;
    cycle_last = cycles;
    if (delta >> 63 != 0) return;
    to_real_ns += static_cast<std::uint64_t>((static_cast<time::u128>(delta) * mult) >> shift);
}

void Guest::begin(const GuestSpec& spec, std::uint32_t khz, Bug bug) {
    bug_ = bug;
    timekeeper.source = spec.clocksource;
    timekeeper.clamps = spec.clamps_large_deltas;
    // kvmclock counts ns already: Linux registers it at 1 GHz.
    const auto line =
        model::KernelLine::of_khz(spec.clocksource == Clocksource::kKvmclock ? 1'000'000 : khz);
    timekeeper.mult = line.mult;
    timekeeper.shift = line.shift;
    timekeeper.to_tai_ns = kTaiOffsetSec * kNanos;
}

std::uint64_t Guest::read_kvmclock(const abi::pvclock_vcpu_time_info& page, std::uint64_t tsc,
                                   ProbeSet& probes) {
    const std::uint64_t ticks = tsc - page.tsc_timestamp;
    const int shift = page.tsc_shift;
    const std::uint64_t shifted = shift < 0 ? ticks >> (-shift & 63) : ticks << (shift & 63);
    const auto ns = static_cast<std::uint64_t>(
        (static_cast<time::u128>(shifted) * page.tsc_to_system_mul) >> 32);
    const std::uint64_t now = page.system_time + ns;
    if ((page.flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0) return now;
    if (bug_ == Bug::kReaderWithoutFallback) return now;
    probes |= bit(Probe::kFallbackReader);
    // The compare-and-exchange with the highest value that any reader has seen.
    if (static_cast<std::int64_t>(now - last_kvmclock) > 0) last_kvmclock = now;
    return last_kvmclock;
}

std::uint64_t Guest::sched_clock(std::uint64_t kvmclock) const {
    const std::uint64_t since = kvmclock - sched_offset;
    if (bug_ == Bug::kSchedClockUnderflow) return since;
    return static_cast<std::int64_t>(since) < 0 ? 0 : since;
}

void Guest::set_realtime(std::int64_t by_ns) {
    timekeeper.to_real_ns += bits(by_ns);
    realtime_was_set = true;
    if (timer_armed && bug_ != Bug::kTimersNotCancelled) timer_cancelled = true;
}

bool Guest::answer_notice(Told told) {
    if (told == Told::kFixMonotonic) {
        const std::int64_t gap = notice.total_gap_ns - gap_accounted_ns;
        gap_accounted_ns = notice.total_gap_ns;
        // MONOTONIC goes back, and REALTIME stays where it is.
        timekeeper.mono_ns -= bits(gap);
        timekeeper.to_real_ns += bits(gap);
        return gap != 0;
    }
    const bool waiting = notice.pending() || notice.total_delta_ns != accounted_ns;
    if (!waiting) return false;
    if (notice.total_delta_ns != accounted_ns) set_realtime(notice.total_delta_ns - accounted_ns);
    accounted_ns = notice.total_delta_ns;
    gap_accounted_ns = notice.total_gap_ns;
    if (bug_ != Bug::kAgentForgetsUnsync) {
        ntp.maxerror_ns = kNtpPhaseLimitNs;
        ntp.esterror_ns = kNtpPhaseLimitNs;
        ntp.unsync = true;
    }
    if (notice.pending()) ++notice.sequence;
    return true;
}

void Guest::synchronise(std::int64_t by_ns, std::int64_t accuracy_ns, bool step) {
    if (step)
        set_realtime(by_ns);
    else
        timekeeper.to_real_ns += bits(by_ns);
    ntp.maxerror_ns = std::max<std::int64_t>(2 * (accuracy_ns < 0 ? -accuracy_ns : accuracy_ns), 1);
    ntp.esterror_ns = ntp.maxerror_ns / 2;
    ntp.unsync = false;
}

}  // namespace continuo::sim
