#include "continuo/time/rate.h"

namespace continuo::time {

namespace {

constexpr i128 kErrorMax = static_cast<i128>(~static_cast<u128>(0) >> 1);

/// floor(a * 2^64 / b) saturated at kErrorMax, and whether anything was cut off. Domain: b != 0.
/// Long division, bit by bit, because the dividend has 192 bits.
struct ShiftedQuotient {
    u128 value;
    bool inexact;
};
ShiftedQuotient shifted_quotient(u128 a, u128 b) {
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

}  // namespace

RateError rate_error(ExactRatio actual, ExactRatio wanted) {
    // actual/wanted - 1 = (an*wd - wn*ad) / (wn*ad)
    const u128 got = static_cast<u128>(actual.num()) * wanted.den();
    const u128 want = static_cast<u128>(wanted.num()) * actual.den();
    const bool fast = got > want;
    const auto [value, inexact] = shifted_quotient(fast ? got - want : want - got, want);
    const i128 size = static_cast<i128>(value);
    const i128 away = inexact && size < kErrorMax ? size + 1 : size;
    return {fast ? away : -away};
}

RateError then(RateError a, RateError b) {
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
    return {a.two_pow_minus_64 < 0 ? -kErrorMax : kErrorMax};
}

std::uint64_t ceil_drift(RateError error, std::uint64_t length) {
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
