// The guest's TSC as the processor makes it: guest = ((host * ratio) >> frac) + offset. Sources:
// Intel SDM 3C 26.5.3 (VMX, 48 fractional bits), AMD APM 2 15.30.5 (SVM, 32), kvm_scale_tsc() and
// set_tsc_khz() in arch/x86/kvm/x86.c.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "continuo/time/line.h"
#include "continuo/time/point.h"
#include "continuo/time/rate.h"
#include "continuo/time/wide.h"

namespace continuo::time {

/// Fractional bits of a TSC multiplier: 48 on VMX, 32 on SVM.
inline constexpr int kVmxFracBits = 48;
inline constexpr int kSvmFracBits = 32;

/// A TSC multiplier of FracBits fractional bits.
template <int FracBits>
requires(FracBits == kVmxFracBits || FracBits == kSvmFracBits) class TscScale {
  public:
    /// Largest ratio the hardware takes: 8.32 on SVM (SVM_TSC_RATIO_MAX), 16.48 on VMX.
    static constexpr std::uint64_t kRatioMax =
        FracBits == kSvmFracBits ? 0xff'ffff'ffffU : 0xffff'ffff'ffff'ffffU;

    constexpr TscScale() = default;  ///< the identity, 1.0
    static constexpr std::optional<TscScale> from_ratio(std::uint64_t ratio) {
        if (ratio == 0 || ratio > kRatioMax) return std::nullopt;
        return TscScale{ratio};
    }
    /// floor(2^FracBits * guest / host), as set_tsc_khz() computes it once KVM scales at all.
    /// nullopt where KVM refuses: a zero frequency, a zero ratio, or one at or over kRatioMax.
    ///
    /// Example: a 1 500 000 kHz guest on a 3 000 000 kHz host, 32 bits: 0x80000000.
    static constexpr std::optional<TscScale> from_khz(std::uint32_t guest_khz,
                                                      std::uint32_t host_khz) {
        if (host_khz == 0) return std::nullopt;
        const u128 ratio = (static_cast<u128>(guest_khz) << FracBits) / host_khz;
        if (ratio == 0 || ratio >= kRatioMax) return std::nullopt;
        return TscScale{static_cast<std::uint64_t>(ratio)};
    }

    constexpr std::uint64_t ratio() const { return ratio_; }
    static constexpr int frac_bits() { return FracBits; }
    /// (host * ratio) >> FracBits, truncated to 64 bits like the hardware's.
    constexpr std::uint64_t wrap_scale(std::uint64_t host) const {
        return static_cast<std::uint64_t>((static_cast<u128>(host) * ratio_) >> FracBits);
    }
    friend constexpr bool operator==(TscScale, TscScale) = default;

  private:
    explicit constexpr TscScale(std::uint64_t ratio) : ratio_{ratio} {}
    std::uint64_t ratio_ = std::uint64_t{1} << FracBits;
};

using VmxTscScale = TscScale<kVmxFracBits>;
using SvmTscScale = TscScale<kSvmFracBits>;

/// The map from a host's counter to a guest's: a multiplier (none where the host does not scale)
/// and an offset. Also arm64's CNTVCT = CNTPCT - voffset, with offset = -voffset and no multiplier.
class TscMap {
  public:
    /// frac_bits 0 stands for no multiplier.
    constexpr explicit TscMap(std::uint64_t offset) : offset_{offset} {}
    template <int FracBits>
    constexpr TscMap(TscScale<FracBits> scale, std::uint64_t offset)
        : ratio_{scale.ratio()}, frac_bits_{FracBits}, offset_{offset} {}

    /// Added after scaling, modulo 2^64: the value of KVM_VCPU_TSC_OFFSET.
    constexpr std::uint64_t offset() const { return offset_; }
    constexpr bool scales() const { return frac_bits_ != 0; }
    constexpr std::uint64_t ratio() const { return ratio_; }
    constexpr int frac_bits() const { return frac_bits_; }

    /// The guest's counter at a host counter value, to the bit.
    constexpr Count<GuestCounter> at(Count<HostCounter> host) const {
        return Count<GuestCounter>::from_raw(wrap_scale(host.raw()) + offset_);
    }
    /// The same multiplier with another offset.
    constexpr TscMap with_offset(std::uint64_t offset) const {
        TscMap map = *this;
        map.offset_ = offset;
        return map;
    }
    /// The same multiplier with the offset that makes the guest read `guest` at `host`; exact
    /// there.
    constexpr TscMap through(Count<HostCounter> host, Count<GuestCounter> guest) const {
        TscMap map = *this;
        map.offset_ = guest.raw() - wrap_scale(host.raw());
        return map;
    }
    /// (host * ratio) >> frac_bits, without the offset, modulo 2^64. Of the host's kHz it is the
    /// "effective" kHz that KVM computes a scaled guest's pvclock scale from
    /// (kvm_guest_time_update).
    constexpr std::uint64_t wrap_scale(std::uint64_t host) const {
        return static_cast<std::uint64_t>((static_cast<u128>(host) * ratio_) >> frac_bits_);
    }
    /// Guest ticks in a length of host ticks, rounded up; saturating.
    constexpr std::uint64_t ceil_ticks(std::uint64_t host) const {
        constexpr u128 max = std::numeric_limits<std::uint64_t>::max();
        const u128 product = static_cast<u128>(host) * ratio_;
        const bool inexact = (product & ((u128{1} << frac_bits_) - 1)) != 0;
        const u128 ticks = (product >> frac_bits_) + (inexact ? 1 : 0);
        return static_cast<std::uint64_t>(ticks > max ? max : ticks);
    }
    /// Guest ticks for each host tick.
    constexpr ExactRatio slope() const {
        return *ExactRatio::make(ratio_, std::uint64_t{1} << frac_bits_);
    }
    /// This map as a Line anchored at `host`: equal to at() for every counter value within 2^63
    /// that does not cross the wrap of the host's counter.
    constexpr Line<HostCounter, GuestCounter> line_near(Count<HostCounter> host) const {
        const u128 product = static_cast<u128>(host.raw()) * ratio_;
        const ExactRatio reduced = slope();
        const std::uint64_t factor = (std::uint64_t{1} << frac_bits_) / reduced.den();
        const auto fraction =
            static_cast<std::uint64_t>(product) & ((std::uint64_t{1} << frac_bits_) - 1);
        return *Line<HostCounter, GuestCounter>::with_phase(host, at(host), reduced,
                                                            fraction / factor);
    }

    friend constexpr bool operator==(const TscMap&, const TscMap&) = default;

  private:
    std::uint64_t ratio_ = 1;
    int frac_bits_ = 0;
    std::uint64_t offset_ = 0;
};

/// KVM scales only outside this distance from the host's frequency (kvm_set_tsc_khz, module
/// parameter tsc_tolerance_ppm's default).
inline constexpr std::uint64_t kTscTolerancePpm = 250;

/// Whether KVM runs a guest of this frequency unscaled: guest within [floor(host * (1 - 250e-6)),
/// floor(host * (1 + 250e-6))] kHz, as adjust_tsc_khz() rounds.
constexpr bool within_tsc_tolerance(std::uint32_t guest_khz, std::uint32_t host_khz) {
    const u128 host = host_khz;
    const u128 lo = host * (1'000'000 - kTscTolerancePpm) / 1'000'000;
    const u128 hi = host * (1'000'000 + kTscTolerancePpm) / 1'000'000;
    return lo <= guest_khz && guest_khz <= hi;
}

/// The map, with offset 0, that KVM gives a guest of this frequency: no multiplier within its
/// tolerance. frac_bits: 48 (VMX), 32 (SVM), or none where the host does not scale. nullopt where
/// KVM refuses the frequency, or would only catch up with it in software.
constexpr std::optional<TscMap> kvm_tsc_map(std::uint32_t guest_khz, std::uint32_t host_khz,
                                            std::optional<int> frac_bits) {
    if (within_tsc_tolerance(guest_khz, host_khz)) return TscMap{0};
    const auto with = [](const auto& scale) {
        return scale ? std::optional{TscMap{*scale, 0}} : std::nullopt;
    };
    if (frac_bits == kVmxFracBits) return with(VmxTscScale::from_khz(guest_khz, host_khz));
    if (frac_bits == kSvmFracBits) return with(SvmTscScale::from_khz(guest_khz, host_khz));
    return std::nullopt;
}

}  // namespace continuo::time
