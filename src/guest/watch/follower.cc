#include "follower.h"

#include <algorithm>

namespace continuo::guest::watch {

namespace {

/// A mapping that the host's NTP has changed is off the last one by less; more than that without a
/// disruption is news.
constexpr std::uint64_t kMappingStepNs = 10'000;

bool has_page(const Pass& pass) {
    return pass.kvmclock || (pass.vmclock && vmclock_at(*pass.vmclock, pass.begin));
}

bool backward_is_wrong(Clock clock) {
    return clock != Clock::kRealtime && clock != Clock::kTai;
}

}  // namespace

CpuFollower::CpuFollower(const Settings& settings)
    : settings_{settings},
      monotonic_{kSteered, settings.window},
      raw_{kUnsteered, settings.window},
      phc_{kSteered, settings.window} {}

Breaks CpuFollower::breaks_at(const Pass& pass) const {
    Breaks breaks;
    look_at_order(pass, breaks);
    look_at_lines(pass, breaks);
    look_at_pages(pass, breaks);
    const bool more = !breaks.reasons.empty();
    breaks.plain_hole = breaks.reasons.only(Reason::kStop) && has_page(pass) && has_page(*last_);
    look_at_offsets(pass, breaks);
    breaks.offsets_only = !more && !breaks.reasons.empty();
    return breaks;
}

void CpuFollower::look_at_order(const Pass& pass, Breaks& breaks) const {
    for (const Clock clock : {Clock::kMonotonic, Clock::kMonotonicRaw})
        breaks.hole = std::max(breaks.hole, pass.of(clock).at - last_->of(clock).at);
    if (breaks.hole >= settings_.hole) breaks.reasons.add(Reason::kStop);
    if (pass.begin - last_->end < Ticks{}) breaks.reasons.add(Reason::kBackward);
    for (std::size_t i = 0; i < kClocks; ++i)
        if (backward_is_wrong(static_cast<Clock>(i)) &&
            pass.clocks[i].at - last_->clocks[i].at < Nanos{})
            breaks.reasons.add(Reason::kBackward);
}

void CpuFollower::look_at_lines(const Pass& pass, Breaks& breaks) const {
    breaks.monotonic = monotonic_.contradiction(pass.of(Clock::kMonotonic)) != Nanos{};
    breaks.raw = raw_.contradiction(pass.of(Clock::kMonotonicRaw)) != Nanos{};
    breaks.phc = pass.phc && phc_.contradiction(*pass.phc) != Nanos{};
    if (breaks.monotonic || breaks.raw) breaks.reasons.add(Reason::kStep);
    if (breaks.phc) breaks.reasons.add(Reason::kReference);
}

void CpuFollower::look_at_offsets(const Pass& pass, Breaks& breaks) const {
    if (!monotonic_.fit()) return;
    for (const Clock clock : kOffsetClocks) {
        const auto i = static_cast<std::size_t>(clock);
        const auto offset = OffsetTrack::offset_in(pass, clock, *monotonic_.fit());
        breaks.stepped[i] = offsets_[i].contradicts(offset);
        if (breaks.stepped[i]) breaks.reasons.add(Reason::kStep);
    }
}

void CpuFollower::look_at_pages(const Pass& pass, Breaks& breaks) const {
    if (pass.kvmclock && last_->kvmclock) {
        const auto &a = *pass.kvmclock, &b = *last_->kvmclock;
        if (a.tsc_timestamp() != b.tsc_timestamp() || a.system_time() != b.system_time() ||
            !(a.scale() == b.scale()))
            breaks.reasons.add(Reason::kRepublished);
    }
    if (pass.notices && last_->notices && *pass.notices != *last_->notices)
        breaks.reasons.add(Reason::kNotice);
    if (!pass.vmclock || !last_->vmclock) return;
    if (pass.vmclock->disruption_marker != last_->vmclock->disruption_marker ||
        pass.vmclock->generation != last_->vmclock->generation)
        breaks.reasons.add(Reason::kDisruption);
    if (same_mapping(*pass.vmclock, *last_->vmclock)) return;
    const auto moved = vmclock_seam(*last_->vmclock, *pass.vmclock, last_->end, pass.begin);
    if (moved && moved->radius() > kMappingStepNs) breaks.reasons.add(Reason::kReference);
}

Side CpuFollower::before(const Breaks& breaks) const {
    Side side;
    if (!breaks.offsets_only) {
        side.monotonic_readings = monotonic_.readings();
        side.raw_readings = raw_.readings();
        side.monotonic = monotonic_.last();
        side.raw = raw_.last();
        side.phc = phc_.last();
        side.skew = skew_;
    }
    for (const Clock clock : kOffsetClocks) {
        const auto i = static_cast<std::size_t>(clock);
        if (!breaks.offsets_only || breaks.stepped[i]) side.offset[i] = offsets_[i].offset();
    }
    return side;
}

void CpuFollower::close(const Breaks& breaks) {
    if (breaks.closes_lines()) {
        // Where one was left, the other may have been, by a reading too wide to tell.
        const bool left = breaks.monotonic || breaks.raw;
        monotonic_.close(left);
        raw_.close(left);
        // The host's clock leaves its line wherever the counter stood still.
        phc_.close(true);
        skew_.reset();
    }
    for (const Clock clock : kOffsetClocks) {
        const auto i = static_cast<std::size_t>(clock);
        if (breaks.closes_lines() || breaks.stepped[i]) offsets_[i].close();
    }
}

void Aftermath::follow(const Pass& pass, const std::optional<LineFit>& slope) {
    if (!lines_ended_) {
        monotonic_.add(pass.of(Clock::kMonotonic));
        raw_.add(pass.of(Clock::kMonotonicRaw));
        if (pass.phc) phc_.add(*pass.phc);
    }
    if (!slope) return;
    for (const Clock clock : kOffsetClocks) {
        const auto i = static_cast<std::size_t>(clock);
        if (!offset_ended_[i]) offsets_[i].add(OffsetTrack::offset_in(pass, clock, *slope));
    }
}

void Aftermath::follow_skew(const std::optional<SkewInterval>& skew) {
    if (!lines_ended_) skew_ = skew;
}

void Aftermath::end(const Breaks& now) {
    lines_ended_ = lines_ended_ || now.closes_lines();
    for (std::size_t i = 0; i < kClocks; ++i)
        offset_ended_[i] = offset_ended_[i] || now.closes_lines() || now.stepped[i];
}

Side Aftermath::side() const {
    Side side;
    side.monotonic_readings = monotonic_.beginning();
    side.raw_readings = raw_.beginning();
    side.monotonic = monotonic_.first();
    side.raw = raw_.first();
    side.phc = phc_.first();
    side.skew = skew_;
    for (const Clock clock : kOffsetClocks) {
        const auto i = static_cast<std::size_t>(clock);
        side.offset[i] = offsets_[i].offset();
    }
    return side;
}

void CpuFollower::follow(const Pass& pass) {
    monotonic_.add(pass.of(Clock::kMonotonic));
    raw_.add(pass.of(Clock::kMonotonicRaw));
    if (pass.phc) phc_.add(*pass.phc);
    if (monotonic_.fit())
        for (const Clock clock : kOffsetClocks) {
            auto& track = offsets_[static_cast<std::size_t>(clock)];
            track.add(OffsetTrack::offset_in(pass, clock, *monotonic_.fit()));
        }
    last_ = pass;
}

namespace {

SkewInterval skew_of(const Exchange& exchange) {
    return {exchange.heard - exchange.back, exchange.heard - exchange.sent};
}

}  // namespace

bool CpuFollower::contradicts(const Exchange& exchange) const {
    return skew_ && !intersection(*skew_, skew_of(exchange));
}

void CpuFollower::follow(const Exchange& exchange) {
    const SkewInterval now = skew_of(exchange);
    const auto both = skew_ ? intersection(*skew_, now) : std::optional{now};
    skew_ = both ? both : std::optional{now};
}

std::optional<Instant> vmclock_at(const continuo_vmclock_words& words, Count counter) {
    continuo_vmclock_reading reading{};
    if (continuo_vmclock_judge(&words) != CONTINUO_VMCLOCK_OK ||
        continuo_vmclock_evaluate(&words, counter.raw(), &reading) != CONTINUO_VMCLOCK_OK)
        return std::nullopt;
    return Instant::from_raw(reading.tai_ns);
}

std::optional<NanosInterval> vmclock_seam(const continuo_vmclock_words& before,
                                          const continuo_vmclock_words& after, Count from,
                                          Count to) {
    const auto first_before = vmclock_at(before, from), first_after = vmclock_at(after, from);
    const auto last_before = vmclock_at(before, to), last_after = vmclock_at(after, to);
    if (!first_before || !first_after || !last_before || !last_after) return std::nullopt;
    const NanosInterval ends{*first_after - *first_before, *last_after - *last_before};
    return same_mapping(before, after) ? ends : ends + NanosInterval::around_zero(1);
}

bool same_mapping(const continuo_vmclock_words& a, const continuo_vmclock_words& b) {
    return a.counter_value == b.counter_value && a.period == b.period && a.shift == b.shift &&
           a.seconds == b.seconds && a.fraction == b.fraction;
}

}  // namespace continuo::guest::watch
