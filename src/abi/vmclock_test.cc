#include "continuo/abi/vmclock.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>

#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::abi {
namespace {

using time::oracle::Big;
using time::oracle::big;
using time::oracle::pow2;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kHalf = std::uint64_t{1} << 63;

constexpr time::Count<time::GuestCounter> guest(std::uint64_t raw) {
    return time::Count<time::GuestCounter>::from_raw(raw);
}

constexpr vmclock_abi readable() {
    vmclock_abi page{};
    page.magic = kVMCLOCK_MAGIC;
    page.size = kVmclockPageSize;
    page.version = kVmclockVersion;
    page.counter_id = kVMCLOCK_COUNTER_X86_TSC;
    page.time_type = kVMCLOCK_TIME_TAI;
    page.clock_status = kVMCLOCK_STATUS_SYNCHRONIZED;
    return page;
}

constexpr vmclock_abi clock_of(std::uint64_t value, std::uint64_t period, std::uint8_t shift,
                               std::uint64_t sec, std::uint64_t frac) {
    vmclock_abi page = readable();
    page.counter_value = value;
    page.counter_period_frac_sec = period;
    page.counter_period_shift = shift;
    page.time_sec = sec;
    page.time_frac_sec = frac;
    return page;
}

constexpr bool reads(const vmclock_abi& page, std::uint64_t counter, std::uint64_t sec,
                     std::uint64_t frac) {
    return vmclock_time_at(page, guest(counter)) == VmclockTime{sec, frac};
}

// 64 Hz: 2^62 of 2^-68 s. 96 ticks are 1.5 s; with half a second in hand, 2 s.
static_assert(reads(clock_of(1000, std::uint64_t{1} << 62, 4, 10, kHalf), 1096, 12, 0));
static_assert(reads(clock_of(1000, std::uint64_t{1} << 62, 4, 10, kHalf), 1000, 10, kHalf));
static_assert(reads(clock_of(1000, std::uint64_t{1} << 62, 4, 10, kHalf), 1001, 10,
                    kHalf + (std::uint64_t{1} << 58)));
// What is below 2^-64 s is rounded down: 3 ticks of 2^-65 s.
static_assert(reads(clock_of(0, 1, 1, 0, 0), 3, 0, 1));
// The counter wraps, and the difference does not care.
static_assert(reads(clock_of(kMax64, kHalf, 0, 7, 0), 1, 8, 0));
// The largest: (2^64 - 1)^2 + 2^64 - 1 = 2^128 - 2^64: 2^64 - 1 s and 0, and seconds wrap.
static_assert(reads(clock_of(0, kMax64, 0, 0, kMax64), kMax64, kMax64, 0));
static_assert(reads(clock_of(0, kMax64, 0, 2, kMax64), kMax64, 1, 0));
// As in Linux's driver a counter one tick before the pair is 2^64 - 1 ticks after it:
// (2^64 - 1) / 2 s.
static_assert(reads(clock_of(1, kHalf, 0, 0, 0), 0, kMax64 >> 1, kHalf));
static_assert(reads(clock_of(0, kMax64, 127, 0, 0), kMax64, 0, 1));  // (2^128 - ...) >> 127
static_assert(reads(clock_of(0, kMax64, 128, 5, 6), kMax64, 5, 6));
static_assert(reads(clock_of(0, kMax64, 255, 5, 6), kMax64, 5, 6));

RC_GTEST_PROP(VmclockTime, IsTheExactSumRoundedDown, ()) {
    const vmclock_abi page = clock_of(*time::gen::u64(), *time::gen::u64(),
                                      static_cast<std::uint8_t>(*rc::gen::inRange(0, 256)),
                                      *time::gen::u64(), *time::gen::u64());
    const std::uint64_t counter = *time::gen::u64();
    const Big ticks = time::oracle::modulo(big(counter) - big(page.counter_value), pow2(64));
    // In 2^-64 s: sec * 2^64 + frac + ticks * period / 2^shift.
    const Big exact = big(page.time_sec) * pow2(64) + big(page.time_frac_sec) +
                      ticks * big(page.counter_period_frac_sec) / pow2(page.counter_period_shift);
    const auto time = vmclock_time_at(page, guest(counter));
    RC_ASSERT(time.has_value());
    RC_ASSERT(big(time->frac) == exact % pow2(64));
    RC_ASSERT(time->seconds == time::oracle::wrap64(exact / pow2(64)));
}

TEST(VmclockReadable, RefusesWhatHasNoTime) {
    ASSERT_TRUE(vmclock_readable(readable()));
    const auto refused = [](auto&& damage) {
        vmclock_abi page = readable();
        damage(page);
        return !vmclock_readable(page) && !vmclock_time_at(page, guest(0)).has_value();
    };
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.magic ^= 1; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.version = 2; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.version = 0; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.counter_id = kVMCLOCK_COUNTER_INVALID; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.counter_id = 2; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.time_type = kVMCLOCK_TIME_INVALID_SMEARED; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.time_type = 255; }));
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.clock_status = kVMCLOCK_STATUS_UNRELIABLE; }));
    // The time fields end at 88.
    EXPECT_TRUE(refused([](vmclock_abi& page) { page.size = 87; }));
    EXPECT_FALSE(refused([](vmclock_abi& page) { page.size = 88; }));
    EXPECT_FALSE(refused([](vmclock_abi& page) { page.counter_id = kVMCLOCK_COUNTER_ARM_VCNT; }));
    EXPECT_FALSE(refused([](vmclock_abi& page) { page.time_type = kVMCLOCK_TIME_MONOTONIC; }));
    EXPECT_FALSE(refused([](vmclock_abi& page) { page.seq_count = 1; }));
}

}  // namespace
}  // namespace continuo::abi
