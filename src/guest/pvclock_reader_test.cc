// The pvclock reader under every interleaving with a writer's stores, and its arithmetic against
// time/'s; the fallback without the stable bit; the scheduler's clock.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "torn_page.h"
// After torn_page.h, which comes in before each access.
#include "continuo/abi/pvclock.h"
#include "continuo/guest/pvclock_reader.h"
#include "continuo/guest/sched_clock.h"
#include "edge_gen.h"

namespace continuo::guest {
namespace {

using test::for_each_placement;
using test::Interleaving;
using test::Stores;

static_assert(offsetof(continuo_pvclock_page, tsc_timestamp) ==
              offsetof(abi::pvclock_vcpu_time_info, tsc_timestamp));
static_assert(offsetof(continuo_pvclock_page, system_time) ==
              offsetof(abi::pvclock_vcpu_time_info, system_time));
static_assert(offsetof(continuo_pvclock_page, tsc_to_system_mul) ==
              offsetof(abi::pvclock_vcpu_time_info, tsc_to_system_mul));
static_assert(offsetof(continuo_pvclock_page, tsc_shift) ==
              offsetof(abi::pvclock_vcpu_time_info, tsc_shift));
static_assert(CONTINUO_PVCLOCK_TSC_STABLE == abi::kPVCLOCK_TSC_STABLE_BIT);
static_assert(CONTINUO_PVCLOCK_GUEST_STOPPED == abi::kPVCLOCK_GUEST_STOPPED);

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

/// Lines whose every mixture of fields reads as something else at kNow.
constexpr std::uint64_t kNow = 10'000;
constexpr std::array<continuo_pvclock_page, 3> kPages{{
    {2, 0, 1'000, 7'000'000, 0x8000'0000, 1, 1, {0, 0}},    // 7 000 000 + 9 000
    {4, 0, 3'000, 90'000'000, 0xc000'0000, -1, 0, {0, 0}},  // 90 000 000 + 2 625
    {6, 0, 4'096, 500'000'000, 0x9999'9999, 3, 3, {0, 0}},
}};

std::uint64_t ns_of(const continuo_pvclock_page& page) {
    const auto line = abi::pvclock_line({page.version,
                                         0,
                                         page.tsc_timestamp,
                                         page.system_time,
                                         page.tsc_to_system_mul,
                                         page.tsc_shift,
                                         page.flags,
                                         {}});
    return line->at(time::Count<time::GuestCounter>::from_raw(kNow)).raw();
}

TEST(PvclockReader, ReadsTheLineOfThePage) {
    test::counter_now = kNow;
    EXPECT_EQ(continuo_pvclock_read(&kPages[0]).ns, 7'009'000u);   // 9000 ticks of 1 ns
    EXPECT_EQ(continuo_pvclock_read(&kPages[1]).ns, 90'002'625u);  // 3500 * 3 / 4
    EXPECT_EQ(continuo_pvclock_read(&kPages[0]).flags, 1);
    EXPECT_EQ(continuo_pvclock_read(&kPages[0]).counter, kNow);
}

/// The stores of a writer that goes from one page to the next as the ABI says, and as KVM does.
void add_update(Stores& stores, continuo_pvclock_page& page, const continuo_pvclock_page& next) {
    stores.emplace_back([&] { page.version = next.version - 1; });
    stores.emplace_back([&] { page.tsc_timestamp = next.tsc_timestamp; });
    stores.emplace_back([&] { page.system_time = next.system_time; });
    stores.emplace_back([&] { page.tsc_to_system_mul = next.tsc_to_system_mul; });
    stores.emplace_back([&] { page.tsc_shift = next.tsc_shift; });
    stores.emplace_back([&] { page.flags = next.flags; });
    stores.emplace_back([&] { page.version = next.version; });
}

constexpr std::size_t kAccesses = 8;  // version, five fields and flags, the counter, version

/// Runs `reader` once for every way in which two updates can fall between its accesses.
template <class Reader>
std::size_t under_every_interleaving(Reader reader) {
    continuo_pvclock_page page{};
    Stores stores;
    add_update(stores, page, kPages[1]);
    add_update(stores, page, kPages[2]);
    std::size_t runs = 0;
    test::counter_now = kNow;
    for_each_placement(stores.size(), kAccesses, [&](const std::vector<std::size_t>& at) {
        page = kPages[0];
        reader(page, Interleaving{stores, at});
        ++runs;
    });
    return runs;
}

TEST(PvclockReader, NeverMixesTwoLinesWhereverTheWriterStands) {
    const std::array<std::uint64_t, 3> lines{ns_of(kPages[0]), ns_of(kPages[1]), ns_of(kPages[2])};
    std::set<std::uint64_t> seen;
    std::size_t retried = 0;
    const std::size_t runs = under_every_interleaving(
        [&](const continuo_pvclock_page& page, const Interleaving& interleaving) {
            const continuo_pvclock_reading reading = continuo_pvclock_read(&page);
            const std::size_t which = reading.ns == lines[0] ? 0 : reading.ns == lines[1] ? 1 : 2;
            ASSERT_EQ(reading.ns, lines[which]) << "a line that nobody published";
            ASSERT_EQ(reading.flags, kPages[which].flags) << "the flags of another line";
            seen.insert(reading.ns);
            if (interleaving.accesses() > kAccesses) ++retried;
        });
    EXPECT_EQ(runs, 319'770u);  // 22 over 8
    EXPECT_EQ(seen.size(), 3u);
    EXPECT_GT(retried, runs / 2);
}

TEST(PvclockReader, TheTestSeesAReaderThatDoesNotLookAtTheVersionTwice) {
    const std::set<std::uint64_t> lines{ns_of(kPages[0]), ns_of(kPages[1]), ns_of(kPages[2])};
    std::size_t mixed = 0;
    under_every_interleaving([&](const continuo_pvclock_page& page, const Interleaving&) {
        continuo_pvclock_reading reading{};
        (void)continuo_pvclock_try_read(&page, &reading);
        if (!lines.contains(reading.ns)) ++mixed;
    });
    EXPECT_GT(mixed, 1000u);
}

RC_GTEST_PROP(PvclockReader, AgreesWithTimesLineForEveryPageAndCounter, ()) {
    continuo_pvclock_page page{};
    page.version = 2;
    page.tsc_timestamp = *time::gen::u64();
    page.system_time = *time::gen::u64();
    page.tsc_to_system_mul = *time::gen::u32();
    page.tsc_shift = static_cast<std::int8_t>(*rc::gen::inRange(-63, 32));
    test::counter_now = *time::gen::u64();
    const auto line = abi::pvclock_line({2,
                                         0,
                                         page.tsc_timestamp,
                                         page.system_time,
                                         page.tsc_to_system_mul,
                                         page.tsc_shift,
                                         0,
                                         {}});
    const auto at = line->at(time::Count<time::GuestCounter>::from_raw(test::counter_now));
    RC_ASSERT(continuo_pvclock_read(&page).ns == at.raw());
}

TEST(PvclockReader, AShiftOutsideTheDomainIsNoUndefinedBehaviour) {
    continuo_pvclock_page page = kPages[0];
    for (const int shift : {-128, -64, 64, 127}) {
        page.tsc_shift = static_cast<std::int8_t>(shift);
        for (const std::uint64_t counter : {std::uint64_t{0}, kNow, kMax64}) {
            test::counter_now = counter;
            (void)continuo_pvclock_read(&page);
        }
    }
}

TEST(PvclockLast, NobodyReadsLessThanAnybodyHasRead) {
    continuo_pvclock_last last{};
    EXPECT_EQ(continuo_pvclock_not_before(&last, 100), 100u);
    EXPECT_EQ(continuo_pvclock_not_before(&last, 90), 100u);
    EXPECT_EQ(continuo_pvclock_not_before(&last, 100), 100u);
    EXPECT_EQ(continuo_pvclock_not_before(&last, 101), 101u);
    EXPECT_EQ(last.ns, 101u);
}

TEST(PvclockLast, HoldsWhereverAnotherCpuComesBetween) {
    // This CPU reads `mine`; another returns `theirs` before access k of this one.
    for (const std::uint64_t mine : {50u, 100u, 150u})
        for (const std::uint64_t theirs : {60u, 100u, 160u})
            for (std::size_t k = 0; k <= 3; ++k) {
                continuo_pvclock_last last{40, {}};
                const Stores stores{[&] { last.ns = std::max(last.ns, theirs); }};
                const std::vector<std::size_t> at{k};
                const Interleaving interleaving{stores, at};
                const std::uint64_t got = continuo_pvclock_not_before(&last, mine);
                EXPECT_GE(got, mine);
                EXPECT_GE(last.ns, got);
                if (k == 0) {
                    EXPECT_GE(got, theirs) << "the other had returned before";
                }
            }
}

TEST(PvclockLast, IsLeftAloneWhereThePageIsStable) {
    continuo_pvclock_page page = kPages[0];
    continuo_pvclock_last last{kMax64, {}};
    test::counter_now = kNow;
    EXPECT_EQ(continuo_pvclock_ns(&page, &last), 7'009'000u);
    page.flags = 0;
    EXPECT_EQ(continuo_pvclock_ns(&page, &last), kMax64);
}

TEST(PvclockStopped, IsTakenOnceAndOnlyThatFlag) {
    continuo_pvclock_page page = kPages[2];
    EXPECT_TRUE(continuo_pvclock_take_stopped(&page));
    EXPECT_EQ(page.flags, CONTINUO_PVCLOCK_TSC_STABLE);
    EXPECT_FALSE(continuo_pvclock_take_stopped(&page));
}

TEST(SchedClock, BeginsAtZeroAndNeverUnderflows) {
    const continuo_sched_clock clock = continuo_sched_clock_from(1'000);
    EXPECT_EQ(continuo_sched_clock_ns(clock, 1'000), 0u);
    EXPECT_EQ(continuo_sched_clock_ns(clock, 1'500), 500u);
    EXPECT_EQ(continuo_sched_clock_ns(clock, 999), 0u) << "another CPU, a ns behind";
    EXPECT_EQ(continuo_sched_clock_ns(clock, 0), 0u);
    EXPECT_EQ(continuo_sched_clock_ns(continuo_sched_clock_from(0), kMax64), kMax64);
}

}  // namespace
}  // namespace continuo::guest
