// The one source of randomness of the model and the simulator: a word of state, any seed, the same
// numbers on every machine.
#pragma once

#include <cstdint>

namespace continuo::model {

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, any seed.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_{seed} {}
    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
        return z ^ (z >> 31);
    }
    /// Uniform enough in [lo, hi].
    std::int64_t between(std::int64_t lo, std::int64_t hi);
    /// Between 0 and hi, each order of magnitude as often as the next.
    std::int64_t of_any_size(std::int64_t hi);
    bool one_in(std::int64_t n) { return between(1, n) == 1; }

  private:
    std::uint64_t state_;
};

}  // namespace continuo::model
