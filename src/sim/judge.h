// The judge of one run: it looks through the guest's eyes at the instants that matter, knows the
// true lines, and holds the one against the other. Every clock is a line between two events, so a
// handful of readings says all that a million would.
#pragma once

#include <array>
#include <cstdint>

#include "continuo/sim/run.h"
#include "continuo/sim/sides.h"
#include "continuo/sim/world.h"
#include "monitor.h"

namespace continuo::sim {

/// What the guest's clocks are lines of, on the destination, for comparing before and after.
struct Lines {
    std::array<std::uint64_t, kVcpusMax> offsets{};
    abi::pvclock_vcpu_time_info page{};
};

class Judge {
  public:
    Judge(World& world, const Strategy& strategy, RunResult& result);

    /// The guest has booted: its clocks are set, and its counter runs at so many kHz.
    void boot(std::uint32_t khz, std::uint64_t uptime_ns);

    // What the guest sees, now.

    void look(unsigned vcpu);
    void look_at_all();
    /// A reader on vCPU 1 meets vCPU 0's page store by store.
    void race();
    void start_sched_clock();

    // The stop.

    /// The timekeeper's last tick was up to so long ago.
    void last_tick(std::int64_t tick_ns);
    void damage_page();
    void suspend();
    void begin_stop() { stop_began_ = world_.clock.now; }
    void last_look(unsigned vcpu);
    void stopped();
    /// The strategy has read the clocks: the true lines are kept.
    void saved(const SourceSide& source);

    // The other side.

    Lines lines();
    void hold_idempotent(const Lines& before, const Lines& after);
    void first_look(unsigned vcpu, DestinationSide& destination);
    void judge_move(DestinationSide& destination, bool wire_damaged);
    /// The agent, or the NTP daemon alone. cut_short: the next stop comes before the answer.
    void repair(bool cut_short);

    std::uint64_t hash(const RunResult& result);

  private:
    struct Reading {
        TrueTime at;
        std::uint64_t tsc = 0;
        std::uint64_t kvmclock = 0;
        std::uint64_t cycles = 0;
        std::uint64_t monotonic = 0;
    };
    /// A clock's value where it was promised to be: between two, as true time lies within a tick.
    struct Promised {
        std::uint64_t low = 0;
        std::uint64_t high = 0;
        /// How far `value` is outside, signed.
        std::int64_t off(std::uint64_t value) const;
    };

    Reading read(unsigned vcpu);
    Reading watch(unsigned vcpu);
    void trace(std::uint64_t value);
    void hold_together(const Reading& zero, const Reading& other, unsigned vcpu);
    std::int64_t ticks_to_ns(std::int64_t ticks) const;
    std::int64_t realtime_error_ns(const Reading& reading) const;
    void hold_realtime(const Reading& reading, TrueTime until);
    std::int64_t realtime_allowed_ns(TrueTime until) const;

    Promised promised_tsc(unsigned vcpu) const;
    Promised promised_kvmclock() const;
    void place_resume(DestinationSide& destination);
    void judge_counters(DestinationSide& destination);
    void judge_kvmclock(DestinationSide& destination);
    void judge_bounds(const Certified& certified);
    void judge_monotonic();
    void judge_told_stopped(unsigned vcpu, DestinationSide& destination);
    std::int64_t hosts_allow_ns() const;
    std::int64_t counter_bound_ns(unsigned vcpu) const;
    std::int64_t by_value_ns() const;
    void note_how(const Certified& certified);

    void answer();
    void daemon_alone(std::int64_t error_ns);
    void hold(Invariant invariant, std::int64_t by_ns, unsigned vcpu = 0) {
        result_.verdicts.hold(invariant, by_ns, world_.clock.now, vcpu);
    }

    World& world_;
    const Strategy& strategy_;
    RunResult& result_;
    OrderMonitor tsc_;
    OrderMonitor kvmclock_;
    OrderMonitor monotonic_;
    bool synchronised_ = true;
    std::uint32_t khz_ = 1;
    std::uint64_t tick_unit_ = 0;                   ///< 2^32 times the ns of a tick
    std::array<std::uint64_t, kVcpusMax> apart_{};  ///< each vCPU's counter less vCPU 0's, at boot

    // Of the move that is going on.
    TrueTime stop_began_{};
    Reading last_;                      ///< the last reading before the guest was out
    std::int64_t error_before_ns_ = 0;  ///< REALTIME's then
    bool suspended_ = false;
    bool page_damaged_ = false;
    abi::pvclock_vcpu_time_info pristine_{};
    unsigned source_host_ = 0;
    std::uint64_t anchor_count_ = 0;
    TrueTime anchor_at_{};
    std::array<time::TscMap, kVcpusMax> source_maps_;
    std::array<std::uint64_t, kVcpusMax> source_adjust_{};  ///< IA32_TSC_ADJUST
    std::optional<time::PvclockLine> source_line_;
    bool entered_ = false;
    Reading first_;
    TrueTime resume_at_{};
    std::uint64_t resume_count_ = 0;
    std::optional<Certified> certified_;
    std::int64_t worst_beyond_bound_ns_ = 0;
    std::int64_t error_first_ns_ = 0;
    bool told_ = false;  ///< a notice stands

    std::uint64_t trace_hash_ = 0;
    std::array<std::uint64_t, 128> trace_;  ///< the first traced_ of them
    unsigned traced_ = 0;
};

}  // namespace continuo::sim
