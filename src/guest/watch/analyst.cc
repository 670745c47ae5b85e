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
    statistics.count(pass, follower.last());
    if (follower.last()) {
        Breaks breaks = follower.breaks_at(pass);
        join_stop(pass, breaks);
        if (!breaks.reasons.empty()) begin_event(pass, breaks);
    }
    follower.follow(pass);
    const auto &monotonic = follower.line(Clock::kMonotonic).fit(),
               &raw = follower.line(Clock::kMonotonicRaw).fit();
    if (pass.cpu == 0 && monotonic && raw) statistics.rate(*monotonic, *raw);
    settle(statistics.since_start(pass));
}

/// A CPU whose own hole was a little too short for a stop that others noticed.
void Analyst::Work::join_stop(const Pass& pass, Breaks& breaks) const {
    if (breaks.reasons.has(Reason::kStop) || breaks.hole.raw() < settings.hole.raw() / 2) return;
    const Count last = followers[pass.cpu].last()->end;
    for (const Pending& pending : open) {
        if (!pending.reasons.has(Reason::kStop) || pending.has(pass.cpu) ||
            !pending.overlaps(last, pass.begin))
            continue;
        breaks.reasons.add(Reason::kStop);
        breaks.lines = true;
    }
}

Pending* Analyst::Work::joinable(const Pass& pass, const Breaks& breaks) {
    const Count last = followers[pass.cpu].last()->end;
    for (Pending& pending : open) {
        if (pending.has(pass.cpu) || pending.lines() != breaks.lines) continue;
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
    const Side since = follower.since();
    for (Pending& pending : open)
        for (Boundary& boundary : pending.boundaries)
            if (boundary.next.cpu == pass.cpu) boundary.end(since, breaks);
    Pending* pending = joinable(pass, breaks);
    if (pending == nullptr) {
        open.emplace_back();
        pending = &open.back();
        pending->from = follower.last()->end;
        pending->to = pass.begin;
        pending->at = statistics.since_start(pass);
        if (last_stop && !breaks.lines) pending->since_stop = pending->at - *last_stop;
    }
    pending->narrow(follower.last()->end, pass.begin);
    pending->reasons.add(breaks.reasons);
    Boundary boundary;
    boundary.last = *follower.last();
    boundary.next = pass;
    boundary.breaks = breaks;
    boundary.before = follower.close(breaks);
    pending->boundaries.push_back(std::move(boundary));
    const bool told =
        pending->reasons.has(Reason::kDisruption) || pending->reasons.has(Reason::kReference);
    if (told || pending->stopped(active_cpus(), settings.hole)) last_stop = pending->at;
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
        boundary.take_since(followers[boundary.next.cpu].since());
    if (!pending.stopped(active_cpus(), settings.hole)) {
        pending.reasons.remove(Reason::kStop);
        for (const Boundary& b : pending.boundaries)
            if (b.breaks.hole >= settings.hole) statistics.hole(b.next.cpu, b.breaks.hole);
        if (pending.reasons.empty()) return;
    }
    Event event = measured(pending);
    if (event.blackout) statistics.stopped(*event.blackout);
    statistics.event(std::move(event));
}

void Analyst::Work::take(const Exchange& exchange) {
    CpuFollower& follower = followers[exchange.cpu];
    const auto before = follower.skew();
    const bool moved = follower.contradicts(exchange);
    follower.follow(exchange);
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
