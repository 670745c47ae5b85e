// Rates: frequencies in Hz and exact ratios of two of them. A ratio is a reduced fraction of 64-bit
// integers, so a frequency in Hz or kHz, KVM's TSC multipliers and pvclock's mul and shift are all
// ratios without loss.
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>

#include "continuo/time/wide.h"

namespace continuo::time {

inline constexpr std::uint64_t kNanosPerSecond = 1'000'000'000;

/// A frequency, exact, never zero.
class Hz {
  public:
    /// nullopt for zero: a clock that stands still has no frequency.
    static constexpr std::optional<Hz> from_hz(std::uint64_t hz) {
        if (hz == 0) return std::nullopt;
        return Hz{hz};
    }
    /// nullopt for zero and above 2^64/1000 kHz.
    static constexpr std::optional<Hz> from_khz(std::uint64_t khz) {
        if (khz > std::numeric_limits<std::uint64_t>::max() / 1000) return std::nullopt;
        return from_hz(khz * 1000);
    }
    constexpr std::uint64_t hz() const { return hz_; }
    /// Whole kHz, rounded down: the unit of KVM_SET_TSC_KHZ. The caller accounts for up to 999 Hz
    /// lost.
    constexpr std::uint64_t floor_khz() const { return hz_ / 1000; }
    friend constexpr bool operator==(Hz, Hz) = default;

  private:
    explicit constexpr Hz(std::uint64_t hz) : hz_{hz} {}
    std::uint64_t hz_;
};

/// A non-negative rational num/den in lowest terms; units of the range axis for each unit of the
/// domain axis.
class ExactRatio {
  public:
    /// The identity, 1/1.
    constexpr ExactRatio() = default;
    /// num/den reduced; nullopt where den is 0.
    static constexpr std::optional<ExactRatio> make(std::uint64_t num, std::uint64_t den) {
        if (den == 0) return std::nullopt;
        const std::uint64_t g = std::gcd(num, den);
        return ExactRatio{num / g, den / g};
    }
    /// ns for each tick of a counter of this frequency.
    static constexpr ExactRatio nanos_per_tick(Hz hz) { return *make(kNanosPerSecond, hz.hz()); }
    /// Ticks of a counter of this frequency for each ns.
    static constexpr ExactRatio ticks_per_nano(Hz hz) { return *make(hz.hz(), kNanosPerSecond); }
    /// Ticks of `to` for each tick of `from`.
    static constexpr ExactRatio between(Hz from, Hz to) { return *make(to.hz(), from.hz()); }

    constexpr std::uint64_t num() const { return num_; }
    constexpr std::uint64_t den() const { return den_; }
    /// den/num; nullopt for zero.
    constexpr std::optional<ExactRatio> inverse() const { return make(den_, num_); }
    friend constexpr bool operator==(ExactRatio, ExactRatio) = default;

  private:
    constexpr ExactRatio(std::uint64_t num, std::uint64_t den) : num_{num}, den_{den} {}
    std::uint64_t num_ = 1;
    std::uint64_t den_ = 1;
};

/// a*b; nullopt where the reduced product does not fit 64 bits over 64 bits.
constexpr std::optional<ExactRatio> product(ExactRatio a, ExactRatio b) {
    const std::uint64_t g1 = std::gcd(a.num(), b.den());
    const std::uint64_t g2 = std::gcd(b.num(), a.den());
    const u128 num = static_cast<u128>(a.num() / g1) * (b.num() / g2);
    const u128 den = static_cast<u128>(a.den() / g2) * (b.den() / g1);
    constexpr u128 max = std::numeric_limits<std::uint64_t>::max();
    if (num > max || den > max) return std::nullopt;
    return ExactRatio::make(static_cast<std::uint64_t>(num), static_cast<std::uint64_t>(den));
}

namespace detail {

inline constexpr i128 kErrorMax = static_cast<i128>(~static_cast<u128>(0) >> 1);

/// floor(a * 2^64 / b) saturated at kErrorMax, and whether anything was cut off. Domain: b != 0.
/// Long division, bit by bit, because the dividend has 192 bits.
struct ShiftedQuotient {
    u128 value;
    bool inexact;
};
constexpr ShiftedQuotient shifted_quotient(u128 a, u128 b) {
    constexpr auto max = static_cast<u128>(kErrorMax);
    u128 quotient = a / b;
    u128 remainder = a % b;
    for (int bit = 0; bit < 64; ++bit) {
        if (quotient > max / 2) return {max, true};
        // 2 * remainder can need 129 bits; compare before doubling.
        const bool one = remainder >= b - remainder;
        remainder = one ? remainder - (b - remainder) : remainder + remainder;
        quotient = quotient * 2 + (one ? 1 : 0);
    }
    return {quotient > max ? max : quotient, remainder != 0};
}

}  // namespace detail

/// The relative error (actual - wanted) / wanted as a whole number of 2^-64, rounded away from
/// zero, so that magnitude * 2^-64 is a bound. Saturates at +-(2^127 - 1). Domain: wanted > 0.
///
/// Example: wanted 1/1, actual (2^32 - 1)/2^32: the error is -2^-32, hence -2^32.
struct RateError {
    i128 two_pow_minus_64 = 0;
    friend constexpr bool operator==(RateError, RateError) = default;
};
constexpr RateError rate_error(ExactRatio actual, ExactRatio wanted) {
    // actual/wanted - 1 = (an*wd - wn*ad) / (wn*ad)
    const u128 got = static_cast<u128>(actual.num()) * wanted.den();
    const u128 want = static_cast<u128>(wanted.num()) * actual.den();
    const bool fast = got > want;
    const auto [value, inexact] = detail::shifted_quotient(fast ? got - want : want - got, want);
    const i128 size = static_cast<i128>(value);
    const i128 away = inexact && size < detail::kErrorMax ? size + 1 : size;
    return {fast ? away : -away};
}

/// The error of two stages in a row, (1 + a)(1 + b) - 1, rounded to the nearest 2^-64 or one beside
/// it. Saturates.
constexpr RateError then(RateError a, RateError b) {
    // a and b below 2^62 (a quarter of the clock's own rate) keep every product within 128 bits.
    constexpr i128 small = static_cast<i128>(1) << 62;
    const bool exact = -small < a.two_pow_minus_64 && a.two_pow_minus_64 < small &&
                       -small < b.two_pow_minus_64 && b.two_pow_minus_64 < small;
    if (exact) {
        const i128 cross = (a.two_pow_minus_64 * b.two_pow_minus_64) >> 64;
        return {a.two_pow_minus_64 + b.two_pow_minus_64 + cross};
    }
    i128 sum = 0;
    if (!__builtin_add_overflow(a.two_pow_minus_64, b.two_pow_minus_64, &sum)) return {sum};
    return {a.two_pow_minus_64 < 0 ? -detail::kErrorMax : detail::kErrorMax};
}

/// Upper bound, in units of the range axis, of what a rate error adds over a length (rounded up;
/// saturating at 2^63 - 1).
constexpr std::uint64_t ceil_drift(RateError error, std::uint64_t length) {
    constexpr auto max = static_cast<u128>(std::numeric_limits<std::int64_t>::max());
    const auto bits = static_cast<u128>(error.two_pow_minus_64);
    const u128 size = error.two_pow_minus_64 < 0 ? 0 - bits : bits;  // 2^127 too
    const u128 high = (size >> 64) * length;  // whole units; size >> 64 is at most 2^63
    const u128 low = static_cast<u128>(static_cast<std::uint64_t>(size)) * length;
    const u128 carry = (low >> 64) + (static_cast<std::uint64_t>(low) != 0 ? 1 : 0);
    const u128 sum = high + carry;
    return static_cast<std::uint64_t>(sum > max ? max : sum);
}

}  // namespace continuo::time
