// The vmclock reader: bounds against big integers, what it refuses, and every cut of the writer's
// stores.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "torn_page.h"
// After torn_page.h, which comes in before each access.
#include "continuo/abi/vmclock.h"
#include "continuo/guest/vmclock_reader.h"
#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::guest {
namespace {

using test::Interleaving;
using test::Stores;
using time::oracle::Big;
using time::oracle::big;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

static_assert(offsetof(continuo_vmclock_page, seq_count) == offsetof(abi::vmclock_abi, seq_count));
static_assert(offsetof(continuo_vmclock_page, flags) == offsetof(abi::vmclock_abi, flags));
static_assert(offsetof(continuo_vmclock_page, clock_status) ==
              offsetof(abi::vmclock_abi, clock_status));
static_assert(offsetof(continuo_vmclock_page, counter_period_shift) ==
              offsetof(abi::vmclock_abi, counter_period_shift));
static_assert(offsetof(continuo_vmclock_page, time_maxerror_nanosec) ==
              offsetof(abi::vmclock_abi, time_maxerror_nanosec));
static_assert(offsetof(continuo_vmclock_page, vm_generation_counter) ==
              offsetof(abi::vmclock_abi, vm_generation_counter));
static_assert(CONTINUO_VMCLOCK_MAGIC == abi::kVMCLOCK_MAGIC);
static_assert(CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID == abi::kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID);
static_assert(CONTINUO_VMCLOCK_TIME_MAXERROR_VALID == abi::kVMCLOCK_FLAG_TIME_MAXERROR_VALID);
static_assert(CONTINUO_VMCLOCK_GENERATION_PRESENT == abi::kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT);

/// 1 GHz: 2^93 / 10^9 in units of 2^-93 s, shift 29; at counter 1000 it is 2000.5 s TAI.
continuo_vmclock_page gigahertz() {
    continuo_vmclock_page page{};
    page.magic = CONTINUO_VMCLOCK_MAGIC;
    page.size = 4096;
    page.version = 1;
    page.counter_id = CONTINUO_COUNTER_ID;
    page.time_type = CONTINUO_VMCLOCK_TAI;
    page.clock_status = abi::kVMCLOCK_STATUS_SYNCHRONIZED;
    page.seq_count = 2;
    page.flags = CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID | CONTINUO_VMCLOCK_TIME_MAXERROR_VALID |
                 CONTINUO_VMCLOCK_GENERATION_PRESENT;
    page.counter_period_shift = 29;
    page.counter_value = 1'000;
    page.counter_period_frac_sec =
        static_cast<std::uint64_t>((time::u128{1} << 93) / 1'000'000'000);
    // 10 ppm of a tick
    page.counter_period_maxerror_rate_frac_sec = page.counter_period_frac_sec / 100'000;
    page.time_sec = 2'000;
    page.time_frac_sec = std::uint64_t{1} << 63;
    page.time_maxerror_nanosec = 250;
    page.disruption_marker = 5;
    page.vm_generation_counter = 9;
    return page;
}

continuo_vmclock_status read(const continuo_vmclock_page& page, std::uint64_t counter,
                             continuo_vmclock_reading& reading) {
    test::counter_now = counter;
    return continuo_vmclock_read(&page, 3, &reading);
}

TEST(VmclockReader, GivesTaiAndItsBound) {
    continuo_vmclock_reading r{};
    // A second later: 2001.5 s, less the truncation of the period; 250 ns + 10 us, and
    // the roundings: one ns down, two up.
    ASSERT_EQ(read(gigahertz(), 1'000'001'000, r), CONTINUO_VMCLOCK_OK);
    EXPECT_EQ(r.tai_ns, 2'001'499'999'999u);
    EXPECT_TRUE(r.bounded);
    EXPECT_EQ(r.tai_ns - r.earliest_ns, 10'251u);
    EXPECT_EQ(r.latest_ns - r.tai_ns, 10'252u);
    EXPECT_EQ(r.disruption_marker, 5u);
    EXPECT_EQ(r.generation, 9u);
    EXPECT_EQ(r.counter, 1'000'001'000u);
}

TEST(VmclockReader, GoesBackwardsAlongTheLineBeforeTheCounterValue) {
    continuo_vmclock_reading r{};
    ASSERT_EQ(read(gigahertz(), 0, r), CONTINUO_VMCLOCK_OK);  // 1000 ticks earlier
    EXPECT_EQ(r.tai_ns, 2'000'499'998'999u) << "rounded down";
}

TEST(VmclockReader, WithoutBothErrorsThereIsNoBound) {
    for (const std::uint64_t flag :
         {CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID, CONTINUO_VMCLOCK_TIME_MAXERROR_VALID}) {
        continuo_vmclock_page page = gigahertz();
        page.flags &= ~flag;
        continuo_vmclock_reading r{};
        ASSERT_EQ(read(page, 1'000, r), CONTINUO_VMCLOCK_OK);
        EXPECT_FALSE(r.bounded);
        EXPECT_EQ(r.earliest_ns, r.tai_ns);
        EXPECT_EQ(r.latest_ns, r.tai_ns);
    }
}

TEST(VmclockReader, NamesWhatItCannotRead) {
    struct Row {
        void (*damage)(continuo_vmclock_page&);
        continuo_vmclock_status status;
    };
    const std::array rows{
        Row{[](auto& p) { p.magic = 0; }, CONTINUO_VMCLOCK_NO_PAGE},
        Row{[](auto& p) { p.magic = 0xffff'ffff; }, CONTINUO_VMCLOCK_NO_PAGE},
        Row{[](auto& p) { p.version = 2; }, CONTINUO_VMCLOCK_NO_PAGE},
        Row{[](auto& p) { p.size = 103; }, CONTINUO_VMCLOCK_NO_PAGE},
        Row{[](auto& p) { p.counter_id = 1 - CONTINUO_COUNTER_ID; }, CONTINUO_VMCLOCK_NO_COUNTER},
        Row{[](auto& p) { p.counter_id = 255; }, CONTINUO_VMCLOCK_NO_COUNTER},
        Row{[](auto& p) { p.time_type = abi::kVMCLOCK_TIME_UTC; }, CONTINUO_VMCLOCK_NOT_TAI},
        Row{[](auto& p) { p.time_type = 3; }, CONTINUO_VMCLOCK_NOT_TAI},
        Row{[](auto& p) { p.clock_status = 4; }, CONTINUO_VMCLOCK_UNKNOWN},
        Row{[](auto& p) { p.time_sec = kMax64; }, CONTINUO_VMCLOCK_UNKNOWN},
        Row{[](auto& p) { p.time_sec = 18'446'744'073; }, CONTINUO_VMCLOCK_UNKNOWN},
        Row{[](auto& p) { p.seq_count = 3; }, CONTINUO_VMCLOCK_BUSY},
    };
    for (const Row& row : rows) {
        continuo_vmclock_page page = gigahertz();
        row.damage(page);
        continuo_vmclock_reading r{};
        EXPECT_EQ(read(page, 1'000, r), row.status) << "row " << &row - rows.data();
    }
    continuo_vmclock_page early = gigahertz();
    early.time_sec = 0;
    continuo_vmclock_reading r{};
    EXPECT_EQ(read(early, std::uint64_t{1'000} - 600'000'000, r), CONTINUO_VMCLOCK_UNKNOWN)
        << "before 1970";
}

/// The true time of an exact reader, and the bound that it may at most be off by, from big
/// integers.
RC_GTEST_PROP(VmclockReader, TheBoundHoldsEveryTimeThatThePageAllows, ()) {
    continuo_vmclock_page page = gigahertz();
    page.counter_value = *time::gen::u64();
    page.counter_period_frac_sec = *time::gen::u64();
    page.counter_period_maxerror_rate_frac_sec = *time::gen::u64();
    page.counter_period_shift = static_cast<std::uint8_t>(*rc::gen::inRange(0, 200));
    page.time_sec = *time::gen::u64() >> *rc::gen::inRange(0, 40);
    page.time_frac_sec = *time::gen::u64();
    page.time_maxerror_nanosec = *time::gen::u64();
    const std::uint64_t counter = *time::gen::u64();
    continuo_vmclock_reading r{};
    if (read(page, counter, r) != CONTINUO_VMCLOCK_OK) return;

    // All in units of 2^-(64 + shift) s.
    const unsigned shift = page.counter_period_shift;
    const Big unit = time::oracle::pow2(shift);
    const Big run = big(static_cast<std::int64_t>(counter - page.counter_value));
    const Big ticks = run < 0 ? Big{-run} : run;
    const Big base = (big(page.time_sec) * time::oracle::pow2(64) + big(page.time_frac_sec)) * unit;
    const Big exact = base + run * big(page.counter_period_frac_sec);
    const Big second = time::oracle::pow2(64) * unit;
    const Big billion = big(std::uint64_t{1'000'000'000});
    const Big drift = ticks * big(page.counter_period_maxerror_rate_frac_sec) * billion +
                      big(page.time_maxerror_nanosec) * second;
    const Big lowest = exact * billion - drift;
    const Big highest = exact * billion + drift;
    RC_ASSERT(r.earliest_ns == 0 || big(r.earliest_ns) * second <= lowest);
    RC_ASSERT(r.latest_ns == kMax64 || big(r.latest_ns) * second >= highest);
    // and no wider than what the page says by more than four ns
    const Big four = big(std::uint64_t{4}) * second;
    RC_ASSERT(r.earliest_ns == 0 || big(r.earliest_ns) * second >= lowest - four);
    RC_ASSERT(r.latest_ns == kMax64 || big(r.latest_ns) * second <= highest + four);
    const Big tai = big(r.tai_ns) * second;
    RC_ASSERT(tai <= exact * billion && exact * billion < tai + second + second);
}

/// Every field of the other page is another, so that any mixture shows.
continuo_vmclock_page after_migration() {
    continuo_vmclock_page page = gigahertz();
    page.seq_count = 4;
    page.disruption_marker = 6;
    page.flags = CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID | CONTINUO_VMCLOCK_TIME_MAXERROR_VALID |
                 CONTINUO_VMCLOCK_GENERATION_PRESENT | 4;
    page.counter_period_shift = 28;
    page.counter_value = 777;
    page.counter_period_frac_sec += 12'345;
    page.counter_period_maxerror_rate_frac_sec += 999;
    page.time_sec = 3'000;
    page.time_frac_sec = 17;
    page.time_maxerror_nanosec = 4'000;
    page.vm_generation_counter = 10;
    return page;
}

Stores update(continuo_vmclock_page& page, const continuo_vmclock_page& next) {
    return {
        [&] { page.seq_count = next.seq_count - 1; },
        [&] { page.disruption_marker = next.disruption_marker; },
        [&] { page.flags = next.flags; },
        [&] { page.counter_period_shift = next.counter_period_shift; },
        [&] { page.counter_value = next.counter_value; },
        [&] { page.counter_period_frac_sec = next.counter_period_frac_sec; },
        [&] {
            page.counter_period_maxerror_rate_frac_sec = next.counter_period_maxerror_rate_frac_sec;
        },
        [&] { page.time_sec = next.time_sec; },
        [&] { page.time_frac_sec = next.time_frac_sec; },
        [&] { page.time_maxerror_nanosec = next.time_maxerror_nanosec; },
        [&] { page.vm_generation_counter = next.vm_generation_counter; },
        [&] { page.seq_count = next.seq_count; },
    };
}

bool same(const continuo_vmclock_reading& a, const continuo_vmclock_reading& b) {
    return a.tai_ns == b.tai_ns && a.earliest_ns == b.earliest_ns && a.latest_ns == b.latest_ns &&
           a.disruption_marker == b.disruption_marker && a.generation == b.generation;
}

/// Calls `reader` with the page at prefix p of the writer's stores before access i and at prefix q
/// from then on, for every p <= q and i: what stands in the page at a reader's load is a prefix.
template <class Reader>
void at_every_pair_of_prefixes(Reader reader) {
    constexpr std::size_t kAccesses = 19;
    const continuo_vmclock_page next = after_migration();
    continuo_vmclock_page page{};
    const Stores stores = update(page, next);
    test::counter_now = 50'000;
    for (std::size_t p = 0; p <= stores.size(); ++p)
        for (std::size_t q = p; q <= stores.size(); ++q)
            for (std::size_t i = 0; i <= kAccesses; ++i) {
                page = gigahertz();
                std::vector<std::size_t> at(stores.size(), 2 * kAccesses);
                for (std::size_t s = 0; s < q; ++s)
                    at[s] = s < p ? 0 : i;
                const Interleaving interleaving{stores, at};
                reader(page);
            }
}

TEST(VmclockReader, NeverMixesTwoMappingsWhereverTheWriterStands) {
    continuo_vmclock_reading before{}, after{};
    ASSERT_EQ(read(gigahertz(), 50'000, before), CONTINUO_VMCLOCK_OK);
    ASSERT_EQ(read(after_migration(), 50'000, after), CONTINUO_VMCLOCK_OK);
    ASSERT_FALSE(same(before, after));
    std::size_t old = 0, fresh = 0, busy = 0;
    at_every_pair_of_prefixes([&](const continuo_vmclock_page& page) {
        continuo_vmclock_reading r{};
        if (continuo_vmclock_try_read(&page, &r) != CONTINUO_VMCLOCK_OK) {
            ++busy;
            return;
        }
        ASSERT_TRUE(same(r, before) || same(r, after));
        ++(same(r, before) ? old : fresh);
    });
    EXPECT_GT(old, 0u);
    EXPECT_GT(fresh, 0u);
    EXPECT_GT(busy, 500u);
}

TEST(VmclockReader, TheTestSeesAReaderWithoutTheSequence) {
    continuo_vmclock_reading before{}, after{};
    ASSERT_EQ(read(gigahertz(), 50'000, before), CONTINUO_VMCLOCK_OK);
    ASSERT_EQ(read(after_migration(), 50'000, after), CONTINUO_VMCLOCK_OK);
    std::size_t mixed = 0;
    at_every_pair_of_prefixes([&](const continuo_vmclock_page& page) {
        const continuo_vmclock_words words = continuo_vmclock_load(&page);
        continuo_vmclock_reading r{};
        if (continuo_vmclock_evaluate(&words, 50'000, &r) != CONTINUO_VMCLOCK_OK) return;
        if (!same(r, before) && !same(r, after)) ++mixed;
    });
    EXPECT_GT(mixed, 100u);
}

}  // namespace
}  // namespace continuo::guest
