// The witness's clocks on x86-64: TSC, and kvmclock by the vCPU's own pvclock page.
#pragma once

#include "continuo/vmm/witness_machine.h"
#include "payload.h"

namespace continuo::vmm::witness {

inline constexpr std::uint8_t kPvclockGuestStopped = 2;

__extension__ using u128 = unsigned __int128;

/// struct pvclock_vcpu_time_info, as the guest sees it.
struct ClockPage {
    volatile std::uint32_t version;
    std::uint32_t pad;
    volatile std::uint64_t tsc_timestamp;
    volatile std::uint64_t system_time;
    volatile std::uint32_t mul;
    volatile std::int8_t shift;
    volatile std::uint8_t flags;
    std::uint8_t pad2[2];
};
static_assert(sizeof(ClockPage) == 32);

/// RDTSC that no earlier load passes and no later load overtakes.
inline std::uint64_t ordered_tsc() {
    std::uint32_t lo, hi;
    asm volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
    return (static_cast<std::uint64_t>(hi) << 32) | lo;
}

inline ClockPage& clock_page(std::uint32_t vcpu) {
    return *reinterpret_cast<ClockPage*>(kClockPages + kClockStride * vcpu);
}

/// A consistent copy of a clock page.
struct Line {
    std::uint32_t version;
    std::uint64_t tsc_timestamp;
    std::uint64_t system_time;
    std::uint32_t mul;
    std::int8_t shift;
    std::uint8_t flags;
};

/// The page's words, and whether they can be used: even version, not zero.
inline bool copy_page(const ClockPage& page, Line& line) {
    line.version = page.version;
    asm volatile("lfence" ::: "memory");
    line.tsc_timestamp = page.tsc_timestamp;
    line.system_time = page.system_time;
    line.mul = page.mul;
    line.shift = page.shift;
    line.flags = page.flags;
    return (line.version & 1) == 0;
}

inline bool unchanged(const ClockPage& page, const Line& line) {
    asm volatile("lfence" ::: "memory");
    return page.version == line.version;
}

/// ns = system_time + ((tsc - timestamp) shifted) * mul >> 32, also for a TSC before the timestamp.
inline std::uint64_t nanoseconds(const Line& line, std::uint64_t tsc) {
    std::uint64_t delta = tsc - line.tsc_timestamp;
    const bool behind = static_cast<std::int64_t>(delta) < 0;
    if (behind) delta = 0 - delta;
    delta = line.shift >= 0 ? delta << line.shift : delta >> -line.shift;
    const auto ns = static_cast<std::uint64_t>((static_cast<u128>(delta) * line.mul) >> 32);
    return line.system_time + (behind ? 0 - ns : ns);
}

class Clocks {
  public:
    explicit Clocks(Report& report) : report_{report}, page_{clock_page(report.vcpu)} {}

    /// One reading; TSC and page belong together.
    Reading read() {
        for (;;) {
            if (copy_page(page_, line_)) {
                const std::uint64_t tsc = ordered_tsc();
                if (unchanged(page_, line_))
                    return Reading{tsc, nanoseconds(line_, tsc), load(report_.ticks)};
            }
            report_.page_retries = report_.page_retries + 1;
        }
    }

    static std::uint64_t elapsed_ns(const Reading& before, const Reading& after) {
        return after.clock - before.clock;
    }

    /// True where GUEST_STOPPED stood in the page of the last reading; it is cleared there.
    bool take_guest_stopped() {
        if ((line_.flags & kPvclockGuestStopped) == 0) return false;
        asm volatile("lock; andb %1, %0"
                     : "+m"(page_.flags)
                     : "iq"(static_cast<std::uint8_t>(~kPvclockGuestStopped)));
        report_.guest_stopped = report_.guest_stopped + 1;
        return true;
    }

    /// Other vCPUs' pages at this reading's TSC, a few in each loop. Thrown away where either page
    /// changed meanwhile: the two would be lines of different updates.
    void cross_check(const Control& control, const Reading& now) {
        for (std::uint32_t i = 0; i < control.cross_pages_a_loop; ++i) {
            if (++other_ >= control.vcpu_count) other_ = 0;
            if (other_ == report_.vcpu) continue;
            const ClockPage& page = clock_page(other_);
            Line theirs;
            if (!copy_page(page, theirs) || theirs.version == 0) continue;
            if (!unchanged(page, theirs) || !unchanged(page_, line_)) continue;
            compare(now, theirs);
        }
    }

  private:
    void compare(const Reading& now, const Line& theirs) {
        report_.cross_checks = report_.cross_checks + 1;
        const std::uint64_t ns = nanoseconds(theirs, now.counter);
        if (ns == now.clock) return;
        const std::uint64_t difference = ns - now.clock;
        const bool behind = static_cast<std::int64_t>(difference) < 0;
        const std::uint64_t size = behind ? 0 - difference : difference;
        if (size > report_.cross_skew.largest) report_.cross_skew_vcpu = other_;
        note(report_.cross_skew, size, now.clock, ns);
    }

    Report& report_;
    ClockPage& page_;
    Line line_{};  ///< of the last reading
    std::uint32_t other_ = 0;
};

}  // namespace continuo::vmm::witness
