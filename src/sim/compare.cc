#include "continuo/sim/compare.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "continuo/state/error.h"

namespace continuo::sim {

static_assert(std::is_trivially_copyable_v<Tally>);

namespace {

struct QuantityText {
    std::string_view name;
    std::string_view title;
    std::string_view meaning;
};

constexpr std::array<QuantityText, kQuantities> kTexts{{
    {"tsc_skew", "TSC skew",
     "How far two vCPUs' counters came apart, beyond what they were apart before."},
    {"forward_jump", "Forward jump",
     "How far MONOTONIC jumped from the last read before the gap to the first one after it."},
    {"lost_time", "Lost time", "How far REALTIME was behind the truth at the first read."},
    {"stale_realtime", "Stale REALTIME",
     "For how long REALTIME could be read wrong by more than 1 ms."},
    {"held", "REALTIME held", "For how long reads of REALTIME were held back for the agent."},
    {"time_ahead", "Time ahead", "How far REALTIME was ahead of the truth at the first read."},
    {"tsc_error", "TSC error",
     "The true error of vCPU 0's counter against what the strategy promises."},
    {"tsc_seam", "TSC seam",
     "The counter at the resume instant against the value prescribed for it; the worst vCPU."},
    {"kvmclock_seam", "kvmclock seam",
     "kvmclock at the resume instant against its prescribed value."},
    {"entry_late", "Window before entry",
     "From the instant that the clocks were set for to the first entry."},
    {"blackout", "Blackout", "From the first vCPU's stop to the last one's entry."},
    {"bound", "Certified bound", "Of vCPU 0's counter, where there is a certificate."},
}};

const QuantityText& text(Quantity quantity) {
    return kTexts[static_cast<std::size_t>(quantity)];
}

std::uint64_t magnitude(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    return value < 0 ? 0 - bits : bits;
}

std::uint64_t positive(std::int64_t value) {
    return value > 0 ? static_cast<std::uint64_t>(value) : 0;
}

/// The finaliser of SplitMix64: every bit of the key reaches every bit of the sum.
std::uint64_t mixed(std::uint64_t word) {
    return Random{word}.next();
}

}  // namespace

std::string_view name(Quantity quantity) {
    return text(quantity).name;
}
std::string_view title(Quantity quantity) {
    return text(quantity).title;
}
std::string_view meaning(Quantity quantity) {
    return text(quantity).meaning;
}

std::uint64_t quantity_of(const RunResult& result, Quantity quantity) {
    switch (quantity) {
        case Quantity::kTscSkew:
            return magnitude(result.tsc_skew_ns);
        case Quantity::kForwardJump:
            return positive(result.forward_jump_ns);
        case Quantity::kLostTime:
            return positive(result.lost_time_ns);
        case Quantity::kStaleRealtime:
            return positive(result.stale_exposure_ns);
        case Quantity::kHeld:
            return positive(result.held_ns);
        case Quantity::kTimeAhead:
            return result.lost_time_ns < 0 ? magnitude(result.lost_time_ns) : 0;
        case Quantity::kTscError:
            return magnitude(result.tsc_error_ns);
        case Quantity::kTscSeam:
            return magnitude(result.tsc_seam_ns);
        case Quantity::kKvmclockSeam:
            return magnitude(result.kvmclock_seam_ns);
        case Quantity::kEntryLate:
            return positive(result.entry_late_ns);
        case Quantity::kBlackout:
            return positive(result.blackout_ns);
        case Quantity::kBound:
            return positive(result.certified_bound_ns);
        case Quantity::kCount:
            break;
    }
    CONTINUO_CHECK(quantity != Quantity::kCount);
    return 0;
}

void InvariantTally::add(const Verdict& verdict, RunKey key) {
    if (verdict.outcome == Outcome::kNotApplicable) return;
    ++checked;
    if (verdict.outcome != Outcome::kBroken) return;
    ++broken;
    worst.add(positive(verdict.by_ns), key);
}

void InvariantTally::merge(const InvariantTally& other) {
    checked += other.checked;
    broken += other.broken;
    worst.merge(other.worst);
}

void Tally::add(const RunResult& result, std::uint32_t strategy, RunKey key) {
    ++runs;
    probes |= result.probes;
    // A sum, so that no order of adding counts; its terms are mixed with who they belong to, so
    // that two runs that swap their results do not cancel out.
    hash += mixed(result.hash ^
                  mixed(key.seed ^ mixed((std::uint64_t{strategy} << 32) | key.scenario)));
    switch (result.ending) {
        case Ending::kMoved:
            ++moved;
            break;
        case Ending::kRefused:
            ++refused;
            break;
        case Ending::kFailed:
            ++failed;
            break;
        case Ending::kLimit:
            ++limit;
            return;
    }
    for (std::size_t i = 0; i < kInvariants; ++i)
        invariants[i].add(result.verdicts[static_cast<Invariant>(i)], key);
    if (result.ending != Ending::kMoved) return;
    for (std::size_t i = 0; i < kQuantities; ++i)
        quantities[i].add(quantity_of(result, static_cast<Quantity>(i)), key);
}

void Tally::merge(const Tally& other) {
    runs += other.runs;
    moved += other.moved;
    refused += other.refused;
    failed += other.failed;
    limit += other.limit;
    probes |= other.probes;
    hash += other.hash;
    for (std::size_t i = 0; i < kInvariants; ++i)
        invariants[i].merge(other.invariants[i]);
    for (std::size_t i = 0; i < kQuantities; ++i)
        quantities[i].merge(other.quantities[i]);
}

namespace {

std::uint64_t pieces_of_seeds(SeedRange seeds) {
    return (seeds.count() + Work::kPieceSeeds - 1) / Work::kPieceSeeds;
}

/// The runs of one piece: seeds of one strategy in one scenario.
struct Slice {
    std::uint32_t strategy = 0;
    std::uint32_t scenario = 0;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
};
Slice slice(const Work& work, std::uint64_t piece) {
    const std::uint64_t a_cell = pieces_of_seeds(work.seeds);
    const std::uint64_t cell = piece / a_cell;
    const std::uint64_t before = piece % a_cell * Work::kPieceSeeds;
    return {static_cast<std::uint32_t>(cell / work.scenarios.size()),
            static_cast<std::uint32_t>(cell % work.scenarios.size()), work.seeds.first + before,
            std::min(Work::kPieceSeeds, work.seeds.count() - before)};
}

RunResult run_one(const Work& work, const Slice& part, std::uint64_t index) {
    return run(work.scenarios[part.scenario], *work.strategies[part.strategy], part.first + index,
               work.bug);
}

}  // namespace

std::uint64_t Work::pieces() const {
    return pieces_of_seeds(seeds) * scenarios.size() * strategies.size();
}

Tallies::Tallies(const Work& work)
    : scenarios_{work.scenarios.size()}, all_(work.strategies.size() * work.scenarios.size()) {}

void Tallies::run_piece(const Work& work, std::uint64_t piece) {
    CONTINUO_CHECK(piece < work.pieces());
    const Slice part = slice(work, piece);
    Tally& tally = all_[part.strategy * scenarios_ + part.scenario];
    for (std::uint64_t i = 0; i < part.count; ++i)
        tally.add(run_one(work, part, i), part.strategy, {part.scenario, part.first + i});
}

void Tallies::merge(const Tallies& other) {
    CONTINUO_CHECK(all_.size() == other.all_.size());
    for (std::size_t i = 0; i < all_.size(); ++i)
        all_[i].merge(other.all_[i]);
}

Tally Tallies::total(std::size_t strategy) const {
    Tally sum;
    for (std::size_t i = 0; i < scenarios_; ++i)
        sum.merge(at(strategy, i));
    return sum;
}

std::uint64_t Tallies::runs() const {
    std::uint64_t sum = 0;
    for (const Tally& tally : all_)
        sum += tally.runs;
    return sum;
}

std::uint64_t Tallies::hash() const {
    std::uint64_t sum = 0;
    for (const Tally& tally : all_)
        sum += tally.hash;
    return mixed(sum);
}

namespace {

/// The pieces of some work, handed out to threads.
class Pieces {
  public:
    Pieces(const Work& work, const CompareProgress& progress)
        : count_{work.pieces()}, runs_{work.runs()}, progress_{progress} {}

    std::optional<std::uint64_t> take() {
        const std::uint64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= count_) return std::nullopt;
        return piece;
    }
    void done(std::uint64_t runs) {
        if (!progress_) return;
        const std::lock_guard hold{lock_};
        done_ += runs;
        progress_(done_, runs_);
    }

  private:
    const std::uint64_t count_;
    const std::uint64_t runs_;
    const CompareProgress& progress_;
    std::atomic<std::uint64_t> next_{0};
    std::mutex lock_;  // of done_, and progress_ is called under it
    std::uint64_t done_ = 0;
};

/// Calls `thread` on so many threads, this one among them, and waits for all.
template <class Thread>
void on_threads(unsigned jobs, const Thread& thread) {
    std::vector<std::jthread> others;
    for (unsigned i = 1; i < jobs; ++i)
        others.emplace_back(thread);
    thread();
}

}  // namespace

Comparison compare(Work work, unsigned jobs, const CompareProgress& progress) {
    Pieces pieces{work, progress};
    std::mutex lock;  // of sum
    Tallies sum{work};
    on_threads(jobs, [&] {
        // Tallied apart and added at the end: threads share nothing while they run.
        Tallies own{work};
        while (const auto piece = pieces.take()) {
            own.run_piece(work, *piece);
            pieces.done(slice(work, *piece).count);
        }
        const std::lock_guard hold{lock};
        sum.merge(own);
    });
    return Comparison{std::move(work), std::move(sum)};
}

std::vector<RunResult> run_each(const Work& work, unsigned jobs, const CompareProgress& progress) {
    std::vector<RunResult> results(static_cast<std::size_t>(work.runs()));
    Pieces pieces{work, progress};
    on_threads(jobs, [&] {
        while (const auto piece = pieces.take()) {
            const Slice part = slice(work, *piece);
            const std::uint64_t cell = part.strategy * work.scenarios.size() + part.scenario;
            const std::uint64_t first = cell * work.seeds.count() + part.first - work.seeds.first;
            for (std::uint64_t i = 0; i < part.count; ++i)
                results[static_cast<std::size_t>(first + i)] = run_one(work, part, i);
            pieces.done(part.count);
        }
    });
    return results;
}

std::vector<Lapse> lapses(const Comparison& comparison) {
    std::vector<Lapse> out;
    const Work& work = comparison.work;
    for (std::size_t i = 0; i < work.strategies.size(); ++i)
        for (std::size_t j = 0; j < work.scenarios.size(); ++j)
            for (std::size_t k = 0; k < kInvariants; ++k) {
                const auto invariant = static_cast<Invariant>(k);
                if (comparison.tallies.at(i, j).of(invariant).broken > 0 &&
                    work.scenarios[j].must_keep(*work.strategies[i], invariant))
                    out.push_back({i, j, invariant});
            }
    return out;
}

}  // namespace continuo::sim
