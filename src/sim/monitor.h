// Order watched as it happens: every reading of a clock is held against the last one on its vCPU
// and against the highest one on any vCPU that was over early enough to be ordered before it.
#pragma once

#include <array>
#include <cstdint>

#include "continuo/sim/oracle.h"
#include "continuo/sim/scenario.h"
#include "continuo/sim/true_time.h"

namespace continuo::sim {

/// One clock on all vCPUs, modulo 2^64. Readings come in the order of true time.
class OrderMonitor {
  public:
    /// per_vcpu, across: what a step backwards breaks. ordered: two readings on two vCPUs are
    /// ordered where they lie so far apart.
    OrderMonitor(Invariant per_vcpu, Invariant across, Span ordered)
        : per_vcpu_{per_vcpu}, across_{across}, ordered_{ordered} {}

    /// unit: 2^32 times the ns of one step of the value.
    void see(Verdicts& verdicts, unsigned vcpu, std::uint64_t value, TrueTime at,
             std::uint64_t unit, bool compare_across = true) {
        Last& last = last_[vcpu];
        verdicts.looked(per_vcpu_);
        if (last.seen) verdicts.hold(per_vcpu_, back_ns(last.value, value, unit), at, vcpu);
        last = {value, true};
        if (!compare_across) return;
        verdicts.looked(across_);
        if (any_ && at >= highest_at_ + ordered_)
            verdicts.hold(across_, back_ns(highest_, value, unit), at, vcpu);
        if (any_ && static_cast<std::int64_t>(value - highest_) <= 0) return;
        highest_ = value;
        highest_at_ = at;
        any_ = true;
    }
    /// The readings so far say nothing of the next ones.
    void forget() {
        last_ = {};
        any_ = false;
    }

  private:
    struct Last {
        std::uint64_t value = 0;
        bool seen = false;
    };
    /// How far `after` is behind `before`, in ns, at least 1; 0 where it is not.
    static std::int64_t back_ns(std::uint64_t before, std::uint64_t after, std::uint64_t unit) {
        const auto back = static_cast<std::int64_t>(before - after);
        if (back <= 0) return 0;
        const auto ns = static_cast<std::int64_t>(
            (static_cast<time::u128>(static_cast<std::uint64_t>(back)) * unit) >> 32);
        return ns < 1 ? 1 : ns;
    }

    Invariant per_vcpu_;
    Invariant across_;
    Span ordered_;
    std::array<Last, kVcpusMax> last_{};
    std::uint64_t highest_ = 0;
    TrueTime highest_at_{};
    bool any_ = false;
};

}  // namespace continuo::sim
