// The witness: a guest that does nothing but look at its clocks and write down what it saw. Runs
// on every vCPU of a VM, in ring 3 or ring 0, without firmware, libraries or SSE. What each vCPU
// writes stands in its Report; the host reads it when the VM stands still.
#include "continuo/vmm/witness_abi.h"

using namespace continuo::vmm::witness;

namespace {

constexpr std::uint32_t kMsrSystemTime = 0x4b564d01;
constexpr std::uint32_t kMsrTscAdjust = 0x3b;
constexpr std::uint32_t kMsrTscDeadline = 0x6e0;
constexpr std::uint32_t kMsrX2apicEoi = 0x80b;
constexpr std::uint32_t kMsrX2apicSpurious = 0x80f;
constexpr std::uint32_t kMsrX2apicTimer = 0x832;
constexpr std::uint32_t kMsrX2apicInitialCount = 0x838;
constexpr std::uint32_t kMsrX2apicDivide = 0x83e;
constexpr std::uint8_t kPvclockGuestStopped = 2;
constexpr std::uint64_t kPagesALoop = 16;
constexpr std::uint64_t kNanosPerSecond = 1'000'000'000;

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

void write_msr(std::uint32_t msr, std::uint64_t value) {
    asm volatile("wrmsr" ::"c"(msr), "a"(static_cast<std::uint32_t>(value)),
                 "d"(static_cast<std::uint32_t>(value >> 32))
                 : "memory");
}

std::uint64_t read_msr(std::uint32_t msr) {
    std::uint32_t lo, hi;
    asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr) : "memory");
    return (static_cast<std::uint64_t>(hi) << 32) | lo;
}

void out8(std::uint16_t port, std::uint8_t value) {
    asm volatile("outb %0, %1" ::"a"(value), "d"(port));
}
void out32(std::uint16_t port, std::uint32_t value) {
    asm volatile("outl %0, %1" ::"a"(value), "d"(port) : "memory");
}

void print(const char* text) {
    for (; *text != 0; ++text)
        out8(kPortSerial, static_cast<std::uint8_t>(*text));
}

/// RDTSC that no earlier load passes and no later load overtakes.
std::uint64_t ordered_tsc() {
    std::uint32_t lo, hi;
    asm volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
    return (static_cast<std::uint64_t>(hi) << 32) | lo;
}

template <class T>
T load(const T& word) {
    return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}

ClockPage& clock_page(std::uint32_t vcpu) {
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
bool copy_page(const ClockPage& page, Line& line) {
    line.version = page.version;
    asm volatile("lfence" ::: "memory");
    line.tsc_timestamp = page.tsc_timestamp;
    line.system_time = page.system_time;
    line.mul = page.mul;
    line.shift = page.shift;
    line.flags = page.flags;
    return (line.version & 1) == 0;
}

bool unchanged(const ClockPage& page, const Line& line) {
    asm volatile("lfence" ::: "memory");
    return page.version == line.version;
}

/// ns = system_time + ((tsc - timestamp) shifted) * mul >> 32, also for a TSC before the timestamp.
std::uint64_t nanoseconds(const Line& line, std::uint64_t tsc) {
    std::uint64_t delta = tsc - line.tsc_timestamp;
    const bool behind = static_cast<std::int64_t>(delta) < 0;
    if (behind) delta = 0 - delta;
    delta = line.shift >= 0 ? delta << line.shift : delta >> -line.shift;
    const auto ns = static_cast<std::uint64_t>((static_cast<u128>(delta) * line.mul) >> 32);
    return line.system_time + (behind ? 0 - ns : ns);
}

void note(Jump& jump, std::uint64_t size, std::uint64_t before, std::uint64_t after) {
    jump.count = jump.count + 1;
    if (size <= jump.largest) return;
    jump.largest = size;
    jump.before = before;
    jump.after = after;
}

/// Compares a reading with what all vCPUs published before it, and publishes it.
void check_against_all(std::uint64_t& shared, std::uint64_t published_before, std::uint64_t now,
                       Jump& back) {
    if (static_cast<std::int64_t>(now - published_before) < 0)
        note(back, published_before - now, published_before, now);
    std::uint64_t seen = load(shared);
    while (static_cast<std::int64_t>(now - seen) > 0) {
        if (__atomic_compare_exchange_n(&shared, &seen, now, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
            break;
    }
}

void check_against_own(std::uint64_t before, std::uint64_t now, Jump& back, Jump& forward) {
    const auto step = static_cast<std::int64_t>(now - before);
    if (step < 0) {
        note(back, before - now, before, now);
    } else {
        note(forward, now - before, before, now);
    }
}

class Watch {
  public:
    Watch(Report& report, Control& control)
        : report_{report}, control_{control}, page_{clock_page(report.vcpu)} {}

    [[noreturn]] void run() {
        epoch_ = load(control_.epoch);
        Line line;
        report_.last = read_clocks(line);
        report_.magic = kMagic;
        for (;;)
            look();
    }

  private:
    /// One reading; TSC and page belong together.
    Reading read_clocks(Line& line) {
        for (;;) {
            if (copy_page(page_, line)) {
                const std::uint64_t tsc = ordered_tsc();
                if (unchanged(page_, line)) {
                    return Reading{tsc, nanoseconds(line, tsc), load(report_.ticks)};
                }
            }
            report_.page_retries = report_.page_retries + 1;
        }
    }

    void look() {
        const std::uint64_t epoch_before = load(control_.epoch);
        const std::uint64_t tsc_published = load(control_.tsc_last);
        const std::uint64_t kvmclock_published = load(control_.kvmclock_last);
        Line line;
        const Reading now = read_clocks(line);
        const std::uint64_t epoch_after = load(control_.epoch);

        take_notice();
        const bool stopped = take_guest_stopped(line);
        keep_epochs(epoch_before, epoch_after, now, stopped);
        check_against_own(report_.last.tsc, now.tsc, report_.tsc_back_own, report_.tsc_forward);
        check_against_own(report_.last.kvmclock_ns, now.kvmclock_ns, report_.kvmclock_back_own,
                          report_.kvmclock_forward);
        check_against_all(control_.tsc_last, tsc_published, now.tsc, report_.tsc_back_cross);
        check_against_all(control_.kvmclock_last, kvmclock_published, now.kvmclock_ns,
                          report_.kvmclock_back_cross);
        cross_check(line, now);
        work(now.kvmclock_ns - report_.last.kvmclock_ns);
        report_.last = now;
        report_.loops = report_.loops + 1;
    }

    bool take_guest_stopped(const Line& line) {
        if ((line.flags & kPvclockGuestStopped) == 0) return false;
        asm volatile("lock; andb %1, %0"
                     : "+m"(page_.flags)
                     : "iq"(static_cast<std::uint8_t>(~kPvclockGuestStopped)));
        report_.guest_stopped = report_.guest_stopped + 1;
        return true;
    }

    /// The sums are taken only where nobody published or answered meanwhile.
    void take_notice() {
        Notice& notice = control_.notice;
        std::uint64_t sequence = load(notice.sequence);
        if ((sequence & 1) == 0) return;
        const std::uint64_t gap = load(notice.gap_ns);
        const std::uint64_t delta = load(notice.delta_realtime_ns);
        if (!__atomic_compare_exchange_n(&notice.sequence, &sequence, sequence + 1, false,
                                         __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return;
        __atomic_fetch_add(&notice.told_gap_ns, gap, __ATOMIC_RELAXED);
        __atomic_fetch_add(&notice.told_delta_realtime_ns, delta, __ATOMIC_RELAXED);
        __atomic_fetch_add(&notice.answers, 1, __ATOMIC_RELEASE);
    }

    EpochRecord& slot() { return report_.epochs[epoch_ % kEpochSlots]; }

    void keep_epochs(std::uint64_t before, std::uint64_t after, const Reading& now, bool stopped) {
        if (want_next_) {
            EpochRecord& record = slot();
            record.next = now;
            __atomic_store_n(&record.flags, record.flags | kHasNext | (stopped ? kGuestStopped : 0),
                             __ATOMIC_RELEASE);
            want_next_ = false;
        }
        if (after == epoch_) return;
        if (before != after) {
            // The stop fell into this reading: it may lie on either side of it.
            straddle_ = now;
            have_straddle_ = true;
            straddle_stopped_ = stopped;
            before_straddle_ = report_.last;
            return;
        }
        epoch_ = after;
        EpochRecord& record = slot();
        record.before = have_straddle_ ? before_straddle_ : report_.last;
        if (have_straddle_) record.straddle = straddle_;
        record.after = now;
        const bool flagged = stopped || (have_straddle_ && straddle_stopped_);
        record.flags = (have_straddle_ ? kHasStraddle : 0) | (flagged ? kGuestStopped : 0);
        __atomic_store_n(&record.epoch, after, __ATOMIC_RELEASE);
        have_straddle_ = false;
        want_next_ = true;
    }

    /// Other vCPUs' pages at this reading's TSC, a few in each loop. Thrown away where either page
    /// changed meanwhile: the two would be lines of different updates.
    void cross_check(const Line& line, const Reading& now) {
        for (std::uint32_t i = 0; i < control_.cross_pages_a_loop; ++i) {
            if (++other_ >= control_.vcpu_count) other_ = 0;
            if (other_ == report_.vcpu) continue;
            const ClockPage& page = clock_page(other_);
            Line theirs;
            if (!copy_page(page, theirs) || theirs.version == 0) continue;
            if (!unchanged(page, theirs) || !unchanged(page_, line)) continue;
            compare(now, theirs);
        }
    }

    void compare(const Reading& now, const Line& theirs) {
        report_.cross_checks = report_.cross_checks + 1;
        const std::uint64_t ns = nanoseconds(theirs, now.tsc);
        if (ns == now.kvmclock_ns) return;
        const std::uint64_t difference = ns - now.kvmclock_ns;
        const bool behind = static_cast<std::int64_t>(difference) < 0;
        const std::uint64_t size = behind ? 0 - difference : difference;
        if (size > report_.cross_skew.largest) report_.cross_skew_vcpu = other_;
        note(report_.cross_skew, size, now.kvmclock_ns, ns);
    }

    /// Dirties pages at the rate that the host asks for, paced by this guest's own clock.
    void work(std::uint64_t elapsed_ns) {
        const std::uint64_t rate = load(control_.dirty_pages_a_second);
        if (rate == 0 || report_.workload_pages == 0) return;
        // A forward jump must not become a storm of writes.
        if (elapsed_ns > kNanosPerSecond / 10) elapsed_ns = kNanosPerSecond / 10;
        credit_ += elapsed_ns * rate;
        for (std::uint64_t i = 0; i < kPagesALoop && credit_ >= kNanosPerSecond; ++i) {
            credit_ -= kNanosPerSecond;
            write_page();
        }
        if (credit_ > kPagesALoop * kNanosPerSecond) credit_ = kPagesALoop * kNanosPerSecond;
    }

    void write_page() {
        const std::uint64_t done = report_.pages_written;
        const std::uint64_t page = done % report_.workload_pages;
        const std::uint64_t generation = done / report_.workload_pages + 1;
        const std::uint64_t at = report_.workload_gpa + page * 4096;
        for (std::uint32_t word = 0; word < kWordsAPage; ++word) {
            auto* to = reinterpret_cast<volatile std::uint64_t*>(at + word * kWordStride);
            *to = workload_word(report_.vcpu, page, generation, word);
        }
        __atomic_store_n(&report_.pages_written, done + 1, __ATOMIC_RELEASE);
    }

    Report& report_;
    Control& control_;
    ClockPage& page_;
    std::uint64_t epoch_ = 0;
    Reading straddle_{};
    Reading before_straddle_{};
    bool have_straddle_ = false;
    bool straddle_stopped_ = false;
    bool want_next_ = false;
    std::uint32_t other_ = 0;
    std::uint64_t credit_ = 0;
};

Control& control_page() {
    return *reinterpret_cast<Control*>(kControl);
}

void arm_timer(Report& report, const Control& control) {
    if (control.timer_mode != TimerMode::kTscDeadline) return;
    report.tick_deadline = ordered_tsc() + control.timer_period;
    write_msr(kMsrTscDeadline, report.tick_deadline);
}

void start_timer(Report& report, const Control& control) {
    if (control.timer_mode == TimerMode::kNone) return;
    write_msr(kMsrX2apicSpurious, 0x100u | kSpuriousVector);
    if (control.timer_mode == TimerMode::kTscDeadline) {
        write_msr(kMsrX2apicTimer, (2u << 17) | kTimerVector);
        asm volatile("mfence" ::: "memory");
    } else {
        write_msr(kMsrX2apicDivide, 0xb);
        write_msr(kMsrX2apicTimer, (1u << 17) | kTimerVector);
        write_msr(kMsrX2apicInitialCount, control.timer_period);
    }
    arm_timer(report, control);
}

}  // namespace

/// Ring 0, once for each vCPU. Returns 1 where the host wants the watch in ring 3.
extern "C" int witness_setup(Report& report, Control& control) {
    write_msr(kMsrSystemTime, (kClockPages + kClockStride * report.vcpu) | 1);
    if (report.vcpu == 0) print("witness: watching\n");
    start_timer(report, control);
    return (control.flags & kFlagUserMode) != 0 ? 1 : 0;
}

extern "C" [[noreturn]] void witness_watch(Report& report, Control& control) {
    Watch watch{report, control};
    watch.run();
}

extern "C" void witness_timer(Report& report) {
    Control& control = control_page();
    const std::uint64_t now = ordered_tsc();
    if (control.timer_mode == TimerMode::kTscDeadline) {
        const auto late = static_cast<std::int64_t>(now - report.tick_deadline);
        if (late > 0 && static_cast<std::uint64_t>(late) > report.tick_late_max)
            report.tick_late_max = static_cast<std::uint64_t>(late);
    }
    const std::uint64_t request = load(control.tsc_adjust_request);
    if ((control.flags & kFlagTscAdjust) != 0 && request != report.tsc_adjust_seen) {
        report.tsc_adjust = read_msr(kMsrTscAdjust);
        report.tsc_adjust_seen = request;
    }
    __atomic_store_n(&report.ticks, report.ticks + 1, __ATOMIC_RELEASE);
    write_msr(kMsrX2apicEoi, 0);
    arm_timer(report, control);
}

extern "C" [[noreturn]] void witness_fault(Report& report, std::uint64_t vector,
                                           std::uint64_t error, std::uint64_t rip) {
    report.fault_error = error;
    report.fault_rip = rip;
    report.fault_vector = vector + 1;
    for (;;)
        out32(kPortExit, kExitFault);
}
