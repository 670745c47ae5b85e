// What is remembered of one clock on one CPU since its last break: readings for its line, or the
// interval in which its offset lies. Bounded: a line keeps the narrowest reading of each slot of
// time, and as many slots as a window has; an offset is one interval however many readings made it.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <vector>

#include "continuo/guest/watch/line_fit.h"
#include "continuo/guest/watch/reading.h"

namespace continuo::guest::watch {

/// How far a clock may be off a line, and how fast it may leave it, as the kernel steers it.
struct Steering {
    Nanos slack;
    /// 2^-n of the distance is added; none: the clock is never steered.
    std::optional<unsigned> drift_shift;

    Nanos allowed(Nanos distance) const;
};
/// MONOTONIC_RAW: a line but for its floor.
inline constexpr Steering kUnsteered{Nanos::from_raw(1), std::nullopt};
/// The kernel reaches a mean rate by switching between two multipliers that are up to 2^-22 of
/// each other apart (the multiplier has 23 bits or so, clocks_calc_mult_shift()), from tick to
/// tick.
inline constexpr Steering kSteered{Nanos::from_raw(3), 22U};

class LineTrack {
  public:
    LineTrack(Steering steering, Nanos window) : steering_{steering}, window_{window} {}

    /// How far the reading is ahead of (negative: behind) what the readings so far allow; zero
    /// where it is on their line, or too few are there.
    Nanos contradiction(const Bracket& reading) const;
    void add(const Bracket& reading);
    /// The line of the readings so far, as near to their end as possible, and as near to their
    /// beginning.
    std::optional<LineFit> last() const { return fit_last(readings(), steering_.slack); }
    std::optional<LineFit> first() const { return fit_first(beginning(), steering_.slack); }
    /// Forgets the readings. The old line stays in use for contradiction() unless `broken`.
    void close(bool broken);

    const std::optional<LineFit>& fit() const { return fit_; }
    /// The readings that are kept, in order: those of the last window, and of the first since
    /// close().
    std::vector<Bracket> readings() const;
    std::vector<Bracket> beginning() const;
    const Steering& steering() const { return steering_; }

  private:
    static constexpr std::size_t kSlots = 64;  ///< of a window
    static constexpr std::size_t kFirst = 8;   ///< readings that are kept whatever their slot
    bool slot_is_over(const Bracket& reading) const;
    void keep(const Bracket& reading);
    void refit();

    Steering steering_;
    Nanos window_;
    std::deque<Bracket> kept_;
    std::optional<Bracket> narrowest_;  ///< of the slot that is being filled
    Instant slot_begin_;
    std::size_t since_fit_ = 0;
    std::optional<LineFit> fit_;
    std::vector<Bracket> beginning_;  ///< the first window since close()
};

/// A clock that is MONOTONIC and an offset of whole ns.
class OffsetTrack {
  public:
    /// Whether the offset that this pass allows can be the one so far.
    static NanosInterval offset_in(const Pass& pass, Clock clock, const LineFit& monotonic);
    bool contradicts(NanosInterval offset) const;
    void add(NanosInterval offset);
    void close() { offset_.reset(); }
    const std::optional<NanosInterval>& offset() const { return offset_; }

  private:
    std::optional<NanosInterval> offset_;
};

/// What two intervals share; nullopt where that is nothing.
template <time::Axis A>
std::optional<time::Interval<A>> intersection(const time::Interval<A>& a,
                                              const time::Interval<A>& b) {
    const auto lo = a.lo() < b.lo() ? b.lo() : a.lo();
    const auto hi = a.hi() < b.hi() ? a.hi() : b.hi();
    if (hi < lo) return std::nullopt;
    return time::Interval<A>{lo, hi};
}

}  // namespace continuo::guest::watch
