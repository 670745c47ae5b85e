// The host's half of the vmclock page (vmclock.h): which mapping from the guest's counter to TAI it
// publishes as readings of the host's clocks come in, and what it says when they contradict what it
// has said before. Pure: readings come in as values, the page goes out as one. Rules, with reasons:
// docs/formats/vmclock.md.
//
// The one rule: a mapping is an interval that grows at a stated rate, and the true time lies in it.
// A reading of the host's clock is another one. As long as both can be true, the next mapping lies
// in what they have in common, and so inside the bound of the one before. Where they cannot, the
// host's clock was set, or one of its bounds was wrong: the page is unreliable until a second
// reading bears out the new time, and then begins anew.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "continuo/abi/vmclock.h"
#include "continuo/time/point.h"
#include "continuo/time/rate.h"
#include "continuo/time/wide.h"

namespace continuo::abi {

/// The guest counter's period, and how far the true one may be from it: both in 2^-(64 + shift) s.
struct VmclockRate {
    std::uint64_t period;
    std::uint64_t maxerror;
    std::uint8_t shift;
    friend bool operator==(const VmclockRate&, const VmclockRate&) = default;

    /// Of a counter of `frequency` by the host's own count of seconds, which a second is longer
    /// than by `correction_ppb` (adjtimex's freq and tick); the true frequency is within
    /// `bound_ppb` of `frequency`, and within a kHz of it, because KVM cuts those off. Domain:
    /// |correction| and bound below 10^9; frequency at least 2 Hz.
    static constexpr VmclockRate make(time::Hz frequency, std::int64_t correction_ppb,
                                      std::uint64_t bound_ppb) {
        using time::i128;
        using time::u128;
        const auto bits = static_cast<int>(std::bit_width(frequency.hz()));
        const auto shift = static_cast<std::uint8_t>(bits - 2);
        // 2^(64 + shift) / hz lies in (2^62, 2^63]: room for the correction.
        const auto nominal = static_cast<i128>((u128{1} << (64 + shift)) / frequency.hz());
        const i128 period = nominal + nominal * correction_ppb / 1'000'000'000;
        const std::uint64_t correction = correction_ppb < 0
                                             ? static_cast<std::uint64_t>(-correction_ppb)
                                             : static_cast<std::uint64_t>(correction_ppb);
        const u128 cut_off_ppb = u128{1'000'000'000'000} / frequency.hz() + 1;
        const u128 off = static_cast<u128>(nominal) * (u128{bound_ppb} + correction + cut_off_ppb);
        const u128 maxerror = off / 1'000'000'000 + 2;
        constexpr u128 kMax = std::numeric_limits<std::uint64_t>::max();
        return {static_cast<std::uint64_t>(period),
                static_cast<std::uint64_t>(maxerror > kMax ? kMax : maxerror), shift};
    }
};

/// The host's clock, read at one value of the guest's counter.
struct VmclockSample {
    time::Count<time::GuestCounter> counter;
    std::uint64_t time_ns;        ///< since 1970: TAI, or UTC where the host does not know TAI
    std::uint64_t bound_ns;       ///< the true time is within this of it; below 2^62
    std::int16_t tai_offset_sec;  ///< TAI - UTC; 0: not known, and time_ns is UTC
    bool synchronised;            ///< the host's kernel says that NTP keeps it
    VmclockRate rate;
};

/// What a VM's device state carries of its vmclock.
struct VmclockState {
    std::uint64_t disruption_marker = 0;
    std::uint64_t generation = 0;  ///< vm_generation_counter
    std::uint32_t sequence = 0;    ///< seq_count as last published; even
    friend bool operator==(const VmclockState&, const VmclockState&) = default;
};

/// For the VM's statistics.
struct VmclockCounts {
    std::uint64_t refits = 0;  ///< mappings inside the bound of the one before
    std::uint64_t doubts = 0;  ///< readings that contradicted the page
    std::uint64_t steps = 0;   ///< of them, those that were borne out: the page began anew
    friend bool operator==(const VmclockCounts&, const VmclockCounts&) = default;
};

class VmclockHost {
  public:
    enum class Change : std::uint8_t {
        kNone,      ///< the page stands
        kRefit,     ///< a mapping inside the bound of the one before, or the first
        kDoubted,   ///< the host's clock contradicts the page, which is unreliable now
        kBelieved,  ///< it agrees with the page again
        kStepped,   ///< the page began anew
    };

    /// Nothing is known of the time yet. `counter_id`: kVMCLOCK_COUNTER_*, of the samples' counter.
    constexpr VmclockHost(const VmclockState& state, std::uint8_t counter_id)
        : state_{state}, counter_id_{counter_id} {}

    /// The guest comes to run after its counter was disturbed: what was published means nothing any
    /// more. Without a sample nobody knows the time.
    constexpr void disrupt(const std::optional<VmclockSample>& sample) {
        ++state_.disruption_marker;
        begin(sample);
    }
    /// The same for a guest that was made of a snapshot: it has a generation of its own.
    constexpr void restore(const std::optional<VmclockSample>& sample, std::uint64_t generation) {
        state_.generation = generation;
        disrupt(sample);
    }
    /// A guest that starts.
    constexpr void begin(const std::optional<VmclockSample>& sample) {
        doubt_.reset();
        mapping_.reset();
        if (sample) mapping_ = Mapping{*sample, time_of(*sample)};
        publish();
    }

    /// A further reading, of a counter that was not disturbed since the last one. Nothing where no
    /// time was published to begin with.
    constexpr Change offer(const VmclockSample& sample) {
        if (!mapping_) return Change::kNone;
        if (doubt_) return settle(sample);
        if (!agree(*mapping_, sample)) {
            step_ns_ = step_of(sample);
            doubt_ = Mapping{sample, time_of(sample)};
            ++counts_.doubts;
            publish();
            return Change::kDoubted;
        }
        const std::optional<Mapping> next = refit(sample);
        if (!next) return Change::kNone;
        mapping_ = next;
        ++counts_.refits;
        publish();
        return Change::kRefit;
    }

    /// What is to stand in the page; seq_count is even.
    constexpr vmclock_abi page() const {
        vmclock_abi page{};
        page.magic = kVMCLOCK_MAGIC;
        page.size = kVmclockPageSize;
        page.version = kVmclockVersion;
        page.counter_id = kVMCLOCK_COUNTER_INVALID;
        page.time_type = kVMCLOCK_TIME_TAI;
        page.seq_count = state_.sequence;
        page.disruption_marker = state_.disruption_marker;
        page.flags = kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT | kVMCLOCK_FLAG_NOTIFICATION_PRESENT;
        page.vm_generation_counter = state_.generation;
        if (mapping_) put_time(page);
        return page;
    }

    constexpr const VmclockState& state() const { return state_; }
    constexpr const VmclockCounts& counts() const { return counts_; }
    /// How far the reading that was last doubted stood from the page; saturates.
    constexpr std::int64_t step_ns() const { return step_ns_; }

  private:
    using i128 = time::i128;
    using u128 = time::u128;

    /// A published line: the sample that it was made of, and the time at its counter in 2^-64 s.
    struct Mapping {
        VmclockSample sample;
        u128 time;
    };

    /// A mapping is made anew for no less than this share of the bound (a quarter narrower, or a
    /// sixteenth of it aside), or once it is this old: each one notifies the guest.
    static constexpr std::uint64_t kOldNs = 64'000'000'000;
    /// What a reader's roundings add, and more.
    static constexpr std::uint64_t kReaderNs = 4;

    static constexpr u128 floor_frac(std::uint64_t ns) {
        return (u128{ns} << 64) / time::kNanosPerSecond;
    }
    static constexpr i128 ceil_frac(std::uint64_t ns) {
        return static_cast<i128>(floor_frac(ns)) + 1;
    }
    static constexpr std::uint64_t ceil_ns(u128 frac) {
        const u128 low = u128{static_cast<std::uint64_t>(frac)} * time::kNanosPerSecond;
        return static_cast<std::uint64_t>(frac >> 64) * time::kNanosPerSecond +
               static_cast<std::uint64_t>(low >> 64) + 1;
    }
    static constexpr u128 time_of(const VmclockSample& sample) {
        return floor_frac(sample.time_ns);
    }
    static constexpr u128 scaled(std::uint64_t ticks, std::uint64_t rate, std::uint8_t shift) {
        return (u128{ticks} * rate) >> shift;
    }
    static constexpr time::Ticks<time::GuestCounter> run(const Mapping& from,
                                                         const VmclockSample& to) {
        return to.counter - from.sample.counter;
    }

    /// How far the sample stands from the line, in 2^-64 s.
    static constexpr i128 apart(const Mapping& line, const VmclockSample& sample) {
        const auto ticks = run(line, sample);
        const auto span = static_cast<i128>(
            scaled(ticks.magnitude(), line.sample.rate.period, line.sample.rate.shift));
        const i128 at = static_cast<i128>(line.time) + (ticks.raw() < 0 ? -span : span);
        return static_cast<i128>(time_of(sample)) - at;
    }
    /// The line's own bound there, rounded down.
    static constexpr i128 radius(const Mapping& line, const VmclockSample& sample) {
        const u128 drift = scaled(run(line, sample).magnitude(), line.sample.rate.maxerror,
                                  line.sample.rate.shift);
        return static_cast<i128>(floor_frac(line.sample.bound_ns) + drift);
    }
    static constexpr i128 magnitude(i128 value) { return value < 0 ? -value : value; }

    /// Whether one true time can lie in both intervals, and both speak of the same seconds.
    static constexpr bool agree(const Mapping& line, const VmclockSample& sample) {
        return line.sample.tai_offset_sec == sample.tai_offset_sec &&
               magnitude(apart(line, sample)) <= radius(line, sample) + ceil_frac(sample.bound_ns);
    }

    /// The mapping that the line and the sample make together, inside the line's bound as readers
    /// compute it; nullopt where that is not worth telling.
    constexpr std::optional<Mapping> refit(const VmclockSample& sample) const {
        const i128 bound = radius(*mapping_, sample);
        const i128 aside = apart(*mapping_, sample);
        const i128 own = ceil_frac(sample.bound_ns);
        const i128 low = -bound > aside - own ? -bound : aside - own;
        const i128 high = bound < aside + own ? bound : aside + own;
        // The sample's own time where all of it is inside, else the middle of what is common.
        const bool inside = low == aside - own && high == aside + own;
        const i128 middle = inside ? aside : (low + high) / 2;
        VmclockSample next = sample;
        next.bound_ns = inside ? sample.bound_ns : ceil_ns(static_cast<u128>((high - low) / 2 + 1));
        const i128 reach = ceil_frac(next.bound_ns) + ceil_frac(kReaderNs);
        if (middle + reach > bound || middle - reach < -bound) return restated(sample);
        const bool narrower = reach * 4 <= bound * 3;
        const bool moved = magnitude(middle) * 16 >= bound;
        if (!narrower && !moved && !old(sample)) return restated(sample);
        const i128 line = static_cast<i128>(time_of(sample)) - aside;
        return Mapping{next, static_cast<u128>(line + middle)};
    }
    /// The same line, where what it says of itself has changed.
    constexpr std::optional<Mapping> restated(const VmclockSample& sample) const {
        if (sample.synchronised == mapping_->sample.synchronised) return std::nullopt;
        Mapping same = *mapping_;
        same.sample.synchronised = sample.synchronised;
        return same;
    }
    constexpr bool old(const VmclockSample& sample) const {
        const auto ticks = run(*mapping_, sample);
        const VmclockRate& rate = mapping_->sample.rate;
        return scaled(ticks.magnitude(), rate.period, rate.shift) >= floor_frac(kOldNs);
    }

    /// While the page is unreliable: a second reading decides.
    constexpr Change settle(const VmclockSample& sample) {
        if (agree(*doubt_, sample)) {
            begin(sample);
            ++counts_.steps;
            return Change::kStepped;
        }
        if (agree(*mapping_, sample)) {
            doubt_.reset();
            publish();
            return Change::kBelieved;
        }
        doubt_ = Mapping{sample, time_of(sample)};
        return Change::kNone;
    }

    constexpr std::int64_t step_of(const VmclockSample& sample) const {
        const i128 frac = apart(*mapping_, sample);
        const i128 seconds = frac >> 64;
        constexpr i128 kSecondsMax = 9'000'000'000;
        if (seconds > kSecondsMax) return std::numeric_limits<std::int64_t>::max();
        if (seconds < -kSecondsMax) return std::numeric_limits<std::int64_t>::min();
        const u128 low = u128{static_cast<std::uint64_t>(frac)} * time::kNanosPerSecond;
        return static_cast<std::int64_t>(seconds) *
                   static_cast<std::int64_t>(time::kNanosPerSecond) +
               static_cast<std::int64_t>(low >> 64);
    }

    constexpr void put_time(vmclock_abi& page) const {
        const VmclockSample& sample = mapping_->sample;
        page.counter_id = counter_id_;
        page.flags |= kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID | kVMCLOCK_FLAG_TIME_MAXERROR_VALID;
        if (sample.tai_offset_sec != 0)
            page.flags |= kVMCLOCK_FLAG_TAI_OFFSET_VALID;
        else
            page.time_type = kVMCLOCK_TIME_UTC;
        page.tai_offset_sec = sample.tai_offset_sec;
        page.clock_status = doubt_                ? kVMCLOCK_STATUS_UNRELIABLE
                            : sample.synchronised ? kVMCLOCK_STATUS_SYNCHRONIZED
                                                  : kVMCLOCK_STATUS_FREERUNNING;
        page.counter_period_shift = sample.rate.shift;
        page.counter_value = sample.counter.raw();
        page.counter_period_frac_sec = sample.rate.period;
        page.counter_period_maxerror_rate_frac_sec = sample.rate.maxerror;
        page.time_sec = static_cast<std::uint64_t>(mapping_->time >> 64);
        page.time_frac_sec = static_cast<std::uint64_t>(mapping_->time);
        page.time_maxerror_nanosec = sample.bound_ns;
    }
    constexpr void publish() { state_.sequence += 2; }

    VmclockState state_;
    std::uint8_t counter_id_;
    std::optional<Mapping> mapping_;
    std::optional<Mapping> doubt_;  ///< what the host's clock says that the page does not
    std::int64_t step_ns_ = 0;
    VmclockCounts counts_;
};

}  // namespace continuo::abi
