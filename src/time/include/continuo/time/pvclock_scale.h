// pvclock's scale: how a guest turns TSC ticks into ns with one 32-bit multiplication, and how KVM
// chooses the factors. Source of both: the pvclock ABI (Documentation/virt/kvm/x86/msr.rst,
// MSR_KVM_SYSTEM_TIME_NEW) and kvm_get_time_scale() in arch/x86/kvm/x86.c. Reading a page out of
// memory is abi/, not here.
#pragma once

#include <cstdint>
#include <optional>

#include "continuo/time/line.h"
#include "continuo/time/point.h"
#include "continuo/time/rate.h"

namespace continuo::time {

/// tsc_to_system_mul and tsc_shift of a pvclock page: ns = ((ticks << shift) * mul) >> 32, a
/// negative shift to the right. Domain: -63 <= shift <= 31, checked by make().
class PvclockScale {
  public:
    static constexpr int kShiftMin = -63;
    static constexpr int kShiftMax = 31;

    /// nullopt where the shift is outside the domain: KVM publishes none such, a page that has one
    /// is damaged.
    static constexpr std::optional<PvclockScale> make(std::uint32_t mul, int shift) {
        if (shift < kShiftMin || shift > kShiftMax) return std::nullopt;
        return PvclockScale{mul, static_cast<std::int8_t>(shift)};
    }

    /// The scale that KVM computes for a counter of this frequency (kvm_get_time_scale with
    /// scaled_hz 10^9). mul is truncated, its top bit always set: the clock is slow by less than
    /// 2^-31 of itself. Above 2 GHz the frequency itself is halved first, dropping bits, which
    /// makes the clock fast by less than 10^-9; no whole kHz below 16 GHz has such bits.
    ///
    /// Example: 1 GHz gives mul 2^31, shift 1: exactly 1 ns a tick.
    static constexpr PvclockScale from_hz(Hz counter) {
        // Bring ticks per second down to 32 bits and at most twice 10^9, then up above 10^9; what
        // moved is the shift. What is left of 10^9 / ticks is the fraction mul / 2^32 < 1,
        // truncated.
        std::uint64_t ticks = counter.hz();
        int shift = 0;
        while (ticks > 2 * kNanosPerSecond) {
            ticks >>= 1;
            --shift;
        }
        while (ticks <= kNanosPerSecond) {
            ticks <<= 1;
            ++shift;
        }
        const auto mul = static_cast<std::uint32_t>((kNanosPerSecond << 32) / ticks);
        return PvclockScale{mul, static_cast<std::int8_t>(shift)};
    }

    constexpr std::uint32_t mul() const { return mul_; }
    constexpr std::int8_t shift() const { return shift_; }

    /// ns of `ticks` (unsigned, as the ABI has it), rounded down twice for a negative shift; bits
    /// shifted out to the left and above 2^64 ns are lost, as in every guest. Source:
    /// pvclock_scale_delta().
    constexpr std::uint64_t wrap_ns(std::uint64_t ticks) const {
        const std::uint64_t shifted = shift_ < 0 ? ticks >> -shift_ : ticks << shift_;
        return static_cast<std::uint64_t>((static_cast<u128>(shifted) * mul_) >> 32);
    }

    /// mul * 2^shift / 2^32 ns a tick, exact; nullopt for shifts below -31 whose denominator is
    /// over 2^63.
    constexpr std::optional<ExactRatio> ratio() const {
        if (shift_ >= 0)
            return ExactRatio::make(static_cast<std::uint64_t>(mul_) << shift_,
                                    std::uint64_t{1} << 32);
        if (shift_ < -31) return std::nullopt;
        return ExactRatio::make(mul_, std::uint64_t{1} << (32 - shift_));
    }

    friend constexpr bool operator==(PvclockScale, PvclockScale) = default;

  private:
    constexpr PvclockScale(std::uint32_t mul, std::int8_t shift) : mul_{mul}, shift_{shift} {}
    std::uint32_t mul_;
    std::int8_t shift_;
};

/// How far a pvclock scale is from ns, relative to the exact rate of the counter. For a scale that
/// from_hz() made of a frequency up to 2 GHz, or of any whole kHz below 16 GHz, in (-2^-31, 0];
/// above that below +10^-9 (see from_hz). nullopt where ratio() is.
constexpr std::optional<RateError> pvclock_rate_error(PvclockScale scale, Hz counter) {
    const auto actual = scale.ratio();
    if (!actual) return std::nullopt;
    return rate_error(*actual, ExactRatio::nanos_per_tick(counter));
}

/// kvmclock as a guest computes it from its page: a line from its own counter, floored stage by
/// stage as the ABI floors it. This, and no idealisation, is what the guest sees.
class PvclockLine {
  public:
    constexpr PvclockLine(Count<GuestCounter> tsc_timestamp, Instant<Kvmclock> system_time,
                          PvclockScale scale)
        : tsc_timestamp_{tsc_timestamp}, system_time_{system_time}, scale_{scale} {}

    constexpr Count<GuestCounter> tsc_timestamp() const { return tsc_timestamp_; }
    constexpr Instant<Kvmclock> system_time() const { return system_time_; }
    constexpr PvclockScale scale() const { return scale_; }

    /// The instant at a guest counter value. At or after tsc_timestamp (less than 2^63 ticks) it is
    /// the ABI's formula to the bit. Before it, where the ABI's unsigned difference wraps and a
    /// guest would read nonsense, the line is continued downwards, rounded to minus infinity at
    /// each of the ABI's two stages, with no bits lost to a left shift; modulo 2^64 ns.
    ///
    /// Example: mul 2^31, shift 1 (1 GHz), 1000 ns at tick 50: at tick 53 it is 1003 ns, at tick 47
    /// it is 997 ns.
    constexpr Instant<Kvmclock> at(Count<GuestCounter> tsc) const {
        const Ticks<GuestCounter> run = tsc - tsc_timestamp_;
        if (run.raw() >= 0)
            return Instant<Kvmclock>::from_raw(
                system_time_.raw() + scale_.wrap_ns(static_cast<std::uint64_t>(run.raw())));
        return Instant<Kvmclock>::from_raw(system_time_.raw() - ceil_ns(run.magnitude()));
    }

    /// This line less another of the same scale, wherever both are looked at: exact in the lines,
    /// and rounded to the nearest ns (halves away from zero), where two readings would each have
    /// been floored. nullopt: the scales differ, and so does the answer with the place. Modulo 2^64
    /// ns. Domain: timestamps less than 2^63 ticks apart.
    ///
    /// Example: mul 2^31, shift 0 (2 GHz), 1000 ns at tick 50 less 1000 ns at tick 47: 3 ticks are
    /// 1.5 ns, so -2 ns.
    constexpr std::optional<Nanos<Kvmclock>> minus(const PvclockLine& other) const {
        if (!(scale_ == other.scale_)) return std::nullopt;
        const Ticks<GuestCounter> run = tsc_timestamp_ - other.tsc_timestamp_;
        const std::uint64_t between = nearest_ns(run.magnitude());
        const std::uint64_t ran = run.raw() < 0 ? 0 - between : between;
        return Nanos<Kvmclock>::from_raw(
            static_cast<std::int64_t>(system_time_.raw() - other.system_time_.raw() - ran));
    }

    /// The same line with another instant at tsc_timestamp.
    constexpr PvclockLine shifted(Nanos<Kvmclock> d) const {
        return PvclockLine{tsc_timestamp_, system_time_ + d, scale_};
    }

  private:
    constexpr std::uint64_t ceil_ns(std::uint64_t ticks) const {
        const int right = shift_right();
        const std::uint64_t lost_mask = right > 0 ? (std::uint64_t{1} << right) - 1 : 0;
        // At most 2^63 ticks << 31, and times 2^32 that is 2^126.
        const u128 shifted = right > 0 ? (ticks >> right) + ((ticks & lost_mask) != 0 ? 1 : 0)
                                       : static_cast<u128>(ticks) << scale_.shift();
        const u128 product = shifted * scale_.mul();
        const bool inexact = (product & 0xffff'ffffU) != 0;
        return static_cast<std::uint64_t>(product >> 32) + (inexact ? 1 : 0);
    }
    constexpr std::uint64_t nearest_ns(std::uint64_t ticks) const {
        const int left = scale_.shift() > 0 ? scale_.shift() : 0;
        const int bits = 32 + shift_right();  // at most 95
        // At most 2^63 ticks << 31, and times 2^32 that is 2^126.
        const u128 product = (static_cast<u128>(ticks) << left) * scale_.mul();
        return static_cast<std::uint64_t>((product + (u128{1} << (bits - 1))) >> bits);
    }
    constexpr int shift_right() const { return scale_.shift() < 0 ? -scale_.shift() : 0; }

    Count<GuestCounter> tsc_timestamp_;
    Instant<Kvmclock> system_time_;
    PvclockScale scale_;
};

}  // namespace continuo::time
