// A guest whose clocks and events are known exactly, for tests: passes as a real one would give
// them, with readings that take as long as they like, and what is true beside them. Deterministic
// by its seed.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "continuo/guest/watch/analyst.h"
#include "continuo/time/rate.h"
#include "continuo/time/wide.h"

namespace continuo::guest::watch {

class SimulatedGuest {
  public:
    SimulatedGuest(std::uint64_t seed, std::uint32_t cpus) : random_{seed}, counters_(cpus) {
        ticks_per_us_ = between(1000, 5000);
        now_ = between(0, 1'000'000'000);
        for (std::int64_t& offset : counters_)
            offset = between(-500, 500) + (std::int64_t{1} << 40);
        for (std::int64_t& offset : clocks_)
            offset = between(0, 2'000'000'000'000'000'000);
        clocks_[index(Clock::kRealtime)] =
            clocks_[index(Clock::kMonotonic)] + between(0, 1LL << 59);
        publish();
    }

    std::int64_t between(std::int64_t least, std::int64_t most) {
        return std::uniform_int_distribution<std::int64_t>{least, most}(random_);
    }
    std::uint32_t cpus() const { return static_cast<std::uint32_t>(counters_.size()); }

    // -- what can happen --
    void sleep_ns(std::int64_t ns) { now_ += ticks(ns); }
    /// The host stops the guest, and lets its counters and its kernel's clocks miss so much of it.
    void stop(std::int64_t gap_ns, std::int64_t counter_misses_ticks, std::int64_t clocks_miss_ns) {
        now_ += ticks(gap_ns);
        for (std::int64_t& offset : counters_)
            offset -= counter_misses_ticks;
        for (std::int64_t& offset : clocks_)
            offset -= clocks_miss_ns;
        ++marker_;
        ++notices_;
        publish();
    }
    void step(Clock clock, std::int64_t ns) { clocks_[index(clock)] += ns; }
    void move_counter(std::uint32_t cpu, std::int64_t ticks) { counters_[cpu] += ticks; }
    /// MONOTONIC and what hangs on it go faster by so much from now on, without a step.
    void steer(std::int64_t ppb) {
        const std::int64_t before = steered();
        steer_from_ = now_;
        steered_before_ = before;
        steer_ppb_ = ppb;
    }
    bool with_vmclock = false;
    bool with_notice = false;

    // -- what is seen --
    Pass pass(std::uint32_t cpu) {
        Pass out;
        out.cpu = cpu;
        if (with_vmclock) out.vmclock = page_;
        if (with_notice) out.notices = notices_;
        look_at_others(out);
        out.woke = counter(cpu);
        out.begin = out.woke;
        for (std::size_t i = 0; i < kClocks; ++i) {
            Bracket& bracket = out.clocks[i];
            bracket.before = counter(cpu);
            take_time();
            bracket.at = clock(static_cast<Clock>(i));
            take_time();
            bracket.after = counter(cpu);
            note(cpu, static_cast<Clock>(i), bracket);
        }
        out.end = counter(cpu);
        note_end(cpu, out.end);
        return out;
    }
    Exchange exchange(std::uint32_t cpu) {
        Exchange out;
        out.cpu = cpu;
        out.sent = counter(0);
        take_time();
        out.heard = counter(cpu);
        take_time();
        out.back = counter(0);
        return out;
    }
    /// A round of passes on all CPUs, each period, for so long.
    void run(Analyst& analyst, std::int64_t length_ns, std::int64_t period_ns = 5'000'000) {
        for (std::int64_t ran = 0; ran < length_ns; ran += period_ns) {
            for (std::uint32_t cpu = 0; cpu < cpus(); ++cpu) {
                sleep_ns(between(0, 20'000));
                analyst.take(pass(cpu));
            }
            for (std::uint32_t cpu = 1; cpu < cpus(); ++cpu)
                analyst.take(exchange(cpu));
            sleep_ns(period_ns - 20'000 * cpus());
        }
    }

    // -- what is true --
    Ticks skew(std::uint32_t cpu) const { return Ticks::from_raw(counters_[cpu] - counters_[0]); }
    std::int64_t ns(std::int64_t ticks) const { return ticks * 1000 / ticks_per_us_; }
    std::int64_t ticks(std::int64_t ns) const {
        return static_cast<std::int64_t>(static_cast<time::i128>(ns) * ticks_per_us_ / 1000);
    }

  private:
    static std::size_t index(Clock clock) { return static_cast<std::size_t>(clock); }
    /// Mostly short, sometimes long: somebody else had the CPU.
    void take_time() { now_ += between(0, 999) == 0 ? between(1, 2'000'000) : between(20, 80); }
    std::int64_t steered() const {
        return steered_before_ +
               static_cast<std::int64_t>(static_cast<time::i128>(now_ - steer_from_) * steer_ppb_ /
                                         1'000'000 / ticks_per_us_);
    }
    Instant clock(Clock which) const {
        const std::int64_t steer = which == Clock::kMonotonicRaw ? 0 : steered();
        return Instant::from_raw(
            static_cast<std::uint64_t>(ns(now_) + steer + clocks_[index(which)]));
    }
    Count counter(std::uint32_t cpu) const {
        return Count::from_raw(static_cast<std::uint64_t>(now_ + counters_[cpu]));
    }
    /// A mapping of the first CPU's counter to the true time, which the host has not changed but
    /// for the counter's own jumps.
    void publish() {
        page_ = {};
        page_.magic = CONTINUO_VMCLOCK_MAGIC;
        page_.size = sizeof(continuo_vmclock_page);
        page_.version = 1;
        page_.counter_id = CONTINUO_COUNTER_ID;
        page_.time_type = CONTINUO_VMCLOCK_TAI;
        page_.disruption_marker = marker_;
        page_.shift = 20;
        page_.period = static_cast<std::uint64_t>((static_cast<time::u128>(1) << 84) / 1'000'000U /
                                                  static_cast<std::uint64_t>(ticks_per_us_));
        page_.counter_value = counter(0).raw();
        // The true time in ns is whole + rest / ticks_per_us_; the page has it to 2^-64 s.
        const auto tpu = static_cast<std::uint64_t>(ticks_per_us_);
        const std::uint64_t scaled = static_cast<std::uint64_t>(now_) * 1000;
        const std::uint64_t whole = scaled / tpu + 1'800'000'000'000'000'000U;
        page_.seconds = whole / 1'000'000'000U;
        page_.fraction = static_cast<std::uint64_t>(
            (static_cast<time::u128>(whole % 1'000'000'000U * tpu + scaled % tpu) << 64) /
            (1'000'000'000U * tpu));
    }

    struct Done {
        std::uint32_t cpu = 0;
        std::array<Bracket, kClocks> clocks{};
        Count end;
    };
    void look_at_others(Pass& pass) const {
        for (const Done& done : done_) {
            if (done.cpu == pass.cpu) continue;
            for (std::size_t i = 0; i < kClocks; ++i)
                pass.seen[i] = Seen{done.cpu, done.clocks[i].at, done.clocks[i].after};
            pass.counter_seen = Seen{done.cpu, {}, done.end};
        }
    }
    void note(std::uint32_t cpu, Clock which, const Bracket& bracket) {
        if (done_.size() <= cpu) done_.resize(cpu + 1);
        done_[cpu].cpu = cpu;
        done_[cpu].clocks[index(which)] = bracket;
    }
    void note_end(std::uint32_t cpu, Count end) { done_[cpu].end = end; }

    std::mt19937_64 random_;
    std::int64_t ticks_per_us_ = 1000;
    std::int64_t now_ = 0;  ///< the true time, in ticks
    std::vector<std::int64_t> counters_;
    std::array<std::int64_t, kClocks> clocks_{};
    std::int64_t steer_from_ = 0, steer_ppb_ = 0, steered_before_ = 0;
    std::uint64_t marker_ = 7;
    continuo_vmclock_words page_{};
    std::uint64_t notices_ = 0;
    std::vector<Done> done_;
};

}  // namespace continuo::guest::watch
