// How a scenario says a number: a constant, a range, or "anything up to". All randomness of a run
// is drawn from one generator in one order, so a seed is a run.
#pragma once

#include <cstdint>

#include "continuo/model/random.h"
#include "continuo/time/wide.h"

namespace continuo::sim {

using model::Random;

/// In [0, n), by multiplication: the bias is below n * 2^-64. 0 for n = 0.
inline std::uint64_t below(Random& random, std::uint64_t n) {
    return static_cast<std::uint64_t>((static_cast<time::u128>(random.next()) * n) >> 64);
}

/// A number of a scenario. Written `5`, `[2, 9]` or `{ up_to = 1000 }`.
struct Draw {
    std::int64_t lo = 0;
    std::int64_t hi = 0;
    /// Between lo and hi, each order of magnitude as often as the next, instead of uniform.
    bool any_size = false;

    static constexpr Draw of(std::int64_t value) { return {value, value, false}; }
    constexpr bool constant() const { return lo == hi; }
    /// A constant draws nothing, so that a scenario's constants cost no time.
    std::int64_t from(Random& random) const {
        if (lo == hi) return lo;
        std::uint64_t span = static_cast<std::uint64_t>(hi) - static_cast<std::uint64_t>(lo);
        if (any_size) span >>= below(random, 40);
        const std::uint64_t offset = span + 1 == 0 ? random.next() : below(random, span + 1);
        return static_cast<std::int64_t>(static_cast<std::uint64_t>(lo) + offset);
    }
    friend bool operator==(const Draw&, const Draw&) = default;
};

/// A probability in whole millionths. Domain: 0 to 1 000 000.
struct Ppm {
    std::uint32_t value = 0;
    /// Draws only where the answer is open.
    bool happens(Random& random) const {
        if (value == 0) return false;
        return value >= 1'000'000 || below(random, 1'000'000) < value;
    }
    friend bool operator==(const Ppm&, const Ppm&) = default;
};

}  // namespace continuo::sim
