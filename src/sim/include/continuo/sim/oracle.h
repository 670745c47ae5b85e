// The oracles: one for every invariant of the design, and for what the threads ask of NTP and
// timers. They know true time and the true lines; a verdict says by how much an invariant was
// broken and at which true instant.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "continuo/sim/true_time.h"

namespace continuo::sim {

/// design.md, "What is true always", and S1.7, S1.8.
enum class Invariant : std::uint8_t {
    kCounterPerVcpu,      ///< 1: no counter runs backwards on a vCPU
    kCounterAcrossVcpus,  ///< 1: nor does any pair of ordered reads of a synchronised guest
    kKvmclockMonotonic,   ///< 2: kvmclock never runs backwards, for any reader
    kIdempotent,          ///< 3: restoring twice, or late, changes nothing
    kMonotonicFrozen,     ///< 4: under a freezing policy MONOTONIC does not count the gap
    kMonotonicNoStep,     ///< 4: and it does not step backwards
    kNoStaleRealtime,     ///< 5: once a notice stands, no REALTIME read returns the stale value
    kInsideBound,         ///< 6: the true error of every clock is inside its certified bound
    kNothingTrusted,      ///< 7: damaged input is refused, or does no harm
    kNoDouble,            ///< 8: checked of the sources, not of a run
    kNtpThrownOut,        ///< S1.7: after a notice NTP's state is void, and is built anew
    kTimersCancelled,     ///< S1.8: TFD_TIMER_CANCEL_ON_SET where REALTIME was repaired
    kPromiseKept,  ///< the counters are where the strategy says: frozen, or as if not stopped
    kStoppedSeen,  ///< S1.1: GUEST_STOPPED that was asked for is in the page at the entry
    kCount,
};
inline constexpr std::size_t kInvariants = static_cast<std::size_t>(Invariant::kCount);
/// "counter_per_vcpu", ...
std::string_view name(Invariant invariant);
std::optional<Invariant> invariant_from_name(std::string_view name);
/// One sentence.
std::string_view meaning(Invariant invariant);
/// "1" to "8" of design.md, or the item of a thread: "S1.7".
std::string_view number(Invariant invariant);

enum class Outcome : std::uint8_t {
    kNotApplicable,  ///< nothing in this run to hold it against: the strategy promises no such
                     ///< thing
    kKept,
    kBroken,
};

/// What came of one invariant in one run.
struct Verdict {
    Outcome outcome = Outcome::kNotApplicable;
    std::uint32_t times = 0;  ///< how often it was broken
    std::uint8_t vcpu = 0;    ///< where the worst was seen
    std::int64_t by_ns = 0;   ///< the worst: how far beyond what is allowed; positive
    TrueTime at;              ///< and when
    friend bool operator==(const Verdict&, const Verdict&) = default;
};

/// One verdict for each invariant.
class Verdicts {
  public:
    const Verdict& operator[](Invariant invariant) const {
        return all_[static_cast<std::size_t>(invariant)];
    }
    bool kept(Invariant invariant) const { return (*this)[invariant].outcome != Outcome::kBroken; }
    /// It was looked at, and nothing was wrong there.
    void looked(Invariant invariant) {
        Verdict& verdict = at(invariant);
        if (verdict.outcome == Outcome::kNotApplicable) verdict.outcome = Outcome::kKept;
    }
    /// Looked at; broken where by_ns > 0.
    void hold(Invariant invariant, std::int64_t by_ns, TrueTime when, unsigned vcpu = 0);
    bool all_kept() const;
    friend bool operator==(const Verdicts&, const Verdicts&) = default;

  private:
    Verdict& at(Invariant invariant) { return all_[static_cast<std::size_t>(invariant)]; }
    std::array<Verdict, kInvariants> all_{};
};

}  // namespace continuo::sim
