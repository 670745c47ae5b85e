// A host: its oscillator, its CPUs' counters, and the clocks that its kernel makes of them
// (CLOCK_MONOTONIC_RAW, CLOCK_TAI, CLOCK_REALTIME), with what NTP, leap seconds, sleep and a lost
// clocksource do to them. It is the platform that KVM's model stands on.
#pragma once

#include <array>
#include <cstdint>

#include "continuo/model/kernel_rules.h"
#include "continuo/model/platform.h"
#include "continuo/sim/oscillator.h"
#include "continuo/sim/scenario.h"
#include "continuo/state/record.h"

namespace continuo::sim {

/// The instant that the whole world is at. Moved by the scheduler alone.
struct WorldClock {
    TrueTime now{};
    /// What a reading of a counter inside the kernel takes; 0 while an oracle looks.
    Span reading{0};
    /// TAI in ns at true time 0, modulo 2^64.
    std::uint64_t epoch_tai_ns = 0;
    /// TAI - UTC in seconds before the leap, the true instant of the leap and its size.
    std::int64_t tai_offset_sec = 37;
    TrueTime leap_at = TrueTime::max();
    std::int64_t leap_sec = 0;

    /// True TAI, ns modulo 2^64.
    std::uint64_t true_tai(TrueTime t) const {
        return epoch_tai_ns + static_cast<std::uint64_t>(floor_ns(t));
    }
};

class Host final : public model::Platform {
  public:
    Host() = default;
    /// Lifetime: clock and spec outlive the host. All that is drawn is drawn here.
    void begin(WorldClock& clock, const HostSpec& spec, unsigned index, Random& random);

    // model::Platform, at the world's instant.
    std::uint64_t tsc(unsigned cpu) override {
        clock_->now += clock_->reading;
        return oscillator_.count(clock_->now) + skew_[cpu % skew_.size()];
    }
    std::int64_t base_ns(std::uint64_t tsc) override { return raw_line_.at(tsc) + slept_ns_; }
    std::int64_t realtime_ns(std::uint64_t tsc) override { return wrap(utc(tai_.at(tsc))); }
    bool tsc_clocksource() override { return tsc_clocksource_; }
    std::uint32_t tsc_khz() override { return khz_; }
    bool tsc_unstable() override { return tsc_unstable_; }
    std::int64_t base_now_ns(unsigned cpu) override;
    std::int64_t realtime_now_ns(unsigned cpu) override;
    void mark_tsc_unstable() override { tsc_unstable_ = true; }

    /// CPU 0's counter at a true time, without letting any pass.
    std::uint64_t count(TrueTime t) { return oscillator_.count(t); }
    std::uint64_t count_now() { return oscillator_.count(clock_->now); }
    TrueTime time_of(std::uint64_t count) const { return oscillator_.time_of(count); }
    const Oscillator& oscillator() const { return oscillator_; }

    /// CLOCK_TAI at a counter value, as this kernel has it: UTC where nobody told it the offset.
    std::uint64_t tai_ns(std::uint64_t tsc) const { return told(tai_.at(tsc)); }
    /// The same now, by whatever the clocksource is.
    std::uint64_t tai_now_ns() { return told(tai_here()); }
    /// What its TAI is ahead of the truth now, in ns.
    std::int64_t tai_error_ns();

    /// CLOCK_BOOTTIME - CLOCK_MONOTONIC.
    std::int64_t slept_ns() const { return slept_ns_; }

    // What happens to it.
    void ntp_step(std::int64_t size_ns);
    void ntp_slew(std::int64_t ppb);
    void lose_clocksource();
    void become_unstable(std::uint64_t ticks);
    void sleep(Span length);
    /// NTP keeps the clock within what the kernel states of it; called at the beginning of each
    /// phase, because a line of 32-bit multiplier does not stay true for a year.
    void discipline();

    const HostSpec& spec() const { return *spec_; }
    const model::KernelRules& rules() const { return rules_; }
    const state::HostIdentity& identity() const { return identity_; }
    std::uint32_t khz() const { return khz_; }
    std::int64_t drift_ppb() const { return drift_ppb_; }
    std::int32_t tai_offset_sec() const { return tai_offset_sec_; }
    std::uint64_t tai_bound_ns() const { return spec_->tai_bound_ns; }

  private:
    /// ns = ns0 + floor(ticks * mult / 2^shift), modulo 2^64: a clock of Linux, which at the ends
    /// of 64 bits wraps.
    struct ClockLine {
        std::uint64_t counter = 0;
        std::uint64_t ns = 0;
        std::uint64_t mult = 1;  ///< ns a tick, times 2^54: finer than Linux's, which dithers
        std::uint64_t at(std::uint64_t tsc) const {
            const auto run = static_cast<time::i128>(static_cast<std::int64_t>(tsc - counter));
            return ns + static_cast<std::uint64_t>((run * static_cast<time::i128>(mult)) >> 54);
        }
        ClockLine moved_to(std::uint64_t tsc) const { return {tsc, at(tsc), mult}; }
    };
    static std::int64_t wrap(std::uint64_t ns) { return static_cast<std::int64_t>(ns); }
    std::uint64_t utc(std::uint64_t tai) const;
    std::uint64_t told(std::uint64_t tai) const { return tai_offset_sec_ == 0 ? utc(tai) : tai; }
    std::uint64_t tai_here();
    ClockLine true_line(std::int64_t error_ns, std::int64_t rate_ppb);

    WorldClock* clock_ = nullptr;
    const HostSpec* spec_ = nullptr;
    model::KernelRules rules_;
    state::HostIdentity identity_;
    Oscillator oscillator_;
    std::array<std::uint64_t, kVcpusMax> skew_{};
    model::KernelLine raw_line_;
    ClockLine tai_;
    std::int64_t slept_ns_ = 0;
    std::int64_t hpet_base_ns_ = 0;
    std::uint64_t hpet_tai_ns_ = 0;
    TrueTime hpet_since_{};
    std::int64_t tai_rate_ppb_ = 0;
    std::int64_t drift_ppb_ = 0;
    std::uint32_t khz_ = 1;
    std::int32_t tai_offset_sec_ = 37;
    bool tsc_clocksource_ = true;
    bool tsc_unstable_ = false;
};

}  // namespace continuo::sim
