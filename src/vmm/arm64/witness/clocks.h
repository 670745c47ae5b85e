// The witness's clocks on arm64: CNTVCT and CNTPCT. Without FEAT_ECV each reading is ordered by
// hand: no earlier load completes after it, and no later one before it (Arm ARM, D12, "Generic
// Timer", reads of the counters are not ordered otherwise).
#pragma once

#include "continuo/vmm/witness_machine.h"
#include "payload.h"

namespace continuo::vmm::witness {

inline std::uint64_t ordered_virtual_counter() {
    std::uint64_t value;
    asm volatile("dsb ishld\n\tisb\n\tmrs %0, cntvct_el0\n\tisb" : "=r"(value)::"memory");
    return value;
}

inline std::uint64_t ordered_physical_counter() {
    std::uint64_t value;
    asm volatile("dsb ishld\n\tisb\n\tmrs %0, cntpct_el0\n\tisb" : "=r"(value)::"memory");
    return value;
}

inline std::uint64_t counter_frequency() {
    std::uint64_t hz;
    asm volatile("mrs %0, cntfrq_el0" : "=r"(hz));
    return hz;
}

class Clocks {
  public:
    explicit Clocks(Report& report) : report_{report} {}

    /// The physical counter between two readings of the virtual one; the first is the reading's.
    Reading read() {
        Reading now{};
        now.counter = ordered_virtual_counter();
        now.clock = ordered_physical_counter();
        counter_after_ = ordered_virtual_counter();
        return now;
    }

    /// More than a tenth of a second counts as that, so that nothing overflows.
    static std::uint64_t elapsed_ns(const Reading& before, const Reading& after) {
        const std::uint64_t hz = counter_frequency();
        if (hz == 0) return 0;
        const std::uint64_t ticks = after.counter - before.counter;
        return ticks >= hz / 10 ? kNanosPerSecond / 10 : ticks * kNanosPerSecond / hz;
    }

    /// arm64 has no such flag.
    static bool take_guest_stopped() { return false; }

    /// Two counters of one offset are one counter: the physical one is within the bracket.
    void cross_check(const Control& control, const Reading& now) {
        if ((control.flags & kFlagOneOffset) == 0) return;
        report_.cross_checks = report_.cross_checks + 1;
        const auto below = static_cast<std::int64_t>(now.counter - now.clock);
        const auto above = static_cast<std::int64_t>(now.clock - counter_after_);
        const std::int64_t outside = below > above ? below : above;
        if (outside <= 0) return;
        note(report_.cross_skew, static_cast<std::uint64_t>(outside), now.counter, now.clock);
        report_.cross_skew_vcpu = report_.vcpu;
    }

  private:
    Report& report_;
    std::uint64_t counter_after_ = 0;
};

}  // namespace continuo::vmm::witness
