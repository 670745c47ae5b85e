#include "statistics.h"

#include <algorithm>

#include "follower.h"

namespace continuo::guest::watch {

namespace {

constexpr std::size_t kBins = 600;
constexpr std::size_t kNtpKept = 200;
/// The kernel lets maxerror grow by 500 ppm; more than this beyond that is a change by somebody.
constexpr std::int64_t kMaxerrorJumpUs = 10'000;

Backward backward(Track track, std::uint64_t first, std::uint64_t second) {
    Backward out;
    out.track = track;
    out.first_value = first;
    out.second_value = second;
    out.size = first - second;
    return out;
}

}  // namespace

Statistics::Statistics(const Settings& settings, Listener& listener)
    : settings_{settings}, listener_{listener} {
    for (std::uint32_t cpu = 0; cpu < settings.cpus; ++cpu) {
        report_.cpus.emplace_back();
        report_.cpus.back().cpu = cpu;
    }
}

Nanos Statistics::since_start(const Pass& pass) const {
    return first_ ? pass.of(Clock::kMonotonicRaw).at - first_->of(Clock::kMonotonicRaw).at
                  : Nanos{};
}

void Statistics::count(const Pass& pass, const std::optional<Pass>& last) {
    if (!first_) first_ = pass;
    ++report_.passes;
    ++report_.cpus[pass.cpu].passes;
    report_.ran = std::max(report_.ran, since_start(pass));
    const auto read = [this](Track track, bool there) {
        report_.of(track).readings += there ? 1 : 0;
    };
    for (std::size_t i = 0; i < kClocks; ++i)
        read(static_cast<Track>(i), true);
    read(Track::kKvmclock, pass.kvmclock.has_value());
    read(Track::kVmclock, pass.vmclock && vmclock_at(*pass.vmclock, pass.begin));
    read(Track::kPhc, pass.phc.has_value());
    read(Track::kCounter, true);
    const std::int64_t ticks = (pass.end - pass.begin).raw();
    pass_ticks_ += static_cast<time::u128>(std::max<std::int64_t>(ticks, 0));
    pass_ticks_min_ = std::min(pass_ticks_min_, ticks);
    pass_ticks_max_ = std::max(pass_ticks_max_, ticks);
    if (last) count_jumps(pass, *last);
    count_across(pass);
    follow_ntp(pass);
    if (pass.cpu == 0) draw(pass);  // the one that reads the PTP clock
}

void Statistics::count_jumps(const Pass& pass, const Pass& last) {
    auto& cpu = report_.cpus[pass.cpu];
    for (std::size_t i = 0; i < kClocks; ++i) {
        const Nanos jump = pass.clocks[i].at - last.clocks[i].at;
        auto& largest = report_.tracks[i].largest_jump;
        largest = std::max(largest, jump);
        if (jump >= Nanos{}) continue;
        Backward back =
            backward(static_cast<Track>(i), last.clocks[i].at.raw(), pass.clocks[i].at.raw());
        back.first_cpu = back.second_cpu = pass.cpu;
        back.at = since_start(pass);
        back.first_after = last.clocks[i].after;
        back.second_before = pass.clocks[i].before;
        note(back, false);
    }
    hole_in_bin_ = std::max(
        hole_in_bin_, (pass.of(Clock::kMonotonicRaw).at - last.of(Clock::kMonotonicRaw).at).raw());
    cpu.longest_hole = std::max(
        cpu.longest_hole, pass.of(Clock::kMonotonicRaw).at - last.of(Clock::kMonotonicRaw).at);
    if (pass.begin - last.end >= Ticks{}) return;
    Backward back = backward(Track::kCounter, last.end.raw(), pass.begin.raw());
    back.first_cpu = back.second_cpu = pass.cpu;
    back.at = since_start(pass);
    back.first_after = last.end;
    back.second_before = pass.begin;
    note(back, false);
}

void Statistics::count_across(const Pass& pass) {
    for (std::size_t i = 0; i < kClocks; ++i) {
        const auto& seen = pass.seen[i];
        if (!seen || pass.clocks[i].at - seen->value >= Nanos{}) continue;
        Backward back = backward(static_cast<Track>(i), seen->value.raw(), pass.clocks[i].at.raw());
        back.first_cpu = seen->cpu;
        back.second_cpu = pass.cpu;
        back.at = since_start(pass);
        back.first_after = seen->after;
        back.second_before = pass.clocks[i].before;
        note(back, true);
    }
    const auto& seen = pass.counter_seen;
    if (!seen || pass.begin - seen->after >= Ticks{}) return;
    Backward back = backward(Track::kCounter, seen->after.raw(), pass.begin.raw());
    back.first_cpu = seen->cpu;
    back.second_cpu = pass.cpu;
    back.at = since_start(pass);
    back.first_after = seen->after;
    back.second_before = pass.begin;
    note(back, true);
}

void Statistics::note(const Backward& back, bool across) {
    TrackReport& track = report_.of(back.track);
    const std::uint64_t count = across ? ++track.backward_across : ++track.backward_within;
    if (!track.worst_backward || track.worst_backward->size < back.size)
        track.worst_backward = back;
    listener_.backward(back, count);
}

void Statistics::follow_ntp(const Pass& pass) {
    if (!pass.ntp) return;
    const auto before = report_.ntp;
    report_.ntp = pass.ntp;
    if (!before) return;
    const std::int64_t grown = pass.ntp->maxerror_us - before->maxerror_us;
    if (pass.ntp->unsync == before->unsync && grown > -kMaxerrorJumpUs && grown < kMaxerrorJumpUs)
        return;
    const NtpChange change{since_start(pass), *before, *pass.ntp};
    ++report_.ntp_total;
    if (report_.ntp_changes.size() < kNtpKept) report_.ntp_changes.push_back(change);
    listener_.ntp(change);
}

void Statistics::hole(std::uint32_t cpu) {
    ++report_.cpus[cpu].holes;
}

void Statistics::draw(const Pass& pass) {
    const std::int64_t now = since_start(pass).raw();
    if (now < 0) return;
    if (report_.timeline.empty() || now / bin_ns_ != report_.timeline.back().at_ns / bin_ns_) {
        report_.timeline.emplace_back();
        report_.timeline.back().longest_hole_ns = hole_in_bin_;
        hole_in_bin_ = 0;
    }
    TimelineBin& bin = report_.timeline.back();
    bin.at_ns = now;
    const Bracket& raw = pass.of(Clock::kMonotonicRaw);
    // The readings of a pass follow each other; what went by between them is taken out.
    const auto passed_ns = [&](Count from, Count to) {
        if (!report_.rate) return std::int64_t{0};
        return time::sat_i64(static_cast<time::i128>((to - from).raw()) * report_.rate->nanos /
                             report_.rate->ticks);
    };
    const auto put = [&](Track track, std::uint64_t value, Count at) {
        const auto i = static_cast<std::size_t>(track);
        const auto offset =
            static_cast<std::int64_t>(value - raw.at.raw()) - passed_ns(raw.before, at);
        if (!start_[i]) start_[i] = offset;
        bin.offset_ns[i] = time::sat_i64(static_cast<time::i128>(offset) - *start_[i]);
    };
    for (std::size_t i = 0; i < kClocks; ++i)
        if (static_cast<Clock>(i) != Clock::kMonotonicRaw)
            put(static_cast<Track>(i), pass.clocks[i].at.raw(), pass.clocks[i].before);
    if (pass.kvmclock) put(Track::kKvmclock, pass.kvmclock->at(raw.before).raw(), raw.before);
    if (pass.vmclock)
        if (const auto tai = vmclock_at(*pass.vmclock, raw.before))
            put(Track::kVmclock, tai->raw(), raw.before);
    if (pass.phc) put(Track::kPhc, pass.phc->at.raw(), pass.phc->before);
    if (report_.timeline.size() <= kBins) return;
    // Twice as wide bins: the second of each two holds what both saw last.
    std::vector<TimelineBin> half;
    for (std::size_t i = 1; i < report_.timeline.size(); i += 2) {
        half.push_back(report_.timeline[i]);
        half.back().longest_hole_ns =
            std::max(half.back().longest_hole_ns, report_.timeline[i - 1].longest_hole_ns);
    }
    report_.timeline = std::move(half);
    bin_ns_ *= 2;
}

void Statistics::exchange(const Exchange& exchange, const std::optional<SkewInterval>& skew) {
    ++report_.exchanges;
    ++report_.cpus[exchange.cpu].exchanges;
    report_.cpus[exchange.cpu].skew = skew;
}

void Statistics::rate(const LineFit& monotonic, const LineFit& raw) {
    report_.rate = raw.slope_max();
    const Slope a = monotonic.slope_max(), b = raw.slope_max();
    const auto wanted = static_cast<time::i128>(b.nanos) * a.ticks;
    const auto got = static_cast<time::i128>(a.nanos) * b.ticks;
    if (wanted <= 0) return;
    const auto ppb = time::sat_i64((got - wanted) * 1'000'000'000 / wanted);
    report_.of(Track::kMonotonic).rate_ppb = ppb;
}

void Statistics::event(Event&& event) {
    event.number = ++report_.events_total;
    for (std::size_t i = 0; i < kTracks; ++i) {
        if (!event.seams[i]) continue;
        TrackReport& track = report_.tracks[i];
        track.seam_sum = track.seam_sum + event.seams[i]->seam;
        if (!event.seams[i]->seam.contains(Nanos{})) ++track.steps;
    }
    listener_.event(event);
    const std::size_t kept = settings_.events_kept;
    report_.events.push_back(std::move(event));
    // The first ones stay; of the rest the oldest goes.
    if (report_.events.size() > 2 * kept)
        report_.events.erase(report_.events.begin() + static_cast<std::ptrdiff_t>(kept));
}

const Report& Statistics::report() {
    if (report_.passes == 0 || !report_.rate) return report_;
    const auto as_ns = [&](std::int64_t ticks) {
        return time::sat_i64(static_cast<time::i128>(ticks) * report_.rate->nanos /
                             report_.rate->ticks);
    };
    report_.pass_ns_min = as_ns(pass_ticks_min_);
    report_.pass_ns_max = as_ns(pass_ticks_max_);
    report_.pass_ns_mean = as_ns(static_cast<std::int64_t>(pass_ticks_ / report_.passes));
    return report_;
}

}  // namespace continuo::guest::watch
