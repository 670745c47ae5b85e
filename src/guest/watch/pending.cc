#include "pending.h"

#include <algorithm>

namespace continuo::guest::watch {

void Boundary::amend(const Pass& pass, const Breaks& now) {
    next.kvmclock = pass.kvmclock;
    next.vmclock = pass.vmclock;
    breaks.reasons.add(now.reasons);
    breaks.plain_hole = false;
}

bool Pending::has(std::uint32_t cpu) const {
    return std::any_of(boundaries.begin(), boundaries.end(),
                       [cpu](const Boundary& b) { return b.next.cpu == cpu; });
}

bool Pending::announced_as(const Breaks& breaks) const {
    return breaks.plain_hole ||
           std::any_of(boundaries.begin(), boundaries.end(), [&breaks](const Boundary& b) {
               return b.breaks.plain_hole || b.breaks.announced() == breaks.announced();
           });
}

bool Pending::overlaps(Count last, Count next) const {
    return next - from >= Ticks{} && to - last >= Ticks{};
}

void Pending::narrow(Count last, Count next) {
    if (last - from > Ticks{}) from = last;
    if (to - next > Ticks{}) to = next;
}

bool Pending::offsets_only() const {
    return std::all_of(boundaries.begin(), boundaries.end(),
                       [](const Boundary& b) { return b.breaks.offsets_only; });
}

bool Pending::stopped(std::uint32_t cpus, Nanos hole) const {
    const auto slept =
        std::count_if(boundaries.begin(), boundaries.end(),
                      [hole](const Boundary& b) { return b.breaks.hole.raw() >= hole.raw() / 2; });
    const bool long_enough =
        std::any_of(boundaries.begin(), boundaries.end(),
                    [hole](const Boundary& b) { return b.breaks.hole >= hole; });
    return long_enough && static_cast<std::uint32_t>(slept) == cpus;
}

namespace {

/// Intervals of one seam as several CPUs measured it.
class Combined {
  public:
    void add(NanosInterval seam) {
        const auto both = common_ ? intersection(*common_, seam) : std::optional{seam};
        if (both && agree_)
            common_ = both;
        else
            agree_ = false;
        all_ = all_ ? hull(*all_, seam) : seam;
    }
    bool any() const { return all_.has_value(); }
    bool agree() const { return agree_; }
    NanosInterval seam() const { return agree_ ? *common_ : *all_; }

  private:
    std::optional<NanosInterval> common_, all_;
    bool agree_ = true;
};

std::optional<Seam> seam_of(Method method, const Combined& combined, Nanos jump) {
    if (!combined.any()) return std::nullopt;
    return Seam{method, combined.seam(), combined.agree(), std::nullopt, jump};
}

Nanos jump_of(const Pending& pending, Clock clock) {
    const Boundary& first = pending.boundaries.front();
    return first.next.of(clock).at - first.last.of(clock).at;
}

/// A clock whose rate was steered leaves its line slowly, and is found out only when it is as far
/// off as readings are wide: so much may be of the time before.
std::uint64_t hidden_ns(const Boundary& b, Clock clock, const LineFit& before,
                        const LineFit& after) {
    const auto width_ns = [&](const Bracket& reading) {
        const Slope slope = before.slope_max();
        const auto ticks = static_cast<time::i128>((reading.after - reading.before).raw());
        return static_cast<std::uint64_t>(time::sat_i64(ticks * slope.nanos / slope.ticks + 1));
    };
    return before.width().magnitude() + after.width().magnitude() + width_ns(b.last.of(clock)) +
           width_ns(b.next.of(clock));
}

std::optional<Seam> line_seam(const Pending& pending, Clock clock,
                              std::optional<LineFit> Side::*fit, const Steering& steering) {
    Combined combined;
    for (const Boundary& b : pending.boundaries) {
        if (!(b.before.*fit) || !(b.after.*fit)) continue;
        const Nanos gap = b.next.of(clock).at - b.last.of(clock).at;
        std::uint64_t steered = steering.allowed(gap).magnitude();
        if (steering.drift_shift && b.breaks.monotonic)
            steered += hidden_ns(b, clock, *(b.before.*fit), *(b.after.*fit));
        combined.add(seam(*(b.before.*fit), *(b.after.*fit), b.last.end, b.next.begin) +
                     NanosInterval::around_zero(steered));
    }
    return seam_of(Method::kLines, combined, jump_of(pending, clock));
}

/// MONOTONIC's seam (none where only offsets changed), and what the offset changed by.
std::optional<Seam> offset_seam(const Pending& pending, Clock clock,
                                const std::optional<Seam>& monotonic) {
    const auto i = static_cast<std::size_t>(clock);
    Combined combined;
    const Boundary* first = nullptr;
    for (const Boundary& b : pending.boundaries) {
        if (!b.before.offset[i] || !b.after.offset[i]) continue;
        combined.add(*b.after.offset[i] - *b.before.offset[i]);
        if (first == nullptr || first->next.begin - b.next.begin > Ticks{}) first = &b;
    }
    auto seam = seam_of(Method::kOffset, combined, jump_of(pending, clock));
    // The kernel has one offset for all CPUs: where they differ, one came back so late that a
    // second step fell into its gap. The first one that came back saw this event alone.
    if (seam && !seam->cpus_agree) seam->seam = *first->after.offset[i] - *first->before.offset[i];
    if (!seam || pending.offsets_only()) return seam;
    if (!monotonic) return std::nullopt;
    seam->seam = seam->seam + monotonic->seam;
    seam->cpus_agree = seam->cpus_agree && monotonic->cpus_agree;
    return seam;
}

NanosInterval kvmclock_between(const time::PvclockLine& before, const time::PvclockLine& after,
                               Count from, Count to) {
    const auto nanos = [](time::Nanos<time::Kvmclock> d) { return Nanos::from_raw(d.raw()); };
    const NanosInterval ends{nanos(after.at(from) - before.at(from)),
                             nanos(after.at(to) - before.at(to))};
    const bool same = after.tsc_timestamp() == before.tsc_timestamp() &&
                      after.system_time() == before.system_time() &&
                      after.scale() == before.scale();
    return same ? ends : ends + NanosInterval::around_zero(1);
}

std::optional<Seam> kvmclock_seam(const Pending& pending) {
    Combined combined;
    for (const Boundary& b : pending.boundaries)
        if (b.last.kvmclock && b.next.kvmclock)
            combined.add(
                kvmclock_between(*b.last.kvmclock, *b.next.kvmclock, b.last.end, b.next.begin));
    if (!combined.any()) return std::nullopt;
    const Boundary& first = pending.boundaries.front();
    Nanos jump;
    if (first.last.kvmclock && first.next.kvmclock)
        jump = Nanos::from_raw(
            (first.next.kvmclock->at(first.next.begin) - first.last.kvmclock->at(first.last.end))
                .raw());
    return seam_of(Method::kPage, combined, jump);
}

std::optional<Seam> vmclock_step(const Pending& pending) {
    Combined combined;
    Nanos jump;
    for (const Boundary& b : pending.boundaries) {
        if (!b.last.vmclock || !b.next.vmclock) continue;
        const auto step = vmclock_seam(*b.last.vmclock, *b.next.vmclock, b.last.end, b.next.begin);
        if (!step) continue;
        combined.add(*step);
        jump =
            *vmclock_at(*b.next.vmclock, b.next.begin) - *vmclock_at(*b.last.vmclock, b.last.end);
    }
    return seam_of(Method::kPage, combined, jump);
}

std::optional<Seam> phc_step(const Pending& pending) {
    Combined combined;
    Nanos jump;
    for (const Boundary& b : pending.boundaries) {
        if (!b.before.phc || !b.after.phc) continue;
        jump = b.after.phc->at(b.next.begin).hi - b.before.phc->at(b.last.end).lo;
        combined.add(seam(*b.before.phc, *b.after.phc, b.last.end, b.next.begin) +
                     NanosInterval::around_zero(kSteered.allowed(jump).magnitude()));
    }
    return seam_of(Method::kLines, combined, jump);
}

/// How long no CPU read anything, at most; by the host's clock where the guest has it.
void measure_blackout(const Pending& pending, Event& event) {
    const auto least = [&](Nanos length, Track by) {
        if (event.blackout && *event.blackout <= length) return;
        event.blackout = length;
        event.blackout_by = by;
    };
    if (event.reference) {
        least(event.of(*event.reference)->jump, *event.reference);
        return;
    }
    for (const Boundary& b : pending.boundaries)
        least(b.breaks.hole, Track::kMonotonicRaw);
}

void measure_lost(Event& event) {
    if (!event.reference) return;
    const NanosInterval host = event.of(*event.reference)->seam;
    for (std::size_t i = 0; i < kTracks; ++i)
        if (event.seams[i]) event.seams[i]->lost = host - event.seams[i]->seam;
}

void measure_skew(const Pending& pending, Event& event) {
    for (const Boundary& b : pending.boundaries)
        if (b.before.skew || b.after.skew)
            event.skew.push_back({b.next.cpu, b.before.skew, b.after.skew});
}

bool excludes_zero(const std::optional<Seam>& seam) {
    return seam && !seam->seam.contains(Nanos{});
}

/// A line that was left is a step where its seam says so, and else a change of rate.
void classify(Event& event) {
    const bool left = event.reasons.has(Reason::kStep);
    bool stepped = false;
    for (const Track track : {Track::kMonotonic, Track::kMonotonicRaw, Track::kBoottime,
                              Track::kRealtime, Track::kTai, Track::kKvmclock})
        stepped = stepped || excludes_zero(event.of(track));
    const bool known = event.of(Track::kMonotonic) || event.of(Track::kMonotonicRaw);
    event.reasons.remove(Reason::kStep);
    if (stepped || (left && !known))
        event.reasons.add(Reason::kStep);
    else if (left)
        event.reasons.add(Reason::kRate);
}

std::vector<Residual> residuals(const std::vector<Bracket>& readings, const LineFit& line,
                                const Boundary& b, Clock clock) {
    std::vector<Residual> out;
    out.reserve(readings.size());
    for (const Bracket& r : readings)
        out.push_back({(r.at - b.next.of(clock).at).raw(), (r.at - line.at(r.after).hi).raw(),
                       (r.at - line.at(r.before).lo).raw() + 1});
    return out;
}

void draw(const Pending& pending, Event& event) {
    const Boundary& b = pending.boundaries.front();
    const auto both = [&](const std::vector<Bracket>& first, const std::vector<Bracket>& second,
                          const std::optional<LineFit>& line, Clock clock) {
        if (!line) return std::vector<Residual>{};
        auto out = residuals(first, *line, b, clock);
        const auto rest = residuals(second, *line, b, clock);
        out.insert(out.end(), rest.begin(), rest.end());
        return out;
    };
    event.picture.monotonic = both(b.before.monotonic_readings, b.after.monotonic_readings,
                                   b.before.monotonic, Clock::kMonotonic);
    event.picture.monotonic_raw =
        both(b.before.raw_readings, b.after.raw_readings, b.before.raw, Clock::kMonotonicRaw);
}

}  // namespace

Event measured(const Pending& pending) {
    Event event;
    event.reasons = pending.reasons;
    event.from = pending.from;
    event.to = pending.to;
    event.at = pending.at;
    event.realtime = pending.boundaries.front().next.of(Clock::kRealtime).at;
    event.cpus = static_cast<std::uint32_t>(pending.boundaries.size());
    event.since_stop = pending.since_stop;
    auto& seams = event.seams;
    const auto at = [&](Track track) -> std::optional<Seam>& {
        return seams[static_cast<std::size_t>(track)];
    };
    if (!pending.offsets_only()) {
        at(Track::kMonotonic) = line_seam(pending, Clock::kMonotonic, &Side::monotonic, kSteered);
        at(Track::kMonotonicRaw) = line_seam(pending, Clock::kMonotonicRaw, &Side::raw, kUnsteered);
        at(Track::kKvmclock) = kvmclock_seam(pending);
        at(Track::kVmclock) = vmclock_step(pending);
        at(Track::kPhc) = phc_step(pending);
        at(Track::kCounter) = Seam{Method::kLines, {}, true, std::nullopt, Nanos{}};
    }
    for (const Clock clock : kOffsetClocks)
        at(track_of(clock)) = offset_seam(pending, clock, event.of(Track::kMonotonic));
    for (const Track track : {Track::kPhc, Track::kVmclock})
        if (at(track)) event.reference = track;
    measure_lost(event);
    if (!pending.offsets_only()) measure_blackout(pending, event);
    measure_skew(pending, event);
    classify(event);
    draw(pending, event);
    return event;
}

}  // namespace continuo::guest::watch
