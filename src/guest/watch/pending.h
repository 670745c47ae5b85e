// An event whose aftermath is still being read: what each CPU that noticed it knew before and
// knows since; and what that says of the clocks.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "follower.h"

namespace continuo::guest::watch {

/// An event as one CPU noticed it: between these two passes.
struct Boundary {
    Pass last, next;
    Breaks breaks;
    Side before, after;
    /// `after` is whole: something else broke since.
    bool lines_ended = false;
    std::array<bool, kClocks> offset_ended{};

    /// Takes what is known since the event into `after`, where it is still of this event alone.
    void take_since(const Side& since);
    /// Takes it, and ends what breaks now.
    void end(const Side& since, const Breaks& now);
};

struct Pending {
    ReasonSet reasons;
    Count from, to;
    Nanos at;
    std::vector<Boundary> boundaries;
    std::optional<Nanos> since_stop;

    bool has(std::uint32_t cpu) const;
    /// Whether a break between these two counter values can be this one.
    bool overlaps(Count last, Count next) const;
    void narrow(Count last, Count next);
    /// Clocks lost their lines, or may have; else only offsets changed.
    bool lines() const;
    /// The host stopped the guest: no CPU ran.
    bool stopped(std::uint32_t cpus, Nanos hole) const;
};

/// What happened to the clocks. `number` is left 0.
Event measured(const Pending& pending);

}  // namespace continuo::guest::watch
