// The host's half of the notice page, step by step. The protocol with a guest, in every
// interleaving, is tested where the guest's half is (src/guest/time_travel_page_test.cc).
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

#include "continuo/abi/time_travel_host.h"

namespace continuo::abi {
namespace {

using Seen = TimeTravelHost::Seen;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();
constexpr TimeTravel kSecond{1'000'000'000, 1'000'000'000, 300};

void carry_out(const TimeTravelStores& stores, time_travel_page& page) {
    for (const TimeTravelStore& store : stores.list()) {
        ASSERT_EQ(store.offset % 8, 0u);
        ASSERT_LE(store.offset + 8, sizeof(page));
        std::memcpy(reinterpret_cast<char*>(&page) + store.offset, &store.value, 8);
    }
}

/// A host with 5 s for the guest to answer, and the page as the guest finds it.
struct Vm {
    TimeTravelHost host{5'000'000'000};
    time_travel_page page{};

    Vm() { carry_out(host.reset(), page); }
    void raise(const TimeTravel& travel, std::uint64_t now) {
        carry_out(host.raise(travel, page.migration_sequence, now), page);
    }
    Seen look(std::uint64_t now) {
        const TimeTravelHost::Look look = host.look(page.migration_sequence, now);
        carry_out(look.stores, page);
        return look.seen;
    }
    /// As a well-behaved guest does.
    void answer() {
        page.accounted_ns = page.time_travelled_ns;
        ++page.migration_sequence;
    }
};

TEST(TimeTravelHost, AFreshPageIsValidAndQuiet) {
    Vm vm;
    EXPECT_EQ(vm.page.magic, kTimeTravelMagic);
    EXPECT_EQ(vm.page.size, sizeof(time_travel_page));
    EXPECT_EQ(vm.page.version, kTimeTravelVersion);
    EXPECT_EQ(vm.page.migration_sequence, 0u);
    EXPECT_EQ(vm.page.release_after_ns, 5'000'000'000u);
    EXPECT_FALSE(vm.host.open());
    EXPECT_EQ(vm.host.deadline(), std::nullopt);
    EXPECT_EQ(vm.look(kMax64), Seen::kNothing);
}

TEST(TimeTravelHost, OneMigrationOneAnswer) {
    Vm vm;
    vm.raise(kSecond, 100);
    EXPECT_EQ(vm.page.migration_sequence, 1u);
    EXPECT_EQ(vm.page.time_travelled_ns, 1'000'000'000u);
    EXPECT_EQ(vm.page.gap_ns, 1'000'000'000u);
    EXPECT_EQ(vm.page.maxerror_ns, 300u);
    EXPECT_NE(vm.page.released_sequence, 1u);
    EXPECT_EQ(vm.host.deadline(), 5'000'000'100u);
    EXPECT_EQ(vm.look(200), Seen::kNothing);
    vm.answer();
    EXPECT_EQ(vm.look(300), Seen::kAnswered);
    EXPECT_EQ(vm.look(400), Seen::kNothing);
    EXPECT_FALSE(vm.host.open());
    EXPECT_EQ(vm.host.counts(), (TimeTravelCounts{1, 1, 0, 0, 0}));
}

TEST(TimeTravelHost, ASecondMigrationAddsAndLeavesTheFirstSequenceBehind) {
    Vm vm;
    vm.raise(kSecond, 0);
    vm.raise({-250'000'000, 7, 1}, 10);
    EXPECT_EQ(vm.page.migration_sequence, 3u);
    EXPECT_EQ(vm.page.time_travelled_ns, 750'000'000u);
    EXPECT_EQ(vm.page.gap_ns, 1'000'000'007u);
    EXPECT_EQ(vm.page.maxerror_ns, 301u);
    EXPECT_EQ(vm.host.deadline(), 5'000'000'010u) << "the time to answer begins anew";
    vm.answer();
    // Answered after the last look, and found so by the next migration.
    vm.raise(kSecond, 20);
    EXPECT_EQ(vm.page.migration_sequence, 5u);
    EXPECT_EQ(vm.page.time_travelled_ns, 1'750'000'000u);
    EXPECT_EQ(vm.host.counts(), (TimeTravelCounts{3, 1, 1, 0, 0}));
}

TEST(TimeTravelHost, AGuestThatNeverAnswersHoldsItsReadersForTheStatedTime) {
    Vm vm;
    vm.raise(kSecond, 0);
    EXPECT_EQ(vm.look(4'999'999'999), Seen::kNothing);
    EXPECT_EQ(vm.look(5'000'000'000), Seen::kReleased);
    EXPECT_EQ(vm.page.released_sequence, 1u);
    EXPECT_EQ(vm.page.migration_sequence, 1u) << "the notice still stands";
    EXPECT_EQ(vm.host.deadline(), std::nullopt);
    EXPECT_EQ(vm.look(6'000'000'000), Seen::kNothing) << "told once";
    vm.raise(kSecond, 7'000'000'000);
    EXPECT_NE(vm.page.released_sequence, 3u) << "held again";
    EXPECT_EQ(vm.page.time_travelled_ns, 2'000'000'000u);
    vm.answer();
    EXPECT_EQ(vm.look(7'000'000'001), Seen::kAnswered);
    EXPECT_EQ(vm.host.counts(), (TimeTravelCounts{2, 1, 1, 1, 0}));
}

TEST(TimeTravelHost, ALateAnswerIsAnAnswer) {
    Vm vm;
    vm.raise(kSecond, 0);
    EXPECT_EQ(vm.look(5'000'000'000), Seen::kReleased);
    vm.answer();
    EXPECT_EQ(vm.look(9'000'000'000), Seen::kAnswered);
}

TEST(TimeTravelHost, NobodyWaitsWhereRealtimeDoesNotLag) {
    Vm vm;
    vm.raise({0, 2'000'000'000, 5}, 0);
    EXPECT_EQ(vm.page.migration_sequence, 1u);
    EXPECT_EQ(vm.page.released_sequence, 1u);
    EXPECT_EQ(vm.host.deadline(), std::nullopt);
    vm.raise(kSecond, 10);
    EXPECT_NE(vm.page.released_sequence, vm.page.migration_sequence);
    vm.raise({0, 1, 0}, 20);
    EXPECT_NE(vm.page.released_sequence, vm.page.migration_sequence) << "the second still lags";
}

TEST(TimeTravelHost, GarbageIsNamedAndChangesNothing) {
    for (const std::uint64_t garbage :
         {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{4}, kMax64}) {
        Vm vm;
        vm.raise(kSecond, 0);
        std::memset(&vm.page, 0xa5, sizeof(vm.page));
        vm.page.migration_sequence = garbage;
        EXPECT_EQ(vm.look(10), Seen::kGarbage);
        EXPECT_TRUE(vm.host.open());
        EXPECT_EQ(vm.look(5'000'000'000), Seen::kReleased);
        EXPECT_EQ(vm.page.migration_sequence, 1u) << "readers find what they wait for released";
        EXPECT_EQ(vm.page.released_sequence, 1u);
        vm.page.migration_sequence = garbage;
        vm.raise(kSecond, 6'000'000'000);
        Vm well;
        well.raise(kSecond, 0);
        well.raise(kSecond, 6'000'000'000);
        EXPECT_EQ(std::memcmp(&vm.page, &well.page, offsetof(time_travel_page, accounted_ns)), 0)
            << "the host's half is whole again";
        EXPECT_EQ(vm.host.counts().garbage, 3u);
    }
}

TEST(TimeTravelHost, AnEvenSequenceThatTheGuestMovesOnIsNoAnswer) {
    Vm vm;
    vm.page.migration_sequence = 1;
    EXPECT_EQ(vm.look(0), Seen::kGarbage);
    vm.page.migration_sequence = 2;
    vm.raise(kSecond, 0);
    EXPECT_EQ(vm.page.migration_sequence, 1u);
    EXPECT_EQ(vm.host.counts(), (TimeTravelCounts{1, 0, 0, 0, 2}));
}

TEST(TimeTravelHost, AResetForgetsTheNoticeAndKeepsTheSums) {
    Vm vm;
    vm.raise(kSecond, 0);
    carry_out(vm.host.reset(), vm.page);
    EXPECT_EQ(vm.page.migration_sequence, 2u) << "an answer of before fails";
    EXPECT_EQ(vm.page.accounted_ns, vm.page.time_travelled_ns);
    EXPECT_EQ(vm.host.deadline(), std::nullopt);
    vm.raise(kSecond, 0);
    EXPECT_EQ(vm.page.time_travelled_ns - vm.page.accounted_ns, 1'000'000'000u);
    EXPECT_EQ(vm.page.migration_sequence, 3u);
}

TEST(TimeTravelHost, GoesOnOnAnotherHostWhereItStood) {
    Vm vm;
    vm.raise(kSecond, 0);
    const TimeTravelState held = vm.host.state();
    auto there = TimeTravelHost::restore(held, 2'000, 70);
    ASSERT_TRUE(there);
    EXPECT_EQ(there->state(), held);
    EXPECT_EQ(there->deadline(), 2'070u) << "by the new host's clock, from its resume";
    EXPECT_EQ(vm.look(5'000'000'000), Seen::kReleased);
    there = TimeTravelHost::restore(vm.host.state(), 2'000, 70);
    ASSERT_TRUE(there);
    EXPECT_EQ(there->deadline(), std::nullopt) << "released stays released";
    vm.answer();
    there->raise(kSecond, vm.page.migration_sequence, 80);
    EXPECT_EQ(there->sequence(), 3u);
    EXPECT_EQ(there->counts(), (TimeTravelCounts{1, 1, 0, 0, 0}));
}

TEST(TimeTravelHost, AStateThatCannotBeIsRefused) {
    EXPECT_FALSE(TimeTravelHost::restore({2, 5, 5, 0, 0, true}, 1, 0));
    EXPECT_FALSE(TimeTravelHost::restore({2, 5, 5, 0, 1, false}, 1, 0));
    EXPECT_TRUE(TimeTravelHost::restore({2, 5, 5, 0, 0, false}, 1, 0));
    EXPECT_TRUE(TimeTravelHost::restore({3, 5, 5, 0, 5, true}, 1, 0));
    const auto late = TimeTravelHost::restore({3, 5, 5, 0, 5, false}, kMax64, 10);
    EXPECT_EQ(late->deadline(), kMax64) << "saturates";
}

TEST(TimeTravelHost, SumsWrapWithoutHarm) {
    Vm vm;
    for (int i = 0; i < 3; ++i)
        vm.raise({std::numeric_limits<std::int64_t>::min(), kMax64, kMax64}, kMax64);
    EXPECT_EQ(vm.page.time_travelled_ns - vm.page.accounted_ns, std::uint64_t{1} << 63);
    EXPECT_EQ(vm.host.deadline(), kMax64);
}

}  // namespace
}  // namespace continuo::abi
