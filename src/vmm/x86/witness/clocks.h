// The witness's clocks on x86-64: TSC, and kvmclock by the vCPU's own pvclock page, read as any
// kernel may read it (guest/pvclock_reader.h), with a stricter RDTSC.
#pragma once

#include "continuo/vmm/witness_machine.h"
#include "payload.h"

namespace continuo::vmm::witness {

/// RDTSC that no earlier load passes and no later load overtakes: what other vCPUs publish is
/// compared with it.
inline std::uint64_t ordered_tsc() {
    std::uint32_t lo, hi;
    asm volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
    return (static_cast<std::uint64_t>(hi) << 32) | lo;
}

}  // namespace continuo::vmm::witness

#define CONTINUO_READ_COUNTER() continuo::vmm::witness::ordered_tsc()
#include "continuo/guest/pvclock_reader.h"

namespace continuo::vmm::witness {

inline continuo_pvclock_page& clock_page(std::uint32_t vcpu) {
    return *reinterpret_cast<continuo_pvclock_page*>(kClockPages + kClockStride * vcpu);
}

class Clocks {
  public:
    explicit Clocks(Report& report) : report_{report}, page_{clock_page(report.vcpu)} {}

    /// One reading; TSC and page belong together.
    Reading read() {
        for (;;) {
            version_ = continuo_pvclock_begin(&page_);
            if (continuo_pvclock_try_read(&page_, &reading_) != 0)
                return Reading{reading_.counter, reading_.ns, load(report_.ticks)};
            report_.page_retries = report_.page_retries + 1;
        }
    }

    static std::uint64_t elapsed_ns(const Reading& before, const Reading& after) {
        return after.clock - before.clock;
    }

    /// True where GUEST_STOPPED stood in the page of the last reading; it is cleared there.
    bool take_guest_stopped() {
        if ((reading_.flags & CONTINUO_PVCLOCK_GUEST_STOPPED) == 0) return false;
        continuo_pvclock_take_stopped(&page_);
        report_.guest_stopped = report_.guest_stopped + 1;
        return true;
    }

    /// Other vCPUs' pages at this reading's TSC, a few in each loop. Thrown away where either page
    /// changed meanwhile: the two would be lines of different updates.
    void cross_check(const Control& control, const Reading& now) {
        for (std::uint32_t i = 0; i < control.cross_pages_a_loop; ++i) {
            if (++other_ >= control.vcpu_count) other_ = 0;
            if (other_ == report_.vcpu) continue;
            const continuo_pvclock_page& page = clock_page(other_);
            const std::uint32_t version = continuo_pvclock_begin(&page);
            const continuo_pvclock_line theirs = continuo_pvclock_load(&page);
            if (version == 0 || continuo_pvclock_whole(&page, version) == 0) continue;
            if (continuo_pvclock_whole(&page_, version_) == 0) continue;
            compare(now, theirs);
        }
    }

  private:
    void compare(const Reading& now, const continuo_pvclock_line& theirs) {
        report_.cross_checks = report_.cross_checks + 1;
        const std::uint64_t ns = continuo_pvclock_at(&theirs, now.counter);
        if (ns == now.clock) return;
        const std::uint64_t difference = ns - now.clock;
        const bool behind = static_cast<std::int64_t>(difference) < 0;
        const std::uint64_t size = behind ? 0 - difference : difference;
        if (size > report_.cross_skew.largest) report_.cross_skew_vcpu = other_;
        note(report_.cross_skew, size, now.clock, ns);
    }

    Report& report_;
    continuo_pvclock_page& page_;
    continuo_pvclock_reading reading_{};  ///< the last
    std::uint32_t version_ = 0;           ///< of the page, before that reading
    std::uint32_t other_ = 0;
};

}  // namespace continuo::vmm::witness
