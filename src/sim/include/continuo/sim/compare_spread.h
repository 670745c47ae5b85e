// How a quantity of many runs is spread: how often it was about so large, and the run in which it
// was largest. Adding runs and merging spreads give the same in any order, so threads and machines
// may share the work as they like. No heap, integers only.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace continuo::sim {

/// Which run it was: the number of its scenario in the comparison, and its seed. Ordered, so that
/// of two runs that are as bad the first is named.
struct RunKey {
    std::uint32_t scenario = 0;
    std::uint64_t seed = 0;
    auto operator<=>(const RunKey&) const = default;
};

/// The largest value that was seen, and the first run that had it.
struct Worst {
    std::uint64_t value = 0;
    RunKey run;
    bool any = false;

    void add(std::uint64_t candidate, RunKey key) {
        if (any && (candidate < value || (candidate == value && run <= key))) return;
        *this = Worst{candidate, key, true};
    }
    void merge(const Worst& other) {
        if (other.any) add(other.value, other.run);
    }
    bool operator==(const Worst&) const = default;
};

/// Counts values of [0, 2^64) in buckets that are an eighth of an octave wide: the edge of a bucket
/// is at most 12.5 % above the values in it. Values below 16 have buckets of their own.
class Spread {
  public:
    static constexpr std::size_t kBuckets = 496;

    void add(std::uint64_t value, RunKey run) {
        ++counts_[bucket(value)];
        ++count_;
        min_ = std::min(min_, value);
        worst_.add(value, run);
    }
    void merge(const Spread& other) {
        for (std::size_t i = 0; i < kBuckets; ++i)
            counts_[i] += other.counts_[i];
        count_ += other.count_;
        min_ = std::min(min_, other.min_);
        worst_.merge(other.worst_);
    }

    std::uint64_t count() const { return count_; }
    const Worst& worst() const { return worst_; }
    std::uint64_t max() const { return worst_.value; }
    /// 0 where there are none.
    std::uint64_t min() const { return count_ == 0 ? 0 : min_; }
    std::uint64_t count_in(std::size_t bucket) const { return counts_[bucket]; }
    /// The least edge below or at which at least `permille` of the values lie; never above max(). 0
    /// where there are none.
    std::uint64_t quantile(unsigned permille) const {
        const std::uint64_t wanted = (count_ * permille + 999) / 1000;
        std::uint64_t seen = 0;
        for (std::size_t i = 0; i < kBuckets; ++i) {
            seen += counts_[i];
            if (seen >= wanted && seen > 0) return edge(i) < max() ? edge(i) : max();
        }
        return max();
    }
    std::uint64_t median() const { return quantile(500); }

    /// 0 to 15: themselves. 2^k + j * 2^(k-3) and up, k >= 4: 8 * (k - 2) + j, for j of 0 to 7.
    static constexpr std::size_t bucket(std::uint64_t value) {
        if (value < 16) return static_cast<std::size_t>(value);
        const int k = static_cast<int>(std::bit_width(value)) - 1;
        return static_cast<std::size_t>(8 * (k - 2)) +
               static_cast<std::size_t>((value >> (k - 3)) & 7);
    }
    /// The largest value of a bucket. edge(16) = 17: [16, 17] has the upper bits 1000.
    static constexpr std::uint64_t edge(std::size_t bucket) {
        if (bucket < 16) return bucket;
        const unsigned k = static_cast<unsigned>(bucket / 8) + 2;
        const std::uint64_t step = std::uint64_t{1} << (k - 3);
        return (std::uint64_t{1} << k) + (bucket % 8) * step + (step - 1);
    }

    bool operator==(const Spread&) const = default;

  private:
    std::array<std::uint64_t, kBuckets> counts_{};
    std::uint64_t min_ = UINT64_MAX;
    std::uint64_t count_ = 0;
    Worst worst_;
};

static_assert(Spread::bucket(15) == 15 && Spread::bucket(16) == 16 && Spread::edge(16) == 17);
static_assert(Spread::bucket(UINT64_MAX) == Spread::kBuckets - 1);
static_assert(Spread::edge(Spread::kBuckets - 1) == UINT64_MAX);

}  // namespace continuo::sim
