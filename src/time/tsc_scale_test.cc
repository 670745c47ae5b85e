#include "continuo/time/tsc_scale.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>

#include "continuo/time/rate.h"
#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::time {
namespace {

using oracle::Big;
using oracle::big;
using oracle::pow2;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint32_t kMax32 = std::numeric_limits<std::uint32_t>::max();

constexpr Count<HostCounter> host(std::uint64_t raw) {
    return Count<HostCounter>::from_raw(raw);
}
constexpr Count<GuestCounter> guest(std::uint64_t raw) {
    return Count<GuestCounter>::from_raw(raw);
}

static_assert(SvmTscScale::kRatioMax == (std::uint64_t{1} << 40) - 1);
static_assert(VmxTscScale::kRatioMax == kMax64);
static_assert(SvmTscScale{}.ratio() == std::uint64_t{1} << 32);
static_assert(VmxTscScale{}.ratio() == std::uint64_t{1} << 48);
static_assert(!SvmTscScale::from_ratio(0) && !VmxTscScale::from_ratio(0));
static_assert(SvmTscScale::from_ratio(SvmTscScale::kRatioMax) &&
              !SvmTscScale::from_ratio(SvmTscScale::kRatioMax + 1));
static_assert(VmxTscScale::from_ratio(kMax64)->ratio() == kMax64);
static_assert(SvmTscScale::from_khz(1'500'000, 3'000'000)->ratio() == 0x8000'0000);
static_assert(VmxTscScale::from_khz(1'500'000, 3'000'000)->ratio() == std::uint64_t{1} << 47);
static_assert(!SvmTscScale::from_khz(0, 1) && !SvmTscScale::from_khz(1, 0));
static_assert(!VmxTscScale::from_khz(0, 1) && !VmxTscScale::from_khz(1, 0));
static_assert(!SvmTscScale::from_khz(256, 1));  // 2^40 is over 8.32
static_assert(SvmTscScale::from_khz(255, 1)->ratio() == std::uint64_t{255} << 32);
static_assert(!VmxTscScale::from_khz(65'536, 1));  // 2^64 is over 16.48
static_assert(VmxTscScale::from_khz(65'535, 1)->ratio() == std::uint64_t{65'535} << 48);
static_assert(SvmTscScale::from_khz(1, kMax32)->ratio() == 1);  // 2^32 / (2^32 - 1)
static_assert(SvmTscScale{}.wrap_scale(kMax64) == kMax64 &&
              VmxTscScale{}.wrap_scale(kMax64) == kMax64);
static_assert(SvmTscScale::from_ratio(0x8000'0000)->wrap_scale(7) == 3);
// Twice 2^63 is 2^64: wraps to 0.
static_assert(SvmTscScale::from_ratio(std::uint64_t{1} << 33)->wrap_scale(std::uint64_t{1} << 63) ==
              0);
// (2^64 - 1)^2 >> 48 = 2^80 - 2^17 + 0.., modulo 2^64: 2^64 - 2^17
static_assert(VmxTscScale::from_ratio(kMax64)->wrap_scale(kMax64) == 0 - (std::uint64_t{1} << 17));

constexpr TscMap kOffset{std::uint64_t{0} - 100};
static_assert(kOffset.at(host(105)) == guest(5) && kOffset.at(host(0)) == guest(kMax64 - 99));
static_assert(!kOffset.scales() && kOffset.slope() == ExactRatio{});
static_assert(kOffset.through(host(7), guest(kMax64)).at(host(8)) == guest(0));
constexpr TscMap kHalf{*SvmTscScale::from_ratio(0x8000'0000), 10};
static_assert(kHalf.at(host(7)) == guest(13) && kHalf.scales() && kHalf.frac_bits() == 32);
static_assert(kHalf.slope() == ExactRatio::make(1, 2));
static_assert(kHalf.line_near(host(7)).phase() == 1);  // 3.5 ticks: half of one in hand

template <int FracBits>
void from_khz_is_kvms() {
    const std::uint32_t guest_khz = *gen::u32();
    const std::uint32_t host_khz = *gen::u32();
    const auto made = TscScale<FracBits>::from_khz(guest_khz, host_khz);
    const Big ratio = host_khz == 0 ? Big{0} : Big{pow2(FracBits) * guest_khz / host_khz};
    const bool taken = ratio > 0 && ratio < big(TscScale<FracBits>::kRatioMax);
    RC_ASSERT(made.has_value() == taken);
    if (made) RC_ASSERT(big(made->ratio()) == ratio);
}
RC_GTEST_PROP(TscScale, FromKhzIsKvmsOnSvm, ()) {
    from_khz_is_kvms<kSvmFracBits>();
}
RC_GTEST_PROP(TscScale, FromKhzIsKvmsOnVmx, ()) {
    from_khz_is_kvms<kVmxFracBits>();
}

template <int FracBits>
TscScale<FracBits> any_scale() {
    const std::uint64_t ratio = *gen::u64() & TscScale<FracBits>::kRatioMax;
    return *TscScale<FracBits>::from_ratio(ratio == 0 ? 1 : ratio);
}

template <int FracBits>
void wrap_scale_is_the_hardwares() {
    const auto scale = any_scale<FracBits>();
    const std::uint64_t tsc = *gen::u64();
    RC_ASSERT(scale.wrap_scale(tsc) ==
              oracle::wrap64(big(tsc) * big(scale.ratio()) / pow2(FracBits)));
}
RC_GTEST_PROP(TscScale, WrapScaleIsTheHardwaresOnSvm, ()) {
    wrap_scale_is_the_hardwares<kSvmFracBits>();
}
RC_GTEST_PROP(TscScale, WrapScaleIsTheHardwaresOnVmx, ()) {
    wrap_scale_is_the_hardwares<kVmxFracBits>();
}

/// Maps of all three kinds.
TscMap any_map() {
    const std::uint64_t offset = *gen::u64();
    switch (*rc::gen::inRange(0, 3)) {
        case 0:
            return TscMap{offset};
        case 1:
            return TscMap{any_scale<kSvmFracBits>(), offset};
        default:
            return TscMap{any_scale<kVmxFracBits>(), offset};
    }
}

/// host * ratio / 2^frac, floored, not yet modulo anything.
Big scaled(const TscMap& map, const Big& tsc) {
    return tsc * big(map.ratio()) / pow2(static_cast<unsigned>(map.frac_bits()));
}

RC_GTEST_PROP(TscMap, AtIsScaledPlusOffset, ()) {
    const TscMap map = any_map();
    const std::uint64_t tsc = *gen::u64();
    RC_ASSERT(map.at(host(tsc)).raw() == oracle::wrap64(scaled(map, big(tsc)) + big(map.offset())));
}

RC_GTEST_PROP(TscMap, ThroughIsExactThereAndKeepsTheMultiplier, ()) {
    const TscMap map = any_map();
    const auto at = *gen::point<HostCounter>();
    const auto reads = *gen::point<GuestCounter>();
    const TscMap through = map.through(at, reads);
    RC_ASSERT(through.at(at) == reads);
    RC_ASSERT(through.ratio() == map.ratio() && through.frac_bits() == map.frac_bits());
    RC_ASSERT(through.through(at, map.at(at)) == map);
}

RC_GTEST_PROP(TscMap, LineNearIsTheMap, ()) {
    const TscMap map = any_map();
    const std::uint64_t near = *gen::u64();
    const std::uint64_t tsc = *gen::u64();
    const auto line = map.line_near(host(near));
    RC_ASSERT(line.at(host(near)) == map.at(host(near)));
    RC_ASSERT(line.slope() == map.slope());
    // Where the shorter way does not cross the wrap of the host's counter, it is to the tick.
    if (oracle::short_way(tsc, near) == big(tsc) - big(near))
        RC_ASSERT(line.at(host(tsc)) == map.at(host(tsc)));
}

// A map without a multiplier crosses the wrap as well.
RC_GTEST_PROP(TscMap, LineNearOfAnOffsetIsTheMapEverywhere, ()) {
    const TscMap map{*gen::u64()};
    const auto line = map.line_near(*gen::point<HostCounter>());
    const auto tsc = *gen::point<HostCounter>();
    RC_ASSERT(line.at(tsc) == map.at(tsc));
}

// The multiplier's truncation against the frequencies that were asked for: below one unit of the
// ratio. At or over the host's frequency that is 2^-32 on SVM, 2.33e-10.
RC_GTEST_PROP(TscScale, SvmTruncationIsBelow2ToMinus32OfAFasterGuest, ()) {
    const std::uint32_t host_khz = *rc::gen::inRange<std::uint32_t>(500'000, 6'000'000);
    const std::uint32_t guest_khz = *rc::gen::inRange<std::uint32_t>(500'000, 6'000'000);
    RC_PRE(guest_khz >= host_khz);
    const auto scale = SvmTscScale::from_khz(guest_khz, host_khz);
    RC_ASSERT(scale.has_value());
    const RateError error = rate_error(*ExactRatio::make(scale->ratio(), std::uint64_t{1} << 32),
                                       *ExactRatio::make(guest_khz, host_khz));
    RC_ASSERT(error.two_pow_minus_64 <= 0);
    RC_ASSERT(error.two_pow_minus_64 >= -(static_cast<i128>(1) << 32));
}

// The rate that KVM publishes for a scaled guest is (host_khz * ratio) >> 48, measured on eight
// pages.
TEST(TscScale, EffectiveKhzOfAScaledGuest) {
    const auto effective = [](std::uint32_t guest_khz, std::uint32_t host_khz) {
        return VmxTscScale::from_khz(guest_khz, host_khz)->wrap_scale(host_khz);
    };
    // floor(2^48 * 10^6 / 3499912) = 80423443992493; * 3499912 >> 48 = 999999.99...: down
    EXPECT_EQ(VmxTscScale::from_khz(1'000'000, 3'499'912)->ratio(), 80'423'443'992'493U);
    EXPECT_EQ(effective(1'000'000, 3'499'912), 999'999U);
    EXPECT_EQ(effective(1'000'000, 3'000'000), 999'999U);
    EXPECT_EQ(effective(1'500'000, 3'000'000), 1'500'000U);  // an exact half
    EXPECT_EQ(effective(3'499'912, 3'499'912), 3'499'912U);
}

RC_GTEST_PROP(TscScale, EffectiveKhzIsAtMostOneLow, ()) {
    const std::uint32_t host_khz = *rc::gen::inRange<std::uint32_t>(500'000, 6'000'000);
    const std::uint32_t guest_khz = *rc::gen::inRange<std::uint32_t>(500'000, 6'000'000);
    const auto effective = VmxTscScale::from_khz(guest_khz, host_khz)->wrap_scale(host_khz);
    RC_ASSERT(effective == guest_khz || effective == guest_khz - 1);
}

TEST(TscTolerance, Vectors) {
    // 3 000 000 kHz: 250 ppm are 750 kHz either way
    EXPECT_TRUE(within_tsc_tolerance(3'000'000, 3'000'000));
    EXPECT_TRUE(within_tsc_tolerance(2'999'250, 3'000'000));
    EXPECT_FALSE(within_tsc_tolerance(2'999'249, 3'000'000));
    EXPECT_TRUE(within_tsc_tolerance(3'000'750, 3'000'000));
    EXPECT_FALSE(within_tsc_tolerance(3'000'751, 3'000'000));
    // 2 599 999: lo 2599349.0002 down, hi 2600648.9997 down
    EXPECT_TRUE(within_tsc_tolerance(2'599'349, 2'599'999));
    EXPECT_FALSE(within_tsc_tolerance(2'599'348, 2'599'999));
    EXPECT_TRUE(within_tsc_tolerance(2'600'648, 2'599'999));
    EXPECT_FALSE(within_tsc_tolerance(2'600'649, 2'599'999));
    EXPECT_TRUE(within_tsc_tolerance(0, 0));
    EXPECT_FALSE(within_tsc_tolerance(1, 0));
    EXPECT_TRUE(within_tsc_tolerance(kMax32, kMax32));
    EXPECT_FALSE(within_tsc_tolerance(0, kMax32));
}

RC_GTEST_PROP(TscTolerance, IsKvmsWindow, ()) {
    const std::uint32_t host_khz = *gen::u32();
    const Big lo = big(std::uint64_t{host_khz}) * 999'750 / 1'000'000;
    const Big hi = big(std::uint64_t{host_khz}) * 1'000'250 / 1'000'000;
    const auto near = [](const Big& edge, int step) {
        return static_cast<std::uint32_t>(oracle::clamp(edge + step, 0, kMax32));
    };
    const std::uint32_t guest_khz = *rc::gen::oneOf(
        gen::u32(), rc::gen::map(rc::gen::inRange(-2, 3), [&](int step) { return near(lo, step); }),
        rc::gen::map(rc::gen::inRange(-2, 3), [&](int step) { return near(hi, step); }));
    RC_ASSERT(within_tsc_tolerance(guest_khz, host_khz) == (lo <= guest_khz && guest_khz <= hi));
}

}  // namespace
}  // namespace continuo::time
