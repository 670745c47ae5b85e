#include "continuo/time/wide.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

using oracle::big;
using oracle::big_i128;

constexpr i128 kMax = static_cast<i128>(~static_cast<u128>(0) >> 1);
constexpr i128 kMin = -kMax - 1;
constexpr std::uint64_t kMax64 = ~std::uint64_t{0};

constexpr bool divides(i128 dividend, std::uint64_t divisor, i128 quotient,
                       std::uint64_t remainder) {
    const FloorDivision d = floor_divide(dividend, divisor);
    return d.quotient == quotient && d.remainder == remainder;
}
static_assert(divides(0, 1, 0, 0));
static_assert(divides(7, 3, 2, 1));                  // 2*3 + 1
static_assert(divides(-7, 3, -3, 2));                // -3*3 + 2
static_assert(divides(-6, 3, -2, 0));                // exact: no step down
static_assert(divides(-1, kMax64, -1, kMax64 - 1));  // -1 = -(2^64-1) + 2^64-2
static_assert(divides(kMin, 1, kMin, 0));
static_assert(divides(kMin, std::uint64_t{1} << 63, -(static_cast<i128>(1) << 64), 0));
static_assert(divides(kMax, 2, kMax / 2, 1));

static_assert(wrap_u64(-1) == kMax64);
static_assert(wrap_u64(static_cast<i128>(1) << 64) == 0);
static_assert(wrap_u64(kMin) == 0);
static_assert(wrap_u64(kMax) == kMax64);

i128 wide(std::int64_t high, std::uint64_t low) {
    return static_cast<i128>(static_cast<u128>(static_cast<std::uint64_t>(high)) << 64 | low);
}

RC_GTEST_PROP(Wide, FloorDivideIsTheFloor, ()) {
    const i128 dividend = wide(*gen::i64(), *gen::u64());
    const std::uint64_t divisor = *gen::positive64();
    const FloorDivision d = floor_divide(dividend, divisor);
    RC_ASSERT(big_i128(d.quotient) == oracle::floor_div(big_i128(dividend), big(divisor)));
    RC_ASSERT(big(d.remainder) == oracle::modulo(big_i128(dividend), big(divisor)));
}

RC_GTEST_PROP(Wide, WrapIsModulo2To64, ()) {
    const i128 value = wide(*gen::i64(), *gen::u64());
    RC_ASSERT(wrap_u64(value) == oracle::wrap64(big_i128(value)));
}

}  // namespace
}  // namespace continuo::time
