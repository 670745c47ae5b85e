// All strategies over all scenarios for a range of seeds, and what came of it: for each strategy in
// each scenario how often each invariant was broken, by how much at worst and in which run, and how
// far off the guest's clocks were. The result depends on scenarios, strategies, seeds and bug
// alone: threads and machines take the work in pieces, in any order, and merging what they found
// gives the same tallies and the same hash.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "continuo/sim/compare_spread.h"
#include "continuo/sim/run.h"

namespace continuo::sim {

/// A number that a run has for how far off the guest's clocks were. All are lengths of time in ns
/// and never negative: where a run's own has a sign, it says which side counts.
enum class Quantity : std::uint8_t {
    kTscSkew,        ///< how far two vCPUs' counters came apart
    kForwardJump,    ///< MONOTONIC jumped forward by so much across the gap
    kLostTime,       ///< REALTIME was so far behind the truth at the first read
    kStaleRealtime,  ///< REALTIME could be read wrong by more than 1 ms for so long
    kHeld,           ///< reads of REALTIME were held back for so long
    kTimeAhead,      ///< REALTIME was so far ahead of the truth at the first read
    kTscError,       ///< the counter against what the policy promised, in true time; either side
    kTscSeam,        ///< the counter against what was prescribed at the resume instant; either side
    kKvmclockSeam,   ///< the same of kvmclock
    kEntryLate,      ///< from the instant that the clocks were set for to the first entry
    kBlackout,       ///< from the first vCPU's stop to the last one's entry
    kBound,          ///< the certified bound of the counter
    kCount,
};
inline constexpr std::size_t kQuantities = static_cast<std::size_t>(Quantity::kCount);
/// "tsc_skew", ...
std::string_view name(Quantity quantity);
/// "TSC skew": the heading of a column.
std::string_view title(Quantity quantity);
/// One sentence.
std::string_view meaning(Quantity quantity);

/// The quantity of a run; 0 where the run's own is on the side that does not count.
std::uint64_t quantity_of(const RunResult& result, Quantity quantity);

/// What came of one invariant in many runs.
struct InvariantTally {
    std::uint64_t checked = 0;  ///< runs in which there was something to hold it against
    std::uint64_t broken = 0;
    Worst worst;  ///< by how many ns, and the first run that shows it

    void add(const Verdict& verdict, RunKey key);
    void merge(const InvariantTally& other);
    bool operator==(const InvariantTally&) const = default;
};

/// Many runs of one strategy. Trivially copyable: this is what machines send each other.
struct Tally {
    std::uint64_t runs = 0;
    std::uint64_t moved = 0;    ///< every move was carried out
    std::uint64_t refused = 0;  ///< a move was refused with a reason
    std::uint64_t failed = 0;   ///< a control failed
    std::uint64_t limit = 0;    ///< given up at a limit of the scenario: no verdict, no quantity
    ProbeSet probes = 0;        ///< situations that any of them reached
    std::uint64_t hash = 0;     ///< of all runs: the same in whatever order they are added
    std::array<InvariantTally, kInvariants> invariants{};
    std::array<Spread, kQuantities> quantities{};  ///< of the runs that moved

    void add(const RunResult& result, std::uint32_t strategy, RunKey key);
    void merge(const Tally& other);
    const InvariantTally& of(Invariant invariant) const {
        return invariants[static_cast<std::size_t>(invariant)];
    }
    const Spread& of(Quantity quantity) const {
        return quantities[static_cast<std::size_t>(quantity)];
    }
    bool operator==(const Tally&) const = default;
};

/// Seeds first to last, both included. Domain: first <= last, and fewer than 2^64 of them.
struct SeedRange {
    std::uint64_t first = 1;
    std::uint64_t last = 1;
    std::uint64_t count() const { return last - first + 1; }
    bool operator==(const SeedRange&) const = default;
};

/// What is to be run: every strategy in every scenario with every seed.
struct Work {
    std::vector<Scenario> scenarios;
    std::vector<const Strategy*> strategies;
    SeedRange seeds;
    Bug bug = Bug::kNone;

    /// Runs in one piece. Some tens of microseconds to a millisecond of work: enough to make
    /// handing it out cost nothing, little enough that no thread waits long for the last one.
    static constexpr std::uint64_t kPieceSeeds = 64;

    std::uint64_t runs() const { return seeds.count() * scenarios.size() * strategies.size(); }
    std::uint64_t pieces() const;
};

/// A tally for each strategy in each scenario.
class Tallies {
  public:
    explicit Tallies(const Work& work);

    /// Runs a piece of the work. Domain: piece < work.pieces().
    void run_piece(const Work& work, std::uint64_t piece);
    void merge(const Tallies& other);

    const Tally& at(std::size_t strategy, std::size_t scenario) const {
        return all_[strategy * scenarios_ + scenario];
    }
    /// Over all scenarios.
    Tally total(std::size_t strategy) const;
    std::uint64_t runs() const;
    /// Of all runs, in any order.
    std::uint64_t hash() const;
    /// For whoever sends them to another machine: row after row.
    std::vector<Tally>& raw() { return all_; }
    bool operator==(const Tallies&) const = default;

  private:
    std::size_t scenarios_;
    std::vector<Tally> all_;
};

/// The work and what came of it.
struct Comparison {
    Work work;
    Tallies tallies;
};

/// Called now and then, from whichever thread it may be, one at a time.
using CompareProgress = std::function<void(std::uint64_t done, std::uint64_t runs)>;

/// Carries all of it out on so many threads (at least one). The result does not depend on `jobs`.
Comparison compare(Work work, unsigned jobs, const CompareProgress& progress = {});

/// The same, with each run's result: strategy by strategy, in each scenario by scenario, in each
/// seed by seed. Some 600 bytes a run.
std::vector<RunResult> run_each(const Work& work, unsigned jobs,
                                const CompareProgress& progress = {});

/// An invariant that a scenario says must be kept, and that was broken: indices into the work.
struct Lapse {
    std::size_t strategy = 0;
    std::size_t scenario = 0;
    Invariant invariant{};
};
std::vector<Lapse> lapses(const Comparison& comparison);

}  // namespace continuo::sim
