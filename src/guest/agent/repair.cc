#include "repair.h"

#include <sys/timex.h>
#include <time.h>

#include "text.h"

namespace continuo::guest {
namespace {

constexpr std::int64_t kNanosPerSecond = 1'000'000'000;
constexpr int kLooks = 3;

bool is_believed(std::int64_t delta_ns) {
    return delta_ns <= kStepLimitNs && delta_ns >= -kStepLimitNs;
}

std::int64_t distance(std::int64_t a, std::int64_t b) {
    return a < b ? b - a : a - b;
}

using Line = Text<512>;

void log(System& system, const Line& line) {
    system.log(line.c_str(), line.size());
}

}  // namespace

void Repair::begin() {
    system_.clock_ns(CLOCK_MONOTONIC, begun_ns_);
}

bool Repair::failed(const char* call, int error) {
    ++counters_.failures;
    Line line;
    line << call << " failed: errno " << -error;
    log(system_, line);
    return false;
}

// The narrowest of a few looks, each a reading of REALTIME between two of BOOTTIME.
Repair::Offset Repair::offset() {
    Offset best{false, 0};
    std::int64_t narrowest = 0;
    for (int i = 0; i < kLooks; ++i) {
        std::int64_t before = 0, real = 0, after = 0;
        int error = system_.clock_ns(CLOCK_BOOTTIME, before);
        if (error == 0) error = system_.clock_ns(CLOCK_REALTIME, real);
        if (error == 0) error = system_.clock_ns(CLOCK_BOOTTIME, after);
        if (error != 0) {
            failed("clock_gettime", error);
            return {false, 0};
        }
        if (best.known && after - before >= narrowest) continue;
        narrowest = after - before;
        best = {true, real - before - narrowest / 2};
    }
    return best;
}

std::int64_t Repair::settle() {
    const Offset now = offset();
    const std::int64_t moved = now.known && settled_.known ? now.ns - settled_.ns : 0;
    settled_ = now;
    if (distance(moved, 0) < kOffsetNoiseNs) return 0;
    return moved;
}

bool Repair::untouched(Offset now) const {
    return now.known && settled_.known && distance(now.ns, settled_.ns) < kOffsetNoiseNs;
}

void Repair::resume(continuo_time_travel_page& page) {
    const std::uint64_t accounted = CONTINUO_LOAD(page.accounted_ns);
    const std::uint64_t intent = CONTINUO_LOAD_ACQUIRE(page.intent_ns);
    if (intent == accounted) return;
    const auto step = static_cast<std::int64_t>(intent - accounted);
    const Offset now = offset();
    const std::int64_t moved = now.known ? now.ns - CONTINUO_LOAD(page.intent_offset_ns) : 0;
    const bool done = now.known && distance(moved, step) < distance(moved, 0);
    if (done)
        CONTINUO_STORE_RELEASE(page.accounted_ns, intent);
    else
        CONTINUO_STORE_RELEASE(page.intent_ns, accounted);
    Line line;
    line << "an agent died over a step of ";
    line.signed_seconds(step) << " s, which was " << (done ? "done" : "not done");
    log(system_, line);
}

bool Repair::notices(continuo_time_travel_page& page) {
    continuo_travel travel{};
    bool asked = false;
    bool whole = true;
    while (whole && continuo_travel_pending(&page, &travel)) {
        ++counters_.notices;
        mend(page, travel);
        remember_ntp_state();
        const Outcome outcome = step_for(page, travel);
        whole = outcome != Outcome::kFailed;
        if (!whole) break;
        const std::uint64_t maxerror = CONTINUO_LOAD(page.maxerror_ns);
        set_ntp_state(maxerror - repaired_maxerror_ns_);
        repaired_maxerror_ns_ = maxerror;
        daemon_.ask();
        asked = true;
        const bool answered = continuo_travel_answer(&page, &travel) != 0;
        ++(answered ? counters_.answers : counters_.overtaken);
        accounted_known_ = true;
        accounted_ns_ = travel.total_ns;
        log_answer(travel, outcome, answered);
    }
    if (asked) finish_daemon();
    if (whole) settle();
    return whole;
}

// Somebody in the guest has written over the page: what the host says in it is whole again with
// each notice, and what the guest had accounted for is remembered here.
void Repair::mend(continuo_time_travel_page& page, continuo_travel& travel) {
    const auto remembered = static_cast<std::int64_t>(travel.total_ns - accounted_ns_);
    if (is_believed(travel.delta_ns) || !accounted_known_ || !is_believed(remembered)) return;
    CONTINUO_STORE_RELEASE(page.accounted_ns, accounted_ns_);
    travel.delta_ns = remembered;
    Line line;
    line << "notice " << travel.sequence << ": accounted_ns in the page was damaged, and is mended";
    log(system_, line);
}

Repair::Outcome Repair::step_for(continuo_time_travel_page& page, const continuo_travel& travel) {
    if (!is_believed(travel.delta_ns)) {
        ++counters_.failures;
        Line line;
        line << "notice " << travel.sequence << " asks for a step of ";
        line.signed_seconds(travel.delta_ns) << " s, which is not believed: the page is damaged";
        log(system_, line);
        return Outcome::kFailed;
    }
    const Offset now = offset();
    const bool released = continuo_gate_look(&page).state == CONTINUO_GATE_RELEASED;
    if (travel.delta_ns != 0 && released && !untouched(now) && !policy_.step_late) {
        ++counters_.late;
        return Outcome::kLeftToNtp;
    }
    if (now.known) {
        CONTINUO_STORE_RELEASE(page.intent_offset_ns, now.ns);
        CONTINUO_STORE_RELEASE(page.intent_ns, travel.total_ns);
    }
    return step(travel.delta_ns) ? Outcome::kStepped : Outcome::kFailed;
}

void Repair::remember_ntp_state() {
    before_ = timex{};
    const int state = system_.adjust(before_);
    before_known_ = state >= 0;
    if (!before_known_) failed("adjtimex (reading)", state);
}

// By ADJ_SETOFFSET: relative, so that nothing is lost between reading and setting a clock. All that
// watches for steps (TFD_TIMER_CANCEL_ON_SET) is told where the clock's offset changes; so where
// there is nothing to step and NTP's state is void all the same, one ns tells it.
bool Repair::step(std::int64_t delta_ns) {
    if (delta_ns == 0 && !policy_.void_ntp) return true;

    const std::int64_t by = delta_ns == 0 ? 1 : delta_ns;
    const std::int64_t ns = (by % kNanosPerSecond + kNanosPerSecond) % kNanosPerSecond;
    timex request{};
    request.modes = ADJ_SETOFFSET | ADJ_NANO;
    request.time.tv_sec = (by - ns) / kNanosPerSecond;
    request.time.tv_usec = ns;
    const int set = system_.adjust(request);
    if (set < 0) return failed("adjtimex (ADJ_SETOFFSET)", set);
    if (delta_ns == 0) return true;
    ++counters_.steps;
    counters_.last_step_ns = delta_ns;
    return true;
}

// The step has made the kernel forget its NTP state already; what is told here is what is to be
// read of it, and in which unit, for ADJ_NANO is a switch that stays.
void Repair::set_ntp_state(std::uint64_t bound_ns) {
    timex request{};
    request.modes = ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR;
    request.modes |= (before_.status & STA_NANO) != 0 ? ADJ_NANO : ADJ_MICRO;
    request.status = before_.status | STA_UNSYNC;
    request.maxerror = request.esterror = kNtpPhaseLimitUs;
    if (!policy_.void_ntp && before_known_) {
        const std::uint64_t more_us = bound_ns / 1000 + 1;
        const auto limit = static_cast<std::uint64_t>(kNtpPhaseLimitUs);
        const auto sum = [&](long us) {
            const std::uint64_t total = static_cast<std::uint64_t>(us) + more_us;
            return static_cast<long>(total < more_us || total > limit ? limit : total);
        };
        request.status = before_.status;
        request.maxerror = sum(before_.maxerror);
        request.esterror = sum(before_.esterror);
    }
    const int state = system_.adjust(request);
    if (state < 0) failed("adjtimex (STA_UNSYNC, maxerror, esterror)", state);
}

void Repair::log_answer(const continuo_travel& travel, Outcome outcome, bool answered) {
    std::int64_t now = begun_ns_, real = 0;
    if (system_.clock_ns(CLOCK_MONOTONIC, now) == 0)
        counters_.last_pass_ns = static_cast<std::uint64_t>(now - begun_ns_);
    if (system_.clock_ns(CLOCK_REALTIME, real) == 0) counters_.last_repair_ns = real;
    Line line;
    line << "time travel, notice " << travel.sequence << ": REALTIME ";
    if (outcome == Outcome::kLeftToNtp)
        line << "left to NTP, for somebody may have set it in the meantime; it lagged by ";
    else
        line << "stepped by ";
    line.signed_seconds(travel.delta_ns)
        << (policy_.void_ntp ? " s, STA_UNSYNC, maxerror 16 s; " : " s, NTP's state kept; ")
        << (answered ? "answered after " : "overtaken by another migration after ");
    line.seconds(counters_.last_pass_ns) << " s";
    log(system_, line);
}

void Repair::finish_daemon() {
    NtpDaemon::Report report;
    if (daemon_.finish(report))
        ++counters_.resynchronised;
    else
        ++counters_.failures;
    Line line;
    line << report.c_str();
    log(system_, line);
}

bool Repair::measured(const char* source, std::int64_t delta_ns, std::uint64_t bound_ns) {
    remember_ntp_state();
    if (!step(delta_ns)) return false;
    set_ntp_state(bound_ns);
    daemon_.ask();
    Line line;
    line << source << ": REALTIME stepped by ";
    line.signed_seconds(delta_ns) << " s, known to ";
    line.seconds(bound_ns) << (policy_.void_ntp ? " s, STA_UNSYNC, maxerror 16 s"
                                                : " s, NTP's state kept");
    log(system_, line);
    std::int64_t real = 0;
    if (system_.clock_ns(CLOCK_REALTIME, real) == 0) counters_.last_repair_ns = real;
    finish_daemon();
    settle();
    return true;
}

}  // namespace continuo::guest
