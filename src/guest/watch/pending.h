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
    Side before;
    Aftermath aftermath;
    unsigned passes_since = 0;
    /// The aftermath, once the event is measured.
    Side after{};

    /// Whether what a page tells later is of this event. A host may write kvmclock's page again as
    /// its vCPUs come; and where it was a hole, a CPU may run before its host has written the page
    /// that all CPUs read, by a pass or two.
    bool awaits_page(const Breaks& now) const {
        return breaks.plain_hole ? passes_since <= 2 : breaks.closes_lines() && !now.announced();
    }
    void amend(const Pass& pass, const Breaks& now);
};

struct Pending {
    ReasonSet reasons;
    Count from, to;
    Nanos at;
    std::vector<Boundary> boundaries;
    std::optional<Nanos> since_stop;

    bool has(std::uint32_t cpu) const;
    /// Whether it and what another CPU saw are announced both, or neither is, or one is a hole, of
    /// which nothing is known.
    bool announced_as(const Breaks& breaks) const;
    /// Whether a break between these two counter values can be this one.
    bool overlaps(Count last, Count next) const;
    void narrow(Count last, Count next);
    /// Only offsets changed.
    bool offsets_only() const;
    /// The host stopped the guest: no CPU ran.
    bool stopped(std::uint32_t cpus, Nanos hole) const;
};

/// What happened to the clocks. `number` is left 0.
Event measured(const Pending& pending);

}  // namespace continuo::guest::watch
