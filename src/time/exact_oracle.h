// The oracle of the tests of time/: integers without a limit, and the few operations on them that
// the formulas under test are made of. Nothing here shares code with what it judges.
#pragma once

#include <boost/multiprecision/cpp_int.hpp>
#include <cstdint>

#include "continuo/time/rate.h"
#include "continuo/time/wide.h"

namespace continuo::time::oracle {

using Big = boost::multiprecision::number<boost::multiprecision::cpp_int_backend<>,
                                          boost::multiprecision::et_off>;

inline Big pow2(unsigned bits) {
    return Big{1} << bits;
}

inline Big big(std::uint64_t value) {
    return Big{value};
}
inline Big big(std::int64_t value) {
    return Big{value};
}
inline Big big_i128(i128 value) {
    const u128 bits = static_cast<u128>(value);
    Big result =
        (Big{static_cast<std::uint64_t>(bits >> 64)} << 64) + Big{static_cast<std::uint64_t>(bits)};
    if (value < 0) result -= pow2(128);
    return result;
}

/// floor(a / b). Domain: b > 0.
inline Big floor_div(const Big& a, const Big& b) {
    const Big quotient = a / b;  // towards zero
    return a % b < 0 ? Big{quotient - 1} : quotient;
}
/// ceil(a / b). Domain: b > 0.
inline Big ceil_div(const Big& a, const Big& b) {
    return -floor_div(-a, b);
}

inline Big modulo(const Big& a, const Big& b) {
    return a - floor_div(a, b) * b;
}

inline Big abs(const Big& a) {
    return a < 0 ? Big{-a} : a;
}

/// The value modulo 2^64, as a point on an axis has it.
inline std::uint64_t wrap64(const Big& value) {
    return static_cast<std::uint64_t>(modulo(value, pow2(64)));
}

/// The shorter way from b to a on the circle of 2^64, -2^63 where both are equally long.
inline Big short_way(std::uint64_t a, std::uint64_t b) {
    const Big up = modulo(big(a) - big(b), pow2(64));
    return up < pow2(63) ? up : Big{up - pow2(64)};
}

inline Big clamp(const Big& value, const Big& lo, const Big& hi) {
    if (value < lo) return lo;
    return value > hi ? hi : value;
}

}  // namespace continuo::time::oracle
