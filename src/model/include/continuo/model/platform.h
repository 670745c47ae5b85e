// What KVM's timekeeping sees beneath it: a counter on each CPU, the kernel's raw clock and
// REALTIME as lines of it, and what the kernel believes of the counter. A host is one
// (HostPlatform); an L1 guest's clocks are another (nesting).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "continuo/model/random.h"
#include "continuo/time/wide.h"

namespace continuo::model {

/// Every method is a reading at the platform's "now"; a platform may let time pass at each of them,
/// which is how the instants inside one system call differ.
class Platform {
  public:
    Platform() = default;
    Platform(const Platform&) = default;
    Platform& operator=(const Platform&) = default;
    virtual ~Platform() = default;

    /// RDTSC on a CPU, now.
    virtual std::uint64_t tsc(unsigned cpu) = 0;
    /// CLOCK_MONOTONIC_RAW and the time slept, ns, at a counter value (do_kvmclock_base()).
    virtual std::int64_t base_ns(std::uint64_t tsc) = 0;
    /// CLOCK_REALTIME, ns since 1970, at a counter value (do_realtime()).
    virtual std::int64_t realtime_ns(std::uint64_t tsc) = 0;
    /// The clocksource is TSC-based (gtod_is_based_on_tsc()). The owner of a change calls
    /// KvmVm::clocksource_changed() of each VM.
    virtual bool tsc_clocksource() = 0;
    /// The kernel's tsc_khz. Domain: not 0.
    virtual std::uint32_t tsc_khz() = 0;
    /// check_tsc_unstable().
    virtual bool tsc_unstable() = 0;

    /// base_ns() now, by whatever the clocksource is (get_kvmclock_base_ns()).
    virtual std::int64_t base_now_ns(unsigned cpu) { return base_ns(tsc(cpu)); }
    /// realtime_ns() now (ktime_get_real_ns()).
    virtual std::int64_t realtime_now_ns(unsigned cpu) { return realtime_ns(tsc(cpu)); }
    /// The counter's rate never changes (X86_FEATURE_CONSTANT_TSC).
    virtual bool constant_tsc() { return true; }
    /// KVM's record of a CPU's kHz (cpu_tsc_khz): of the moment when KVM was loaded or the CPU came
    /// up, where the TSC is constant. 0 while the CPU goes offline.
    virtual std::uint32_t cpu_khz(unsigned /*cpu*/) { return tsc_khz(); }
    /// mark_tsc_unstable(): KVM saw the counter go backwards between two CPUs.
    virtual void mark_tsc_unstable() {}
};

/// A clock of Linux as a line of the counter: ns = ns0 + floor((ticks since * mult + phase) /
/// 2^shift), the arithmetic of timekeeping.c, which carries the fraction over.
struct KernelLine {
    std::uint64_t counter = 0;  ///< cycle_last
    std::int64_t ns = 0;        ///< at it
    std::uint64_t phase = 0;    ///< of 2^shift, below it
    std::uint32_t mult = 1;
    unsigned shift = 0;

    /// Domain: within 2^63 ticks of `counter`.
    std::int64_t at(std::uint64_t tsc) const {
        const auto run = static_cast<time::i128>(static_cast<std::int64_t>(tsc - counter));
        return ns +
               static_cast<std::int64_t>(
                   (run * static_cast<time::i128>(mult) + static_cast<time::i128>(phase)) >> shift);
    }
    /// The same line through another counter value, to the fraction: where a new mult begins.
    KernelLine moved_to(std::uint64_t tsc) const;

    /// mult and shift that Linux chooses for a counter of this frequency
    /// (clocks_calc_mult_shift() with 600 s): within 2^-22 of the true rate. Domain: khz != 0.
    ///
    /// Example: 3 499 912 kHz gives mult 4 793 611, shift 24: fast by 39 ppb of a nanosecond's
    /// rate.
    static KernelLine of_khz(std::uint32_t khz);
};

/// A host of plain integers: a counter that the caller moves, and two lines of it. Domain of a
/// CPU's number: below kCpusMax.
class HostPlatform : public Platform {
  public:
    static constexpr unsigned kCpusMax = 16;

    /// Counter 0 is boot; REALTIME is `boot_realtime_ns` there.
    explicit HostPlatform(std::uint32_t khz,
                          std::int64_t boot_realtime_ns = 1'700'000'000'000'000'000);

    std::uint64_t tsc(unsigned cpu) override { return count() + cpu_skew[cpu]; }
    std::int64_t base_ns(std::uint64_t tsc) override { return raw.at(tsc) + slept_ns; }
    std::int64_t realtime_ns(std::uint64_t tsc) override { return real.at(tsc); }
    bool tsc_clocksource() override { return is_tsc_clocksource; }
    std::uint32_t tsc_khz() override { return khz; }
    bool tsc_unstable() override { return is_tsc_unstable; }
    /// Not by the TSC: by the platform's own counter, which no CPU's skew moves.
    std::int64_t base_now_ns(unsigned cpu) override {
        return base_ns(is_tsc_clocksource ? tsc(cpu) : count());
    }
    std::int64_t realtime_now_ns(unsigned cpu) override {
        return realtime_ns(is_tsc_clocksource ? tsc(cpu) : count());
    }
    bool constant_tsc() override { return is_constant_tsc; }
    std::uint32_t cpu_khz(unsigned cpu) override { return khz_at_load[cpu]; }
    void mark_tsc_unstable() override { is_tsc_unstable = true; }

    /// Each reading takes up to so many ticks, drawn from this generator. It outlives the platform.
    void take_time(Random* random, std::uint32_t ticks_max) {
        random_ = random;
        ticks_max_ = ticks_max;
    }
    /// Lets time pass: whole ticks of so many ns, rounded down.
    void sleep_ns(std::uint64_t ns) {
        counter += static_cast<std::uint64_t>(static_cast<time::u128>(ns) * khz / 1'000'000);
    }

    std::uint64_t counter = 0;  ///< now
    std::array<std::uint64_t, kCpusMax> cpu_skew{};
    std::array<std::uint32_t, kCpusMax> khz_at_load{};
    std::uint32_t khz;
    KernelLine raw;
    KernelLine real;
    std::int64_t slept_ns = 0;  ///< offs_boot: what suspends have added
    bool is_tsc_clocksource = true;
    bool is_tsc_unstable = false;
    bool is_constant_tsc = true;

  private:
    std::uint64_t count() {
        if (ticks_max_ != 0) counter += random_->next() % (std::uint64_t{ticks_max_} + 1);
        return counter;
    }

    Random* random_ = nullptr;
    std::uint32_t ticks_max_ = 0;
};

}  // namespace continuo::model
