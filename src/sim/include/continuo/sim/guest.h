// The guest's own timekeeping: a Linux timekeeper on its clocksource, the pvclock reader, NTP's
// state, the notice that the host shares with it, and the agent that answers it. All of it is
// memory of the guest: it moves with the VM.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "continuo/abi/pvclock.h"
#include "continuo/model/kvm_vm.h"
#include "continuo/sim/bug.h"
#include "continuo/sim/scenario.h"
#include "continuo/sim/site.h"
#include "continuo/sim/strategy.h"
#include "continuo/sim/true_time.h"

namespace continuo::sim {

/// NTP_PHASE_LIMIT: what adjtimex says of a clock that nobody knows anything of.
inline constexpr std::int64_t kNtpPhaseLimitNs = 16'000'000'000;

/// The page in which a host tells a guest that time has passed (S1.2, S1.3). The deltas are a
/// running total, so that a second notice before the first was accounted for loses nothing, and an
/// agent that was moved in the middle of its answer accounts for no part twice.
struct NoticePage {
    std::uint64_t sequence = 0;       ///< odd: pending
    std::int64_t total_delta_ns = 0;  ///< of REALTIME, since the VM was made
    std::int64_t total_gap_ns = 0;    ///< of all gaps, told or advanced

    bool pending() const { return (sequence & 1) != 0; }
    void publish(std::int64_t delta_ns, std::int64_t gap_ns, std::uint64_t new_sequence,
                 std::int64_t accounted_ns, Bug bug);
};

/// What adjtimex(2) shows.
struct NtpState {
    std::int64_t maxerror_ns = 0;
    std::int64_t esterror_ns = 0;
    bool unsync = false;
};

/// The clocks of Linux over one clocksource (timekeeping.c). Cycles are guest TSC ticks or kvmclock
/// ns. All sums are modulo 2^64 as the kernel's are.
struct Timekeeper {
    Clocksource source = Clocksource::kTsc;
    bool clamps = true;  ///< a delta beyond the multiplication is computed in 128 bits
    std::uint64_t cycle_last = 0;
    std::uint32_t mult = 1;
    unsigned shift = 0;
    std::uint64_t frac = 0;        ///< of 2^shift ns
    std::uint64_t mono_ns = 0;     ///< at cycle_last
    std::uint64_t to_real_ns = 0;  ///< REALTIME - MONOTONIC
    std::uint64_t to_tai_ns = 0;   ///< TAI - REALTIME

    /// MONOTONIC at a cycle count. A count before cycle_last reads as cycle_last on x86.
    std::uint64_t monotonic(std::uint64_t cycles) const;
    /// Whether monotonic() would overflow the kernel's 64-bit product there.
    bool beyond(std::uint64_t cycles) const;
    /// timekeeping_advance(): cycle_last moves up to `cycles`. in_time: after ticks that came often
    /// enough for no product to overflow.
    void accumulate(std::uint64_t cycles, bool in_time);
    /// timekeeping_suspend(), _resume(): what the clocksource counted between goes to REALTIME
    /// alone.
    void suspend(std::uint64_t cycles) { accumulate(cycles, true); }
    void resume(std::uint64_t cycles);
};

class Guest {
  public:
    /// The guest has booted, with all its clocks set. now_tai: true TAI.
    void begin(const GuestSpec& spec, std::uint32_t khz, Bug bug);

    /// kvmclock by the page of a vCPU: with the version's retry, and the global
    /// compare-and-exchange where the stable bit is off.
    std::uint64_t read_kvmclock(const abi::pvclock_vcpu_time_info& page, std::uint64_t tsc,
                                ProbeSet& probes);
    std::uint64_t cycles(const abi::pvclock_vcpu_time_info& page, std::uint64_t tsc,
                         ProbeSet& probes) {
        return timekeeper.source == Clocksource::kKvmclock ? read_kvmclock(page, tsc, probes) : tsc;
    }
    /// REALTIME, or nothing while a notice holds it.
    std::optional<std::uint64_t> read_realtime(std::uint64_t cycles) const {
        if (notice.pending()) return std::nullopt;
        return timekeeper.monotonic(cycles) + timekeeper.to_real_ns;
    }
    /// kvmclock's offset for the scheduler's clock, taken on one vCPU (S4.3).
    void start_sched_clock(std::uint64_t kvmclock) { sched_offset = kvmclock; }
    std::uint64_t sched_clock(std::uint64_t kvmclock) const;

    /// The agent answers a notice: REALTIME, NTP's state, timers, and then the sequence. False
    /// where nothing was pending.
    bool answer_notice(Told told);
    /// The NTP daemon moves REALTIME by so much, and knows it to `accuracy_ns` then.
    void synchronise(std::int64_t by_ns, std::int64_t accuracy_ns, bool step);
    void arm_timer() {
        timer_armed = true;
        timer_cancelled = false;
    }

    Timekeeper timekeeper;
    NoticePage notice;
    NtpState ntp;
    std::int64_t accounted_ns = 0;      ///< of notice.total_delta_ns
    std::int64_t gap_accounted_ns = 0;  ///< of notice.total_gap_ns
    std::uint64_t last_kvmclock = 0;    ///< the reader's global last value
    std::uint64_t sched_offset = 0;
    bool timer_armed = false;  ///< TFD_TIMER_CANCEL_ON_SET
    bool timer_cancelled = false;
    bool realtime_was_set = false;  ///< since the last move

  private:
    void set_realtime(std::int64_t by_ns);
    Bug bug_ = Bug::kNone;
};

}  // namespace continuo::sim
