// All lines that a clock can have followed, by bracketed readings of it. A reading that returned v
// between the counter values b and a says of a clock that never runs backwards: its line is below
// v + 1 at b, and at least v at a. The lines that satisfy all readings of a stretch form a convex
// set; its extreme slopes, and the range of its values at one end, are found exactly, in integers,
// by eliminating the intercept (Fourier-Motzkin): each pair of a lower and an upper constraint
// bounds the slope. A seam is the difference of two such sets, so its bound is a theorem about the
// readings, not a statistic of them.
#pragma once

#include <optional>
#include <span>

#include "continuo/guest/watch/reading.h"
#include "continuo/time/interval.h"
#include "continuo/time/wide.h"

namespace continuo::guest::watch {

/// ns in ticks, exact. den > 0.
struct Slope {
    std::int64_t nanos = 0;
    std::int64_t ticks = 1;
};

/// Which end of its stretch a fit is anchored at: a line before an event at its right end, one
/// after it at its left end.
enum class End : std::uint8_t { kLeft, kRight };

/// The lines through a stretch of readings.
class LineFit {
  public:
    /// nullopt where no line goes through all of them, or they do not bound its slope from above:
    /// two readings that do not overlap do. `slack` widens each reading, both ways: how far the
    /// clock may be off a line. Cost: the square of the number of readings. Domain: the stretch is
    /// shorter than 2^62 ticks and 2^62 ns.
    static std::optional<LineFit> through(std::span<const Bracket> readings, Nanos slack, End end);

    /// The values that the lines have at x, rounded outwards. Exact beyond the anchored end, wider
    /// than the truth on the other side of it, never narrower. Domain: x within 2^62 ticks of the
    /// anchor.
    struct Range {
        Instant lo, hi;
    };
    Range at(Count x) const;

    Count anchor() const { return anchor_; }
    Slope slope_min() const { return min_; }
    Slope slope_max() const { return max_; }
    /// How wide the range is at the anchor.
    Nanos width() const { return hi_ - lo_; }

    /// What the clock is ahead of these lines at least (negative: behind at least), by a reading;
    /// zero where a line goes through it. `slack` as above.
    Nanos contradiction(const Bracket& reading, Nanos slack) const;

  private:
    Count anchor_;
    Instant lo_, hi_;
    Slope min_, max_;
};

/// The longest part of the readings, from its end, that a line goes through; halved until one does.
/// nullopt where not even `kFewest` have one.
std::optional<LineFit> fit_last(std::span<const Bracket> readings, Nanos slack);
/// The same from its beginning.
std::optional<LineFit> fit_first(std::span<const Bracket> readings, Nanos slack);

/// after - before, at every x from `from` to `to` (in either order): the seam, and its bound.
NanosInterval seam(const LineFit& before, const LineFit& after, Count from, Count to);

}  // namespace continuo::guest::watch
