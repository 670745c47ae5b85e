#include "continuo/time/point.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <concepts>
#include <cstdint>
#include <limits>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

using oracle::big;
using HostCount = Count<HostCounter>;
using HostTicks = Ticks<HostCounter>;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

constexpr HostCount count(std::uint64_t raw) {
    return HostCount::from_raw(raw);
}
constexpr HostTicks ticks(std::int64_t raw) {
    return HostTicks::from_raw(raw);
}

// The shorter way round the circle.
static_assert(count(5) - count(3) == ticks(2));
static_assert(count(3) - count(5) == ticks(-2));
static_assert(count(0) - count(kMax64) == ticks(1));
static_assert(count(kMax64) - count(0) == ticks(-1));
static_assert(count(std::uint64_t{1} << 63) - count(0) == ticks(kMin));  // half round is behind
static_assert(count(0) - count(std::uint64_t{1} << 63) == ticks(kMin));
static_assert(count(std::uint64_t{1} << 32) - count(std::uint64_t{1} << 31) ==
              ticks(std::int64_t{1} << 31));

static_assert(count(kMax64) + ticks(1) == count(0));
static_assert(count(0) - ticks(1) == count(kMax64));
static_assert(count(0) + ticks(kMin) == count(std::uint64_t{1} << 63));
static_assert(count(0) - ticks(kMin) == count(std::uint64_t{1} << 63));

static_assert(ticks(kMax) + ticks(1) == ticks(kMin));
static_assert(ticks(kMin) - ticks(1) == ticks(kMax));
static_assert(ticks(-1) < ticks(0) && ticks(kMin) < ticks(kMax));
static_assert(ticks(kMin).magnitude() == std::uint64_t{1} << 63);
static_assert(ticks(-7).magnitude() == 7 && ticks(kMax).magnitude() == kMax64 >> 1);

static_assert(HostCount{} == count(0) && HostTicks{} == ticks(0));
static_assert(same_boot_counter(recorded_counter(count(kMax64))) == count(kMax64));
static_assert(as_nanos_of<Kvmclock>(Nanos<Tai>::from_raw(-3)) == Nanos<Kvmclock>::from_raw(-3));

// A point has no order, and takes in nothing but through its door.
static_assert(!std::totally_ordered<HostCount>);
static_assert(!std::convertible_to<std::uint64_t, HostCount>);
static_assert(!std::constructible_from<HostCount, std::uint64_t>);
static_assert(!std::constructible_from<HostCount, Count<GuestCounter>>);
static_assert(!std::constructible_from<HostCount, Count<SourceCounter>>);

RC_GTEST_PROP(Point, DifferenceIsTheShorterWay, ()) {
    const std::uint64_t a = *gen::u64();
    const std::uint64_t b = *gen::u64();
    RC_ASSERT(big((count(a) - count(b)).raw()) == oracle::short_way(a, b));
}

RC_GTEST_PROP(Point, SumsWrapModulo2To64, ()) {
    const std::uint64_t p = *gen::u64();
    const std::int64_t d = *gen::i64();
    RC_ASSERT((count(p) + ticks(d)).raw() == oracle::wrap64(big(p) + big(d)));
    RC_ASSERT((count(p) - ticks(d)).raw() == oracle::wrap64(big(p) - big(d)));
    RC_ASSERT(count(p) + ticks(d) - ticks(d) == count(p));
}

RC_GTEST_PROP(Point, GoingTheDifferenceArrives, ()) {
    const HostCount a = count(*gen::u64());
    const HostCount b = count(*gen::u64());
    RC_ASSERT(b + (a - b) == a);
}

RC_GTEST_PROP(Delta, SumsWrapAndOrderIsSigned, ()) {
    const std::int64_t a = *gen::i64();
    const std::int64_t b = *gen::i64();
    const auto signed_wrap = [](const oracle::Big& value) {
        return static_cast<std::int64_t>(oracle::wrap64(value));
    };
    RC_ASSERT((ticks(a) + ticks(b)).raw() == signed_wrap(big(a) + big(b)));
    RC_ASSERT((ticks(a) - ticks(b)).raw() == signed_wrap(big(a) - big(b)));
    RC_ASSERT((ticks(a) < ticks(b)) == (a < b));
    RC_ASSERT(big(ticks(a).magnitude()) == oracle::abs(big(a)));
}

}  // namespace
}  // namespace continuo::time
