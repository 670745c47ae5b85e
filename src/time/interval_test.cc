#include "continuo/time/interval.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

using oracle::Big;
using oracle::big;
using oracle::pow2;
using KvmNanos = Nanos<Kvmclock>;
using Bound = Interval<Kvmclock>;

constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

constexpr Bound bound(std::int64_t a, std::int64_t b) {
    return {KvmNanos::from_raw(a), KvmNanos::from_raw(b)};
}

static_assert(sat_i64(static_cast<i128>(1) << 64) == kMax && sat_i64(kMax) == kMax);
static_assert(sat_i64(-(static_cast<i128>(1) << 64)) == kMin && sat_i64(kMin) == kMin);

static_assert(Bound{} == bound(0, 0));
static_assert(bound(3, -2) == bound(-2, 3));
static_assert(Bound::around_zero(5) == bound(-5, 5));
static_assert(Bound::around_zero(std::uint64_t{1} << 63) == bound(kMin, kMax));
static_assert(Bound::around_zero(kMax64) == bound(kMin, kMax));
static_assert(Bound::around_zero(kMax64 >> 1) == bound(-kMax, kMax));
static_assert(bound(-2, 3).contains(KvmNanos::from_raw(-2)) &&
              bound(-2, 3).contains(KvmNanos::from_raw(3)) &&
              !bound(-2, 3).contains(KvmNanos::from_raw(-3)) &&
              !bound(-2, 3).contains(KvmNanos::from_raw(4)));
static_assert(bound(-2, 3).contains(bound(-2, 3)) && !bound(-2, 3).contains(bound(-3, 0)) &&
              !bound(-2, 3).contains(bound(0, 4)));
static_assert(bound(-7, 3).radius() == 7 && bound(2, 9).radius() == 9);
static_assert(bound(kMin, 0).radius() == std::uint64_t{1} << 63);
static_assert(bound(1, 2) + bound(10, 20) == bound(11, 22));
static_assert(bound(1, 2) - bound(10, 20) == bound(-19, -8));
static_assert(bound(kMin, kMax) + bound(-1, 1) == bound(kMin, kMax));
static_assert(bound(kMin, kMax) - bound(kMax, kMin) == bound(kMin, kMax));
static_assert(hull(bound(-1, 0), bound(5, 6)) == bound(-1, 6));

Bound any_bound() {
    return bound(*gen::i64(), *gen::i64());
}

Big saturated(const Big& value) {
    return oracle::clamp(value, -pow2(63), pow2(63) - 1);
}

RC_GTEST_PROP(Interval, SumAndDifferenceOfTheEndsSaturate, ()) {
    const Bound a = any_bound();
    const Bound b = any_bound();
    RC_ASSERT(big((a + b).lo().raw()) == saturated(big(a.lo().raw()) + big(b.lo().raw())));
    RC_ASSERT(big((a + b).hi().raw()) == saturated(big(a.hi().raw()) + big(b.hi().raw())));
    RC_ASSERT(big((a - b).lo().raw()) == saturated(big(a.lo().raw()) - big(b.hi().raw())));
    RC_ASSERT(big((a - b).hi().raw()) == saturated(big(a.hi().raw()) - big(b.lo().raw())));
}

/// A member of an interval.
std::int64_t member(const Bound& of) {
    const Big width = big(of.hi().raw()) - big(of.lo().raw()) + 1;
    return static_cast<std::int64_t>(big(of.lo().raw()) + big(*gen::u64()) % width);
}

RC_GTEST_PROP(Interval, EnclosesWhatItsMembersMake, ()) {
    const Bound a = any_bound();
    const Bound b = any_bound();
    const std::int64_t x = member(a);
    const std::int64_t y = member(b);
    const auto encloses = [](const Bound& in, const Big& value) {
        return in.contains(KvmNanos::from_raw(static_cast<std::int64_t>(saturated(value))));
    };
    RC_ASSERT(encloses(a + b, big(x) + big(y)));
    RC_ASSERT(encloses(a - b, big(x) - big(y)));
    RC_ASSERT(hull(a, b).contains(a) && hull(a, b).contains(b));
    RC_ASSERT(KvmNanos::from_raw(x).magnitude() <= a.radius());
}

}  // namespace
}  // namespace continuo::time
