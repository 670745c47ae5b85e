#include "continuo/sim/host.h"

#include <algorithm>

namespace continuo::sim {

namespace {

using time::i128;
using time::kNanosPerSecond;
using time::u128;

/// What a clock that NTP disciplines may gain between two looks of discipline().
constexpr std::int64_t kDisciplineMarginNs = 10'000;

std::uint64_t scaled_by_ppb(std::uint64_t value, std::int64_t ppb) {
    return value + static_cast<std::uint64_t>(static_cast<i128>(value) * ppb /
                                              static_cast<i128>(kNanosPerSecond));
}

}  // namespace

void Oscillator::walk_to(TrueTime t) {
    // A gap of years is walked in 64 long steps: its length in the walk's own would take as long
    // as it lasted.
    const Span gap = t - since_;
    const Span step = std::max(step_, gap / 64);
    while (t - since_ >= step) {
        restart(since_ + step);
        off_ppb_ += size_ppb_.from(random_);
        if (off_ppb_ > max_ppb_) off_ppb_ = 2 * max_ppb_ - off_ppb_;
        if (off_ppb_ < -max_ppb_) off_ppb_ = -2 * max_ppb_ - off_ppb_;
        off_ppb_ = std::clamp(off_ppb_, -max_ppb_, max_ppb_);
        rate_ = scaled_by_ppb(nominal_, off_ppb_);
    }
}

void Host::begin(WorldClock& clock, const HostSpec& spec, unsigned index, Random& random) {
    clock_ = &clock;
    spec_ = &spec;
    rules_ = model::KernelRules::linux(spec.kernel_major, spec.kernel_minor);
    rules_.scaling_frac_bits = spec.scaling_bits;
    identity_.boot_id = {};
    identity_.boot_id[0] = static_cast<std::uint8_t>(index + 1);
    khz_ = static_cast<std::uint32_t>(spec.tsc_khz.from(random));
    const auto millihertz = static_cast<std::uint64_t>(khz_) * 1'000'000 +
                            static_cast<std::uint64_t>(spec.tsc_sub_khz_hz.from(random)) * 1'000;
    drift_ppb_ = spec.drift_ppb.from(random);
    oscillator_ = Oscillator{clock.now, static_cast<std::uint64_t>(spec.counter_start.from(random)),
                             scaled_by_ppb(millihertz, drift_ppb_)};
    if (spec.wander_step_ns > 0)
        oscillator_.wander(span_ns(spec.wander_step_ns), spec.wander_ppb, spec.wander_max_ppb,
                           random.next());
    skew_.fill(0);
    if (spec.cpu_skew_ticks != Draw{})
        for (std::size_t cpu = 1; cpu < skew_.size(); ++cpu)
            skew_[cpu] = static_cast<std::uint64_t>(spec.cpu_skew_ticks.from(random));
    tsc_clocksource_ = spec.tsc_clocksource;
    tsc_unstable_ = spec.tsc_unstable;
    tai_offset_sec_ = spec.tai_offset_sec;
    slept_ns_ = 0;
    raw_line_ = model::KernelLine::of_khz(khz_);
    raw_line_.counter = count_now();
    raw_line_.ns = 1'000'000'000;  // booted a second ago, as far as KVM can tell
    tai_rate_ppb_ = spec.tai_rate_ppb.from(random);
    tai_ = true_line(spec.tai_error_ns.from(random), tai_rate_ppb_);
    hpet_since_ = clock.now;
    hpet_base_ns_ = raw_line_.ns;
    hpet_tai_ns_ = tai_.ns;
}

Host::ClockLine Host::true_line(std::int64_t error_ns, std::int64_t rate_ppb) {
    ClockLine line;
    line.counter = count_now();
    line.ns = clock_->true_tai(clock_->now) + static_cast<std::uint64_t>(error_ns);
    // ns a tick = 1/16 over rate/2^64, times 2^54.
    const auto mult = static_cast<std::uint64_t>((u128{1} << 114) / oscillator_.rate());
    line.mult = scaled_by_ppb(mult, rate_ppb);
    return line;
}

std::uint64_t Host::utc(std::uint64_t tai) const {
    std::int64_t offset = clock_->tai_offset_sec;
    if (clock_->leap_sec != 0) {
        const std::uint64_t leap = clock_->true_tai(clock_->leap_at);
        if (static_cast<std::int64_t>(tai - leap) >= 0) offset += clock_->leap_sec;
    }
    return tai - static_cast<std::uint64_t>(offset) * kNanosPerSecond;
}

std::uint64_t Host::tai_here() {
    if (tsc_clocksource_) return tai_.at(count_now());
    return hpet_tai_ns_ + static_cast<std::uint64_t>(floor_ns(clock_->now - hpet_since_));
}

std::int64_t Host::base_now_ns(unsigned cpu) {
    if (tsc_clocksource_) return base_ns(tsc(cpu));
    clock_->now += clock_->reading;
    return hpet_base_ns_ + floor_ns(clock_->now - hpet_since_) + slept_ns_;
}

std::int64_t Host::realtime_now_ns(unsigned cpu) {
    if (tsc_clocksource_) return realtime_ns(tsc(cpu));
    clock_->now += clock_->reading;
    return wrap(utc(tai_here()));
}

std::int64_t Host::tai_error_ns() {
    return static_cast<std::int64_t>(tai_here() - clock_->true_tai(clock_->now));
}

void Host::ntp_step(std::int64_t size_ns) {
    tai_ = tai_.moved_to(count_now());
    tai_.ns += static_cast<std::uint64_t>(size_ns);
    hpet_tai_ns_ += static_cast<std::uint64_t>(size_ns);
}

void Host::ntp_slew(std::int64_t ppb) {
    tai_rate_ppb_ = ppb;
    tai_ = true_line(tai_error_ns(), ppb);
}

void Host::lose_clocksource() {
    if (!tsc_clocksource_) return;
    const std::uint64_t here = count_now();
    hpet_since_ = clock_->now;
    hpet_base_ns_ = raw_line_.at(here);
    hpet_tai_ns_ = tai_.at(here);
    tsc_clocksource_ = false;
}

void Host::become_unstable(std::uint64_t ticks) {
    for (std::size_t cpu = 1; cpu < skew_.size(); ++cpu)
        skew_[cpu] += ticks;
    tsc_unstable_ = true;
    lose_clocksource();
}

void Host::sleep(Span length) {
    // The counter stands still (S3 on most machines); the kernel makes up for it from its RTC.
    oscillator_.stop_for(clock_->now, length);
    clock_->now += length;
    slept_ns_ += floor_ns(length);
    tai_.ns += static_cast<std::uint64_t>(floor_ns(length));
    hpet_since_ += length;
    hpet_tai_ns_ += static_cast<std::uint64_t>(floor_ns(length));
}

void Host::discipline() {
    const std::int64_t bound = static_cast<std::int64_t>(spec_->tai_bound_ns);
    if (!spec_->synchronised || spec_->lies) return;
    const std::int64_t keep = bound - std::min(bound / 2, kDisciplineMarginNs);
    const std::int64_t error = tai_error_ns();
    const std::int64_t kept = std::clamp(error, -keep, keep);
    if (tsc_clocksource_)
        tai_ = true_line(kept, tai_rate_ppb_);
    else
        hpet_tai_ns_ += static_cast<std::uint64_t>(kept - error);
}

}  // namespace continuo::sim
