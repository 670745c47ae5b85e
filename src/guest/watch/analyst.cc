#include "continuo/guest/watch/analyst.h"

#include <list>
#include <vector>

#include "follower.h"
#include "pending.h"
#include "statistics.h"

namespace continuo::guest::watch {

struct Analyst::Work {
    Work(const Settings& s, Listener& l) : settings{s}, statistics{s, l} {
        for (std::uint32_t cpu = 0; cpu < s.cpus; ++cpu)
            followers.emplace_back(s);
    }

    void take(const Pass& pass);
    void join_stop(const Pass& pass, Breaks& breaks) const;
    void leave_own_hole(const Pass& pass, Breaks& breaks);
    bool is_long(const Pass& pass) const;
    std::vector<Boundary*> boundaries_of(std::uint32_t cpu);
    bool amend(const Pass& pass, const Breaks& breaks);
    void begin_event(const Pass& pass, const Breaks& breaks);
    Pending* joinable(const Pass& pass, const Breaks& breaks);
    void settle(Nanos now);
    void finish(Pending& pending);
    void take(const Exchange& exchange);
    std::uint32_t active_cpus() const;

    Settings settings;
    Statistics statistics;
    std::vector<CpuFollower> followers;
    std::list<Pending> open;
    std::optional<Nanos> last_stop;
};

std::uint32_t Analyst::Work::active_cpus() const {
    std::uint32_t active = 0;
    for (const CpuFollower& follower : followers)
        if (follower.last()) ++active;
    return active;
}

void Analyst::Work::take(const Pass& pass) {
    CpuFollower& follower = followers[pass.cpu];
    if (pass.torn || is_long(pass)) {
        statistics.tear();
        return;
    }
    statistics.count(pass, follower.last());
    if (follower.last()) {
        Breaks breaks = follower.breaks_at(pass);
        join_stop(pass, breaks);
        leave_own_hole(pass, breaks);
        if (!breaks.reasons.empty() && !amend(pass, breaks)) begin_event(pass, breaks);
    }
    follower.follow(pass);
    const auto& monotonic = follower.line(Clock::kMonotonic).fit();
    for (Boundary* boundary : boundaries_of(pass.cpu)) {
        boundary->aftermath.follow(pass, monotonic);
        ++boundary->passes_since;
    }
    const auto& raw = follower.line(Clock::kMonotonicRaw).fit();
    if (pass.cpu == 0 && monotonic && raw) statistics.rate(*monotonic, *raw);
    settle(statistics.since_start(pass));
}

/// A stop may have fallen into it, and its readings may be of both sides.
bool Analyst::Work::is_long(const Pass& pass) const {
    constexpr std::int64_t long_ns = 1'000'000;
    const auto& raw = followers[pass.cpu].line(Clock::kMonotonicRaw).fit();
    if (!raw) return false;
    const Slope slope = raw->slope_max();
    return static_cast<time::i128>((pass.end - pass.woke).raw()) * slope.nanos >
           static_cast<time::i128>(long_ns) * slope.ticks;
}

std::vector<Boundary*> Analyst::Work::boundaries_of(std::uint32_t cpu) {
    std::vector<Boundary*> found;
    for (Pending& pending : open)
        for (Boundary& boundary : pending.boundaries)
            if (boundary.next.cpu == cpu) found.push_back(&boundary);
    return found;
}

/// A CPU whose own hole was a little too short for a stop that others noticed.
void Analyst::Work::join_stop(const Pass& pass, Breaks& breaks) const {
    if (breaks.reasons.has(Reason::kStop) || breaks.hole.raw() < settings.hole.raw() / 2) return;
    const Count last = followers[pass.cpu].last()->woke;
    for (const Pending& pending : open) {
        if (!pending.reasons.has(Reason::kStop) || pending.has(pass.cpu) ||
            !pending.overlaps(last, pass.begin))
            continue;
        breaks.plain_hole = !breaks.closes_lines() || breaks.reasons.empty();
        breaks.offsets_only = false;
        breaks.reasons.add(Reason::kStop);
    }
}

/// A hole of this CPU alone is no stop: another CPU ran just now, and no stop is open that both
/// were in.
void Analyst::Work::leave_own_hole(const Pass& pass, Breaks& breaks) {
    if (!breaks.reasons.has(Reason::kStop) || joinable(pass, breaks) != nullptr) return;
    const Instant now = pass.of(Clock::kMonotonicRaw).at;
    bool others_ran = false;
    for (const CpuFollower& other : followers)
        others_ran = others_ran || (other.last() && other.last()->cpu != pass.cpu &&
                                    (now - other.last()->of(Clock::kMonotonicRaw).at).raw() <
                                        settings.hole.raw() / 2);
    if (!others_ran) return;
    statistics.hole(pass.cpu);
    breaks.reasons.remove(Reason::kStop);
    breaks.offsets_only = breaks.plain_hole && !breaks.reasons.empty();
    breaks.plain_hole = false;
}

/// Whether the page has only now told of what this CPU saw as a hole.
bool Analyst::Work::amend(const Pass& pass, const Breaks& breaks) {
    if (!breaks.by_page()) return false;
    for (Pending& pending : open)
        for (Boundary& boundary : pending.boundaries)
            if (boundary.next.cpu == pass.cpu && boundary.awaits_page(breaks)) {
                const bool was_plain = boundary.breaks.plain_hole;
                boundary.amend(pass, breaks);
                pending.reasons.add(breaks.reasons);
                if (was_plain) followers[pass.cpu].close(breaks);
                return true;
            }
    return false;
}

Pending* Analyst::Work::joinable(const Pass& pass, const Breaks& breaks) {
    const Count last = followers[pass.cpu].last()->woke;
    for (Pending& pending : open) {
        if (pending.has(pass.cpu) || !pending.announced_as(breaks)) continue;
        // A step of an offset and a move are two events; so that a stop and a move are one, a hole
        // goes with either.
        if (pending.offsets_only() ? breaks.closes_lines() : breaks.offsets_only) continue;
        const bool both_back =
            pending.reasons.has(Reason::kBackward) && breaks.reasons.has(Reason::kBackward);
        const Nanos apart = statistics.since_start(pass) - pending.at;
        if (pending.overlaps(last, pass.begin) ||
            (both_back && apart.magnitude() < settings.hole.magnitude()))
            return &pending;
    }
    return nullptr;
}

void Analyst::Work::begin_event(const Pass& pass, const Breaks& breaks) {
    CpuFollower& follower = followers[pass.cpu];
    for (Boundary* boundary : boundaries_of(pass.cpu))
        boundary->aftermath.end(breaks);
    const Count last = follower.last()->woke;
    Pending* pending = joinable(pass, breaks);
    if (pending == nullptr) {
        open.emplace_back();
        pending = &open.back();
        pending->from = last;
        pending->to = pass.begin;
        pending->at = statistics.since_start(pass);
        const bool step = breaks.reasons.has(Reason::kStep) && !breaks.closes_lines();
        if (last_stop && step) pending->since_stop = pending->at - *last_stop;
    }
    pending->narrow(last, pass.begin);
    pending->reasons.add(breaks.reasons);
    pending->boundaries.push_back(
        {*follower.last(), pass, breaks, follower.before(breaks), Aftermath{settings.window}});
    follower.close(breaks);
    const bool repair = pending->since_stop.has_value();
    const bool moved = breaks.closes_lines() && !breaks.reasons.has(Reason::kStep);
    if (!repair && (moved || pending->stopped(active_cpus(), settings.hole)))
        last_stop = pending->at;
}

void Analyst::Work::settle(Nanos now) {
    for (auto it = open.begin(); it != open.end();) {
        const bool over =
            now - it->at >= settings.window || now - it->at < Nanos{} - settings.window;
        if (over) finish(*it);
        it = over ? open.erase(it) : std::next(it);
    }
}

void Analyst::Work::finish(Pending& pending) {
    for (Boundary& boundary : pending.boundaries)
        boundary.after = boundary.aftermath.side();
    if (!pending.stopped(active_cpus(), settings.hole)) {
        pending.reasons.remove(Reason::kStop);
        for (const Boundary& b : pending.boundaries)
            if (b.breaks.hole >= settings.hole) statistics.hole(b.next.cpu);
        if (pending.reasons.empty()) return;
    }
    Event event = measured(pending);
    statistics.event(std::move(event));
}

void Analyst::Work::take(const Exchange& exchange) {
    CpuFollower& follower = followers[exchange.cpu];
    const auto before = follower.skew();
    const bool moved = follower.contradicts(exchange);
    follower.follow(exchange);
    for (Boundary* boundary : boundaries_of(exchange.cpu))
        boundary->aftermath.follow_skew(follower.skew());
    statistics.exchange(exchange, follower.skew());
    if (!moved || !follower.last()) return;
    Event event;
    event.reasons.add(Reason::kSkew);
    event.from = event.to = exchange.heard;
    event.at = statistics.since_start(*follower.last());
    event.realtime = follower.last()->of(Clock::kRealtime).at;
    event.cpus = 1;
    event.skew.push_back({exchange.cpu, before, follower.skew()});
    statistics.event(std::move(event));
}

Analyst::Analyst(const Settings& settings, Listener& listener)
    : work_{std::make_unique<Work>(settings, listener)} {}
Analyst::~Analyst() = default;

void Analyst::take(const Pass& pass) {
    work_->take(pass);
}
void Analyst::take(const Exchange& exchange) {
    work_->take(exchange);
}
void Analyst::lose(std::uint64_t passes) {
    work_->statistics.lose(passes);
}
void Analyst::finish() {
    for (Pending& pending : work_->open)
        work_->finish(pending);
    work_->open.clear();
}
const Report& Analyst::report() const {
    return work_->statistics.report();
}

}  // namespace continuo::guest::watch
