#include "continuo/kvm/host.h"

#include <gtest/gtest.h>

#include <chrono>
#include <ctime>

#include "continuo/kvm/counter.h"
#include "continuo/state/codec.h"

namespace continuo::kvm {
namespace {

TEST(BootId, IsTheSixteenBytesOfItsSpelling) {
    const auto id = parse_boot_id("00112233-4455-6677-8899-aAbBcCdDeEfF");
    ASSERT_TRUE(id);
    for (std::size_t i = 0; i < id->size(); ++i)
        EXPECT_EQ((*id)[i], i * 0x11);
}

TEST(BootId, AnythingElseIsNone) {
    EXPECT_FALSE(parse_boot_id(""));
    EXPECT_FALSE(parse_boot_id("00112233-4455-6677-8899-aabbccddeef"));
    EXPECT_FALSE(parse_boot_id("00112233-4455-6677-8899-aabbccddeeff0"));
    EXPECT_FALSE(parse_boot_id("001122334455-6677-8899-aabbccddeeff--"));
    EXPECT_FALSE(parse_boot_id("0011223344556677-8899-aabbccddeeff----"));
    EXPECT_FALSE(parse_boot_id("00112233-4455-6677-8899-aabbccddeefg"));
}

TEST(HostIdentity, IsTheSameAtEveryCallAndNamesTheKernel) {
    const auto identity = host_identity();
    EXPECT_EQ(identity, host_identity());
    EXPECT_EQ(identity.kernel.rfind("Linux ", 0), 0u) << identity.kernel;
}

TEST(RateBound, IsWhatNtpCorrectsAndFifteenPpm) {
    EXPECT_EQ(rate_bound_ppb(true, 0, 10'000), 15'001U);
    EXPECT_EQ(rate_bound_ppb(true, 65'536, 10'000), 16'001U) << "1 ppm";
    EXPECT_EQ(rate_bound_ppb(true, -20 * 65'536, 10'000), 35'001U);
    EXPECT_EQ(rate_bound_ppb(true, 500 * 65'536, 10'000), 515'001U);
    EXPECT_EQ(rate_bound_ppb(true, 50 * 65'536, 9'999), 65'001U) << "-100 ppm and +50";
    EXPECT_EQ(rate_bound_ppb(true, 0, 11'000), 100'015'001U) << "ADJ_TICK's 10 %";
    EXPECT_EQ(rate_bound_ppb(true, 0, 1'000'000), state::kRateBoundPpbMax);
    EXPECT_EQ(rate_bound_ppb(false, 0, 10'000), 500'000U);
}

TEST(TaiAnchor, SaysHowLongTheHostWasSuspended) {
    const auto read = [](clockid_t clock) {
        timespec now{};
        EXPECT_EQ(clock_gettime(clock, &now), 0);
        return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
    };
    const std::int64_t before = read(CLOCK_MONOTONIC);
    const std::int64_t boot = read(CLOCK_BOOTTIME);
    const std::int64_t after = read(CLOCK_MONOTONIC);
    const auto anchor = tai_anchor(*time::Hz::from_khz(1'000'000));
    ASSERT_TRUE(anchor && anchor->suspended_ns);
    const auto suspended = static_cast<std::int64_t>(*anchor->suspended_ns);
    EXPECT_GE(suspended, boot - after - state::kSuspendedSlackNs);
    EXPECT_LE(suspended, boot - before + state::kSuspendedSlackNs);
}

TEST(TaiAnchor, LiesOnTheKernelsTaiWithinItsBound) {
    // Any frequency near the truth will do: it only turns the bracket into ns.
    const auto frequency = *time::Hz::from_khz(1'000'000);
    timespec before{};
    ASSERT_EQ(clock_gettime(CLOCK_TAI, &before), 0);
    const auto counter_before = host_counter();
    const auto anchor = tai_anchor(frequency);
    const auto counter_after = host_counter();
    timespec after{};
    ASSERT_EQ(clock_gettime(CLOCK_TAI, &after), 0);
    ASSERT_TRUE(anchor) << anchor.error().message();
    const auto ns = [](const timespec& t) {
        return static_cast<std::uint64_t>(t.tv_sec) * time::kNanosPerSecond +
               static_cast<std::uint64_t>(t.tv_nsec);
    };
    EXPECT_GE(anchor->tai.raw(), ns(before));
    EXPECT_LE(anchor->tai.raw(), ns(after));
    EXPECT_GE((anchor->counter - counter_before).raw(), 0);
    EXPECT_GE((counter_after - anchor->counter).raw(), 0);
    EXPECT_GT(anchor->tai_bound_ns, 0u);
    EXPECT_EQ(anchor->frequency, frequency);
}

}  // namespace
}  // namespace continuo::kvm
