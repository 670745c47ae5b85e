#include "continuo/guest/watch/line_fit.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace continuo::guest::watch {

namespace {

using time::i128;

constexpr std::size_t kFewest = 2;

/// A constraint of the line: at least (or at most) y at x, both relative to the first reading.
struct Limit {
    std::int64_t x;
    std::int64_t y;
};

bool less(Slope a, Slope b) {
    return static_cast<i128>(a.nanos) * b.ticks < static_cast<i128>(b.nanos) * a.ticks;
}

i128 floor_div(i128 dividend, std::int64_t divisor) {
    return time::floor_divide(dividend, static_cast<std::uint64_t>(divisor)).quotient;
}
/// slope * run, rounded down, and up.
i128 floor_rise(Slope slope, i128 run) {
    return floor_div(static_cast<i128>(slope.nanos) * run, slope.ticks);
}
i128 ceil_rise(Slope slope, i128 run) {
    return -floor_div(-static_cast<i128>(slope.nanos) * run, slope.ticks);
}

Instant moved(Instant from, i128 by) {
    return from + Nanos::from_raw(time::sat_i64(by));
}

/// What bounds a slope: the pair of constraints that it must pass between.
struct Bound {
    Slope slope;
    Limit left, right;
};

struct Limits {
    std::optional<Bound> steepest, shallowest;
};

void take(std::optional<Bound>& bound, const Limit& left, const Limit& right, bool upper) {
    if (left.x >= right.x) return;
    const Slope slope{right.y - left.y, right.x - left.x};
    if (!bound || (upper ? less(slope, bound->slope) : less(bound->slope, slope)))
        bound = Bound{slope, left, right};
}

}  // namespace

std::optional<LineFit> LineFit::through(std::span<const Bracket> readings, Nanos slack, End end) {
    if (readings.size() < 2) return std::nullopt;
    const Count x0 = readings.front().before;
    const Instant y0 = readings.front().at;
    const auto floor_of = [&](const Bracket& r) {
        return Limit{(r.after - x0).raw(), (r.at - y0).raw() - slack.raw()};
    };
    const auto ceiling_of = [&](const Bracket& r) {
        return Limit{(r.before - x0).raw(), (r.at - y0).raw() + 1 + slack.raw()};
    };
    Limits limits;
    for (const Bracket& a : readings)
        for (const Bracket& b : readings) {
            take(limits.steepest, floor_of(a), ceiling_of(b), true);
            take(limits.shallowest, ceiling_of(a), floor_of(b), false);
        }
    if (!limits.steepest || !limits.shallowest) return std::nullopt;
    if (less(limits.steepest->slope, limits.shallowest->slope)) return std::nullopt;

    std::int64_t at = end == End::kRight ? std::numeric_limits<std::int64_t>::min()
                                         : std::numeric_limits<std::int64_t>::max();
    for (const Bracket& r : readings)
        at = end == End::kRight ? std::max(at, (r.after - x0).raw())
                                : std::min(at, (r.before - x0).raw());
    LineFit fit;
    fit.anchor_ = x0 + Ticks::from_raw(at);
    fit.max_ = limits.steepest->slope;
    fit.min_ = limits.shallowest->slope;
    // At the right end the steepest line is the highest one, at the left end the lowest.
    const Bound& high = end == End::kRight ? *limits.steepest : *limits.shallowest;
    const Bound& low = end == End::kRight ? *limits.shallowest : *limits.steepest;
    const auto value = [at](const Bound& bound, bool up) {
        const i128 run = static_cast<i128>(at) - bound.left.x;
        return bound.left.y + (up ? ceil_rise(bound.slope, run) : floor_rise(bound.slope, run));
    };
    fit.hi_ = moved(y0, value(high, true));
    fit.lo_ = moved(y0, value(low, false));
    return fit;
}

LineFit::Range LineFit::at(Count x) const {
    const i128 run = (x - anchor_).raw();
    const Slope& highest = run >= 0 ? max_ : min_;
    const Slope& lowest = run >= 0 ? min_ : max_;
    return {moved(lo_, floor_rise(lowest, run)), moved(hi_, ceil_rise(highest, run))};
}

Nanos LineFit::contradiction(const Bracket& reading, Nanos slack) const {
    // Its value can be no more than the lines' at `after`, and no less than theirs at `before`.
    const Nanos ahead = reading.at - at(reading.after).hi - slack;
    if (ahead > Nanos{}) return ahead;
    const Nanos behind = at(reading.before).lo - reading.at - Nanos::from_raw(1) - slack;
    return behind > Nanos{} ? Nanos{} - behind : Nanos{};
}

std::optional<LineFit> fit_last(std::span<const Bracket> readings, Nanos slack) {
    for (; readings.size() >= kFewest; readings = readings.last(readings.size() / 2))
        if (auto fit = LineFit::through(readings, slack, End::kRight)) return fit;
    return std::nullopt;
}

std::optional<LineFit> fit_first(std::span<const Bracket> readings, Nanos slack) {
    for (; readings.size() >= kFewest; readings = readings.first(readings.size() / 2))
        if (auto fit = LineFit::through(readings, slack, End::kLeft)) return fit;
    return std::nullopt;
}

NanosInterval seam(const LineFit& before, const LineFit& after, Count from, Count to) {
    const auto difference = [&](Count x) {
        const LineFit::Range b = before.at(x);
        const LineFit::Range a = after.at(x);
        return NanosInterval{a.lo - b.hi, a.hi - b.lo};
    };
    return hull(difference(from), difference(to));
}

}  // namespace continuo::guest::watch
