// 128-bit integers, spelled once. ISO C++ has none and -Wpedantic says so, hence __extension__;
// every product of two 64-bit quantities in this project goes through these, and nothing wider
// exists.
#pragma once

#include <cstdint>

namespace continuo::time {

__extension__ using u128 = unsigned __int128;
__extension__ using i128 = __int128;

/// Quotient rounded to minus infinity and its remainder in [0, divisor).
struct FloorDivision {
    i128 quotient;
    std::uint64_t remainder;
};

/// Divides rounding to minus infinity. Domain: divisor != 0. Never overflows: the divisor is
/// positive.
constexpr FloorDivision floor_divide(i128 dividend, std::uint64_t divisor) {
    const i128 wide = static_cast<i128>(divisor);
    i128 quotient = dividend / wide;
    i128 remainder = dividend % wide;
    if (remainder < 0) {
        remainder += wide;
        --quotient;
    }
    return {quotient, static_cast<std::uint64_t>(remainder)};
}

/// The low 64 bits: reduction modulo 2^64, for negative values too.
constexpr std::uint64_t wrap_u64(i128 value) {
    return static_cast<std::uint64_t>(static_cast<u128>(value));
}

}  // namespace continuo::time
