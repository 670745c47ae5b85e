// The witness: a guest that does nothing but look at its clocks and write down what it saw. Runs
// on every vCPU of a VM, without firmware, libraries or floating point. What each vCPU writes
// stands in its Report; the host reads it when the VM stands still. How the clocks are read is in
// clocks.h of the architecture.
#include "clocks.h"
#include "payload.h"
// After clocks.h, which chooses the counter.
#include "continuo/guest/time_travel_page.h"

using namespace continuo::vmm::witness;

namespace {

constexpr std::uint64_t kPagesALoop = 16;

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
    Watch(Report& report, Control& control) : report_{report}, control_{control}, clocks_{report} {}

    [[noreturn]] void run() {
        epoch_ = load(control_.epoch);
        report_.last = clocks_.read();
        report_.magic = kMagic;
        for (;;)
            look();
    }

  private:
    void look() {
        const std::uint64_t epoch_before = load(control_.epoch);
        const std::uint64_t counter_published = load(control_.counter_last);
        const std::uint64_t clock_published = load(control_.clock_last);
        const Reading now = clocks_.read();
        const std::uint64_t epoch_after = load(control_.epoch);

        take_notice();
        keep_epochs(epoch_before, epoch_after, now, clocks_.take_guest_stopped());
        check_against_own(report_.last.counter, now.counter, report_.counter_back_own,
                          report_.counter_forward);
        check_against_own(report_.last.clock, now.clock, report_.clock_back_own,
                          report_.clock_forward);
        check_against_all(control_.counter_last, counter_published, now.counter,
                          report_.counter_back_cross);
        check_against_all(control_.clock_last, clock_published, now.clock,
                          report_.clock_back_cross);
        clocks_.cross_check(control_, now);
        work(clocks_.elapsed_ns(report_.last, now));
        report_.last = now;
        report_.loops = report_.loops + 1;
    }

    /// As a kernel's interrupt handler, which runs on one CPU; for a step of REALTIME it notes one.
    void take_notice() {
        if (report_.vcpu != 0) return;
        Notice& notice = control_.notice;
        auto* page = reinterpret_cast<continuo_time_travel_page*>(&notice.page);
        continuo_travel travel;
        while (continuo_travel_pending(page, &travel) != 0) {
            const std::uint64_t gaps = load(notice.page.gap_ns);
            const auto delta = static_cast<std::uint64_t>(travel.delta_ns);
            __atomic_fetch_add(&notice.told_delta_realtime_ns, delta, __ATOMIC_RELAXED);
            if (continuo_travel_answer(page, &travel) == 0) continue;
            __atomic_store_n(&notice.told_gap_ns, gaps, __ATOMIC_RELAXED);
            __atomic_fetch_add(&notice.answers, 1, __ATOMIC_RELEASE);
        }
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
        report_.generation = load(control_.generation);
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
    Clocks clocks_;
    std::uint64_t epoch_ = 0;
    Reading straddle_{};
    Reading before_straddle_{};
    bool have_straddle_ = false;
    bool straddle_stopped_ = false;
    bool want_next_ = false;
    std::uint64_t credit_ = 0;
};

}  // namespace

extern "C" [[noreturn]] void witness_watch(Report& report, Control& control) {
    Watch watch{report, control};
    watch.run();
}
