// Which counter values of two hosts belong to one instant, found without any clock: b writes a
// round's number into the shared page, a answers with its counter, b sees the answer. a's value was
// read between b's two, whatever the emulators, kernels and schedulers did meanwhile.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "shared_page.h"

namespace continuo::crosshost {

/// a's counter read `a` while b's was somewhere in [b_before, b_after].
struct Bracket {
    std::uint64_t a = 0;
    std::uint64_t b_before = 0;
    std::uint64_t b_after = 0;
    std::uint64_t width() const { return b_after - b_before; }
};

/// What thousands of rounds say.
struct Pairing {
    std::uint64_t rounds = 0;
    Bracket narrowest;
    /// The counters' difference, b - a modulo 2^64, as signed numbers: no bracket allows one below
    /// the first or above the second. Where the two run at one rate, first <= second.
    std::int64_t difference_least = 0;
    std::int64_t difference_most = 0;
};

struct PairingOptions {
    std::uint64_t rounds_min = 2'000;
    std::chrono::milliseconds time_min{20};
    /// Ends the rounds however few there were; a busy machine makes them slow.
    std::chrono::milliseconds time_max{1'500};
};

/// Both sides call it; b gets the pairing, a gets nothing. kTimeout where the other does not come.
Result<std::optional<Pairing>> pair_counters(SharedPage& page, const PairingOptions& options = {});

}  // namespace continuo::crosshost
