// Two hosts with true rates and clocks of their own, a channel between them, and one guest that
// moves: the world in which a plan's bounds are held against the truth. True time is known here, to
// the femtosecond; no host knows it. All of it comes from one seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "continuo/model/random.h"
#include "continuo/state/plan.h"

namespace continuo::model {

using time::i128;

/// True time since an arbitrary start, in 10^-15 s.
using Femtoseconds = i128;

/// A counter that truly runs at `true_millihertz` and is said to run at whole kHz.
struct TrueHost {
    std::uint64_t true_millihertz = 1;
    std::uint64_t stated_khz = 1;
    std::uint32_t rate_bound_ppb = 0;  ///< as stated; true
    std::uint64_t count_at_start = 0;  ///< modulo 2^64
    std::int64_t tai_error_ns = 0;     ///< of its TAI, always
    std::uint64_t tai_bound_ns = 0;    ///< as stated
    bool synchronised = true;

    /// The counter at a true time, rounded down.
    std::uint64_t count(Femtoseconds t) const;
    /// The first true time at which it has counted so many ticks since the start.
    Femtoseconds time_of(std::uint64_t ticks) const;
    /// What a perfect reading of both at the instant when the counter has counted so many ticks
    /// gives.
    template <time::CounterAxis D>
    state::Anchor<D> anchor(std::uint64_t ticks) const;
};

/// One move, and the truth about it.
struct TwoHosts {
    TrueHost source;
    TrueHost destination;
    bool clocks_are_honest = true;  ///< each TAI is within what its host says of it
    state::Record record;
    state::Destination here;
    state::PlanOptions options;
    i128 true_gap_fs = 0;
    /// What the guest would read at the resume instant if it had never stopped.
    time::Count<time::GuestCounter> uninterrupted;

    /// The world of this seed: rates off by up to 500 ppm, clocks wrong by hours, clocks that lie,
    /// delays of any size that are another on either way and in each round.
    static TwoHosts of(std::uint64_t seed);
};

/// What of a plan is not true; empty where all of it is.
std::vector<std::string> untrue(const TwoHosts& world, const state::Plan& plan);

}  // namespace continuo::model
