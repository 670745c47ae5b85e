#include "continuo/time/pvclock_scale.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

// 1 GHz: mul 2^31, shift 1, exact. 3 GHz: halved to 1.5e9 ticks, mul floor(2^32 / 1.5).
static_assert(PvclockScale::from_hz(*Hz::from_hz(1'000'000'000)) ==
              *PvclockScale::make(0x8000'0000U, 1));
static_assert(PvclockScale::from_hz(*Hz::from_hz(3'000'000'000)) ==
              *PvclockScale::make(2'863'311'530U, -1));
static_assert(pvclock_rate_error(PvclockScale::from_hz(*Hz::from_hz(1'000'000'000)),
                                 *Hz::from_hz(1'000'000'000))
                  ->two_pow_minus_64 == 0);
static_assert(ceil_drift(rate_error(*ExactRatio::make(3, 2), ExactRatio{}), 100) == 50);

using oracle::Big;
using oracle::big;
using oracle::big_i128;
using oracle::pow2;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

constexpr Count<GuestCounter> guest(std::uint64_t raw) {
    return Count<GuestCounter>::from_raw(raw);
}
constexpr Instant<Kvmclock> kvm(std::uint64_t raw) {
    return Instant<Kvmclock>::from_raw(raw);
}
constexpr PvclockScale scale(std::uint32_t mul, int shift) {
    return *PvclockScale::make(mul, shift);
}

static_assert(PvclockScale::make(1, -63) && !PvclockScale::make(1, -64));
static_assert(PvclockScale::make(1, 31) && !PvclockScale::make(1, 32));
static_assert(scale(0x8000'0000, 1).wrap_ns(1000) == 1000);  // 1 GHz
static_assert(scale(0x8000'0000, 0).wrap_ns(3) == 1);        // 2 GHz, floored
static_assert(scale(0x8000'0000, -1).wrap_ns(7) == 1);       // 4 GHz: 7/2 = 3, 3/2 = 1
static_assert(scale(0xffff'ffff, 0).wrap_ns(0) == 0);
static_assert(scale(0xffff'ffff, 0).wrap_ns(kMax64) == 0xffff'fffe'ffff'ffff);
static_assert(scale(0x8000'0000, 31).wrap_ns(std::uint64_t{1} << 33) == 0);  // shifted out
static_assert(scale(0xffff'ffff, -63).wrap_ns(kMax64) == 0);
static_assert(scale(0x8000'0000, 1).ratio() == ExactRatio{});
static_assert(scale(3, -31).ratio() == ExactRatio::make(3, std::uint64_t{1} << 63));
static_assert(!scale(3, -32).ratio());
static_assert(scale(0xffff'ffff, 31).ratio() == ExactRatio::make(0xffff'ffff, 2));

constexpr PvclockLine kGigahertz{guest(50), kvm(1000), scale(0x8000'0000, 1)};
static_assert(kGigahertz.at(guest(50)) == kvm(1000) && kGigahertz.at(guest(53)) == kvm(1003));
static_assert(kGigahertz.at(guest(47)) == kvm(997));
static_assert(kGigahertz.shifted(Nanos<Kvmclock>::from_raw(-7)).at(guest(53)) == kvm(996));
// 4 GHz, one tick before: a quarter of a ns, rounded down to a whole one.
static_assert(PvclockLine{guest(0), kvm(0), scale(0x8000'0000, -1)}.at(guest(kMax64)) ==
              kvm(kMax64));

/// What kvm_get_time_scale(10^9, hz) defines: halve, dropping bits, as seldom as brings the
/// frequency to 2 * 10^9 or less; double as seldom as brings it over 10^9; the fraction, truncated.
struct Expected {
    Big mul;
    int shift;
};
Expected kvm_time_scale(std::uint64_t hz) {
    const Big second = 1'000'000'000;
    unsigned halvings = 0;
    while (big(hz) / pow2(halvings) > 2 * second)
        ++halvings;
    const Big ticks = big(hz) / pow2(halvings);
    unsigned doublings = 0;
    while (ticks * pow2(doublings) <= second)
        ++doublings;
    return {second * pow2(32) / (ticks * pow2(doublings)),
            static_cast<int>(doublings) - static_cast<int>(halvings)};
}

TEST(PvclockScale, FromHzVectors) {
    struct Row {
        std::uint64_t hz;
        std::uint32_t mul;
        int shift;
    };
    const Row rows[] = {
        // 1 Hz doubled 30 times is 2^30 > 10^9: 10^9 * 2^32 / 2^30 = 4 * 10^9
        {1, 0xee6b'2800, 30},
        {2, 0xee6b'2800, 29},
        // 62.5 MHz (arm64 under QEMU) * 32 = 2 GHz: 2^32 / 2
        {62'500'000, 0x8000'0000, 5},
        // 10^9 is not over 10^9, hence 2 * 10^9: 2^31, shift 1
        {999'999'999, 0x8000'0002, 1},  // 10^9 * 2^32 / 1999999998 = 2^31 * 1.000000001
        {1'000'000'000, 0x8000'0000, 1},
        {1'000'000'001, 0xffff'fffb, 0},  // 2^32 / 1.000000001 = 2^32 - 4.29..., down
        {2'000'000'000, 0x8000'0000, 0},
        // one over 2 GHz loses its last bit, is 10^9, and is doubled again
        {2'000'000'001, 0x8000'0000, 0},
        // 2^32 / 1.3 = 3303820996.9
        {2'600'000'000, 0xc4ec'4ec4, -1},
        {3'499'912'000, 0x924a'159f, -1},
        // 2^32 / 4 = 2^30: 10^9 * 4
        {std::uint64_t{1} << 32, 0xee6b'2800, -2},
        {std::uint64_t{1} << 63, 0xee6b'2800, -33},
        // 2^64 - 1 halved 34 times is 2^30 - 1
        {kMax64, 0xee6b'2803, -34},
    };
    for (const Row& row : rows) {
        const PvclockScale made = PvclockScale::from_hz(*Hz::from_hz(row.hz));
        EXPECT_EQ(made.mul(), row.mul) << row.hz;
        EXPECT_EQ(int{made.shift()}, row.shift) << row.hz;
    }
}

RC_GTEST_PROP(PvclockScale, FromHzIsKvms, ()) {
    const Hz hz = *gen::hz();
    const PvclockScale made = PvclockScale::from_hz(hz);
    const Expected expected = kvm_time_scale(hz.hz());
    RC_ASSERT(big(std::uint64_t{made.mul()}) == expected.mul);
    RC_ASSERT(int{made.shift()} == expected.shift);
    RC_ASSERT(made.mul() >= 0x8000'0000U);
    RC_ASSERT(PvclockScale::make(made.mul(), made.shift()) == made);
}

// mul's truncation: slow by less than 2^-31 (4.66e-10, published as 4.7e-10; 40 us a day).
RC_GTEST_PROP(PvclockScale, KilohertzScaleIsSlowByLessThan2ToMinus31, ()) {
    const std::uint64_t khz = *rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(1, 6'000'000),
                                              rc::gen::inRange<std::uint64_t>(1, 16'000'000));
    const Hz hz = *Hz::from_khz(khz);
    const auto error = pvclock_rate_error(PvclockScale::from_hz(hz), hz);
    RC_ASSERT(error.has_value());
    RC_ASSERT(error->two_pow_minus_64 <= 0);
    RC_ASSERT(error->two_pow_minus_64 >= -(static_cast<i128>(1) << 33));
    RC_ASSERT(ceil_drift(*error, 86'400'000'000'000) <= 40'234U);  // ns in a day
}

// Over 2 GHz odd hertz drop bits, which makes the clock fast, by less than 10^-9.
RC_GTEST_PROP(PvclockScale, RateErrorOfAnyHertzIsBounded, ()) {
    const Hz hz = *gen::hz();
    const PvclockScale made = PvclockScale::from_hz(hz);
    const auto error = pvclock_rate_error(made, hz);
    RC_ASSERT(error.has_value() == (made.shift() >= -31));
    if (!error) return;
    RC_ASSERT(big_i128(error->two_pow_minus_64) >= -pow2(33));
    RC_ASSERT(big_i128(error->two_pow_minus_64) * 1'000'000'000 <= pow2(64) + 1'000'000'000);
    if (hz.hz() <= 2'000'000'000) RC_ASSERT(error->two_pow_minus_64 <= 0);
}

TEST(PvclockScale, OddHertzOver2GhzRunsFast) {
    const Hz hz = *Hz::from_hz(2'000'000'001);
    // 1/2 ns a tick for 1/2.000000001: fast by 5e-10 = 0.5 / 10^9; 2^64 * 0.5e-9 = 9223372036.9
    EXPECT_TRUE(*pvclock_rate_error(PvclockScale::from_hz(hz), hz) == RateError{9'223'372'037});
}

/// ((ticks << shift) mod 2^64 or floor(ticks / 2^-shift)) * mul / 2^32, modulo 2^64.
std::uint64_t abi_ns(PvclockScale of, std::uint64_t ticks) {
    const auto shift = of.shift();
    const Big shifted = shift >= 0
                            ? big(oracle::wrap64(big(ticks) * pow2(static_cast<unsigned>(shift))))
                            : big(ticks) / pow2(static_cast<unsigned>(-shift));
    return oracle::wrap64(shifted * of.mul() / pow2(32));
}

PvclockScale any_scale() {
    return scale(*gen::u32(), *rc::gen::oneOf(rc::gen::inRange(-63, 32), rc::gen::inRange(-4, 4)));
}

RC_GTEST_PROP(PvclockScale, WrapNsIsTheAbis, ()) {
    const PvclockScale of = any_scale();
    const std::uint64_t ticks = *gen::u64();
    RC_ASSERT(of.wrap_ns(ticks) == abi_ns(of, ticks));
}

RC_GTEST_PROP(PvclockScale, RatioIsTheRateOfWrapNs, ()) {
    const PvclockScale of = any_scale();
    const auto ratio = of.ratio();
    RC_ASSERT(ratio.has_value() == (of.shift() >= -31));
    if (!ratio) return;
    // mul * 2^shift / 2^32, cross-multiplied by 2^31 to keep the exponent positive
    const Big rate = big(std::uint64_t{of.mul()}) * pow2(static_cast<unsigned>(of.shift() + 31));
    RC_ASSERT(rate * big(ratio->den()) == big(ratio->num()) * pow2(63));
}

RC_GTEST_PROP(PvclockLine, ForwardIsTheAbisFormulaToTheBit, ()) {
    const PvclockLine line{*gen::point<GuestCounter>(), *gen::point<Kvmclock>(), any_scale()};
    const std::uint64_t ticks = *gen::u64() >> 1;  // below 2^63
    const auto x = guest(line.tsc_timestamp().raw() + ticks);
    RC_ASSERT(line.at(x).raw() ==
              oracle::wrap64(big(line.system_time().raw()) + big(abi_ns(line.scale(), ticks))));
}

RC_GTEST_PROP(PvclockLine, DownwardIsRoundedToMinusInfinityAtBothStages, ()) {
    const PvclockLine line{*gen::point<GuestCounter>(), *gen::point<Kvmclock>(), any_scale()};
    const std::uint64_t before = *rc::gen::oneOf(
        rc::gen::map(gen::u64(), [](std::uint64_t bits) { return (bits >> 1) + 1; }),
        rc::gen::just(std::uint64_t{1} << 63));
    const auto shift = line.scale().shift();
    const Big scaled = shift >= 0
                           ? Big{-big(before) * pow2(static_cast<unsigned>(shift))}
                           : oracle::floor_div(-big(before), pow2(static_cast<unsigned>(-shift)));
    const Big ns = oracle::floor_div(scaled * line.scale().mul(), pow2(32));
    const auto x = guest(line.tsc_timestamp().raw() - before);
    RC_ASSERT(line.at(x).raw() == oracle::wrap64(big(line.system_time().raw()) + ns));
}

// 3 ticks of 2 GHz are 1.5 ns, and the line that was at 1000 ns that much earlier is ahead.
constexpr PvclockLine kAtTick50{guest(50), kvm(1000), scale(0x8000'0000, 0)};
constexpr PvclockLine kAtTick47{guest(47), kvm(1000), scale(0x8000'0000, 0)};
static_assert(kAtTick50.minus(kAtTick47) == Nanos<Kvmclock>::from_raw(-2));
static_assert(kAtTick47.minus(kAtTick50) == Nanos<Kvmclock>::from_raw(2));
static_assert(!kAtTick47.minus(kGigahertz));

RC_GTEST_PROP(PvclockLine, MinusIsTheExactDifferenceToTheNearest, ()) {
    const PvclockScale of = any_scale();
    const PvclockLine other{*gen::point<GuestCounter>(), *gen::point<Kvmclock>(), of};
    const auto run = static_cast<std::int64_t>(*gen::u64());
    if (run == std::numeric_limits<std::int64_t>::min()) RC_DISCARD("2^63 ticks apart");
    const PvclockLine line{other.tsc_timestamp() + Ticks<GuestCounter>::from_raw(run),
                           *gen::point<Kvmclock>(), of};
    // |run| * mul * 2^shift / 2^32, over 2^95 for every shift; halves away from zero.
    const Big product = big(run < 0 ? std::uint64_t{0} - static_cast<std::uint64_t>(run)
                                    : static_cast<std::uint64_t>(run)) *
                        of.mul() * pow2(static_cast<unsigned>(of.shift() + 63));
    const Big nearest = (product * 2 + pow2(95)) / pow2(96);
    const Big ran = run < 0 ? Big{-nearest} : nearest;
    const std::uint64_t wanted =
        oracle::wrap64(big(line.system_time().raw()) - big(other.system_time().raw()) - ran);
    RC_ASSERT(line.minus(other)->raw() == static_cast<std::int64_t>(wanted));
}

RC_GTEST_PROP(PvclockLine, NeverRunsBackwardsAcrossItsAnchor, ()) {
    const Hz hz = *Hz::from_khz(*rc::gen::inRange<std::uint64_t>(1, 6'000'000));
    const PvclockLine line{*gen::point<GuestCounter>(), *gen::point<Kvmclock>(),
                           PvclockScale::from_hz(hz)};
    const auto x = line.tsc_timestamp() + Ticks<GuestCounter>::from_raw(*gen::within(16));
    const auto step = (line.at(x + Ticks<GuestCounter>::from_raw(1)) - line.at(x)).raw();
    RC_ASSERT(0 <= step);
    RC_ASSERT(static_cast<std::uint64_t>(step) <= kNanosPerSecond / hz.hz() + 2);
}

}  // namespace
}  // namespace continuo::time
