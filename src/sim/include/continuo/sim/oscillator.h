// A host's counter as the crystal drives it: a true rate that wanders in steps, exact to the tick
// at every true instant. Nobody in the world knows it but the oracles.
#pragma once

#include <cstdint>

#include "continuo/sim/draw.h"
#include "continuo/sim/true_time.h"
#include "continuo/state/error.h"
#include "continuo/time/wide.h"

namespace continuo::sim {

/// ticks(t) = base + floor((t - since) * rate / 2^64 + fraction): one multiplication. The true rate
/// is the 64-bit multiplier itself, within 2^-62 of what was asked for. Readings never go back in
/// true time.
class Oscillator {
  public:
    Oscillator() = default;
    /// Domain: 0 < millihertz < 16 * 10^12, |wander_max_ppb| below 10^9.
    Oscillator(TrueTime begins, std::uint64_t count, std::uint64_t millihertz)
        : since_{begins}, base_{count}, rate_{rate_of(millihertz)}, nominal_{rate_} {}

    /// A random walk: every `step` the rate moves by what `size_ppb` draws and is reflected at
    /// +-max_ppb about the rate at the beginning.
    void wander(Span step, Draw size_ppb, std::int64_t max_ppb, std::uint64_t seed) {
        step_ = step;
        size_ppb_ = size_ppb;
        max_ppb_ = max_ppb;
        random_ = Random{seed};
    }

    /// The counter at a true time. Domain: not before the last step of the walk that was taken.
    std::uint64_t count(TrueTime t) {
        if (step_.count() != 0 && t - since_ >= step_) walk_to(t);
        return base_ + static_cast<std::uint64_t>(run(t) >> 64);
    }
    /// The first true time at which count() is `count`, at the rate of now. Domain: count is less
    /// than 2^63 ahead of the last step.
    TrueTime time_of(std::uint64_t count) const {
        const auto whole = static_cast<time::u128>(count - base_) << 64;
        if (whole <= fraction_) return since_;
        const time::u128 units = (whole - fraction_ + rate_ - 1) / rate_;
        return since_ + Span{static_cast<std::int64_t>(units)};
    }
    /// The counter stands still for so long, as in a host that sleeps.
    void stop_for(TrueTime t, Span length) {
        restart(t);
        since_ = t + length;
    }
    /// The counter jumps.
    void jump(TrueTime t, std::uint64_t ticks) {
        restart(t);
        base_ += ticks;
    }
    /// Units of true time that so many ticks last, rounded down, at the rate of now.
    Span length_of(std::uint64_t ticks) const {
        const auto units = (static_cast<time::u128>(ticks) << 64) / rate_;
        return Span{static_cast<std::int64_t>(units)};
    }
    /// Ticks in a unit of true time, times 2^64.
    std::uint64_t rate() const { return rate_; }

  private:
    static std::uint64_t rate_of(std::uint64_t millihertz) {
        constexpr std::uint64_t unit = kUnitsPerSecond * 1000;
        return static_cast<std::uint64_t>((static_cast<time::u128>(millihertz) << 64) / unit);
    }
    time::u128 run(TrueTime t) const {
        CONTINUO_CHECK(t >= since_ || t + Span{1} > since_);
        const auto length = static_cast<std::uint64_t>((t - since_).count());
        return static_cast<time::u128>(length) * rate_ + fraction_;
    }
    void restart(TrueTime t) {
        const time::u128 ticks = run(t);
        base_ += static_cast<std::uint64_t>(ticks >> 64);
        fraction_ = static_cast<std::uint64_t>(ticks);
        since_ = t;
    }
    void walk_to(TrueTime t);

    TrueTime since_{};
    std::uint64_t base_ = 0;
    std::uint64_t fraction_ = 0;  ///< of a tick at since_, times 2^64
    std::uint64_t rate_ = 1;
    std::uint64_t nominal_ = 1;
    Span step_{0};
    Draw size_ppb_;
    std::int64_t max_ppb_ = 0;
    std::int64_t off_ppb_ = 0;
    Random random_{0};
};

}  // namespace continuo::sim
