// The last resort of an agent that nobody tells anything: compares the counter with
// CLOCK_MONOTONIC_RAW. It sees a VM whose counter ran on while its kvmclock stood still, or the
// other way round (S3.7). It cannot see a gap that both carried alike, frozen or advanced: from
// inside there is nothing to see then.
#pragma once

#include <cstdint>

#include "system.h"

namespace continuo::guest {

class JumpWatch {
  public:
    explicit JumpWatch(System& system) : system_{system} {}

    /// How far CLOCK_MONOTONIC_RAW has come less than the counter since the last look, ns, where
    /// that is more than the two can drift apart; else 0. The first interval of a second or more
    /// teaches the counter's rate.
    std::int64_t look();

  private:
    struct Pair {
        std::uint64_t counter;
        std::int64_t raw_ns;
    };
    bool read(Pair& pair);

    System& system_;
    bool started_ = false;
    Pair last_{};
    Pair rate_{};  ///< so many ticks in so many ns; zero ticks: not learnt yet
};

}  // namespace continuo::guest
