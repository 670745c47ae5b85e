// What is counted over the whole watch: readings, jumps, steps back, cost, the timeline.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "continuo/guest/watch/analyst.h"
#include "continuo/guest/watch/report.h"

namespace continuo::guest::watch {

class Statistics {
  public:
    Statistics(const Settings& settings, Listener& listener);

    /// `last`: the pass before on this CPU.
    void count(const Pass& pass, const std::optional<Pass>& last);
    /// One CPU did not run for so long, while others did.
    void hole(std::uint32_t cpu);
    void event(Event&& event);
    void exchange(const Exchange& exchange, const std::optional<SkewInterval>& skew);
    void lose(std::uint64_t passes) { report_.lost_passes += passes; }
    void tear() { ++report_.torn_passes; }
    void rate(const LineFit& monotonic, const LineFit& raw);
    /// Computes what is computed at the end, from what there is so far.
    const Report& report();

    Nanos since_start(const Pass& pass) const;

  private:
    void count_jumps(const Pass& pass, const Pass& last);
    void count_across(const Pass& pass);
    void note(const Backward& backward, bool across);
    void follow_ntp(const Pass& pass);
    void draw(const Pass& pass);

    Settings settings_;
    Listener& listener_;
    Report report_;
    std::optional<Pass> first_;
    time::u128 pass_ticks_ = 0;
    std::int64_t pass_ticks_min_ = INT64_MAX;
    std::int64_t pass_ticks_max_ = 0;
    std::int64_t bin_ns_ = 20'000'000;
    std::array<std::optional<std::int64_t>, kTracks> start_;
    std::int64_t hole_in_bin_ = 0;
};

}  // namespace continuo::guest::watch
