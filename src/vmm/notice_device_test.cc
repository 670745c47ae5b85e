// The notice device on memory without a VM: what a guest finds after each event, and that whatever
// it writes there costs nobody else anything.
#include "continuo/vmm/notice_device.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <set>
#include <thread>

#include "continuo/guest/time_travel_page.h"

namespace continuo::vmm {
namespace {

using state::ErrorCode;
using namespace std::chrono_literals;

constexpr std::uint64_t kPage = 0xd000;
constexpr std::uint64_t kSequence = offsetof(abi::time_travel_page, migration_sequence);

class Notice : public testing::Test {
  protected:
    NoticeDevice::Wiring wiring() {
        return {memory_, [this](std::uint64_t gpa) { dirty_.insert(gpa); },
                [this] { ++interrupts_; }};
    }
    std::unique_ptr<NoticeDevice> start(std::uint64_t release_after_ns = 3'600'000'000'000) {
        auto device = NoticeDevice::create(wiring(), kPage, release_after_ns);
        EXPECT_TRUE(device) << device.error().message();
        return std::move(*device);
    }
    /// As on the next host, with the same memory.
    std::unique_ptr<NoticeDevice> moved(NoticeDevice& from) {
        dirty_.clear();
        auto device = NoticeDevice::restore(wiring(), from.save());
        EXPECT_TRUE(device) << device.error().message();
        EXPECT_TRUE(dirty_.empty()) << "what came is not touched before something is to be told";
        return std::move(*device);
    }
    /// The guest's view, by the guest's own code.
    continuo_time_travel_page* page(std::uint64_t gpa = kPage) {
        return reinterpret_cast<continuo_time_travel_page*>(memory_.host() + gpa);
    }
    /// What an agent does; answers what REALTIME was stepped by.
    std::int64_t repair() {
        std::int64_t by = 0;
        continuo_travel travel;
        while (continuo_travel_pending(page(), &travel)) {
            by += travel.delta_ns;
            continuo_travel_answer(page(), &travel);
        }
        return by;
    }
    std::uint64_t sequence() { return *memory_.load<std::uint64_t>(kPage + kSequence); }

    kvm::GuestMemory memory_ = std::move(*kvm::GuestMemory::create(1 << 20));
    std::set<std::uint64_t> dirty_;
    int interrupts_ = 0;
};

TEST_F(Notice, AStartingGuestFindsAQuietPage) {
    const auto device = start(7'000);
    EXPECT_TRUE(continuo_travel_page_valid(page()));
    EXPECT_EQ(page()->release_after_ns, 7'000u);
    EXPECT_EQ(sequence(), 0u);
    EXPECT_EQ(dirty_, std::set<std::uint64_t>{kPage});
    EXPECT_EQ(interrupts_, 0);
    device->on_running(true);
    EXPECT_EQ(device->tend(), std::nullopt);
}

// Bytes of a peer may say so, and `--release-after 0s`; it moves again before anybody looks.
TEST_F(Notice, WhoIsGivenNoTimeIsReleasedWhenItIsSaved) {
    const auto source = start(0);
    ASSERT_TRUE(source->raise({5'000, 6'000, 70}));
    EXPECT_NE(page()->released_sequence, page()->migration_sequence);
    const NoticeState saved = source->save();
    EXPECT_TRUE(saved.sums.released);
    EXPECT_EQ(saved.sums.unanswered_ns, 5'000u) << "released is not answered";
    EXPECT_EQ(page()->released_sequence, page()->migration_sequence);

    NoticeState foreign = saved;
    foreign.sums.released = false;
    const auto device = NoticeDevice::restore(wiring(), foreign);
    ASSERT_TRUE(device);
    EXPECT_EQ((*device)->save(), saved);
}

TEST_F(Notice, IsTakenAlongRaisedAnsweredAndCounted) {
    const auto source = start();
    const auto device = moved(*source);
    EXPECT_TRUE(device->raise({5'000, 6'000, 70}));
    device->announce();
    EXPECT_EQ(interrupts_, 1);
    EXPECT_EQ(dirty_, std::set<std::uint64_t>{kPage});
    device->on_running(true);
    EXPECT_EQ(device->tend(), std::nullopt);
    EXPECT_EQ(repair(), 5'000);
    EXPECT_EQ(device->tend(), NoticeDevice::Event::kAnswered);
    EXPECT_EQ(device->tend(), std::nullopt) << "told once";
    const NoticeStatus status = device->status();
    EXPECT_EQ(status.state.sums.sequence, 2u);
    EXPECT_EQ(status.state.sums.time_travelled_ns, 5'000u);
    EXPECT_EQ(status.state.sums.maxerror_ns, 70u);
    EXPECT_EQ(status.counts.answered, 1u);
    EXPECT_TRUE(status.answered_after_ns);
}

TEST_F(Notice, RaisedAgainBeforeTheGuestRunsTheLastCallCounts) {
    const auto source = start();
    const auto device = moved(*source);
    for (const std::int64_t delta : {1'000, 2'000, 3'000})
        EXPECT_TRUE(device->raise({delta, 9'000, 1}));
    EXPECT_EQ(sequence(), 1u);
    EXPECT_EQ(repair(), 3'000);
    EXPECT_EQ(device->save().sums.gap_ns, 9'000u);
    EXPECT_EQ(device->status().counts.raised, 1u);
}

TEST_F(Notice, ASecondMigrationWhileNobodyAnsweredLosesNothing) {
    const auto first = start();
    const auto second = moved(*first);
    EXPECT_TRUE(second->raise({5'000, 5'000, 1}));
    second->on_running(true);
    second->on_running(false);
    const auto third = moved(*second);
    EXPECT_TRUE(third->raise({700, 700, 1}));
    EXPECT_EQ(sequence(), 3u);
    EXPECT_EQ(repair(), 5'700);
    EXPECT_EQ(sequence(), 4u);
    EXPECT_EQ(third->save().sums.unanswered_ns, 0u);
    EXPECT_EQ(third->status().counts.overtaken, 1u);
}

TEST_F(Notice, AnAnswerBetweenTheStopAndTheSaveIsTaken) {
    const auto source = start();
    EXPECT_TRUE(source->raise({5'000, 5'000, 1}));
    source->on_running(true);
    EXPECT_EQ(repair(), 5'000);
    source->on_running(false);
    const auto device = moved(*source);
    EXPECT_EQ(source->status().counts.answered, 1u);
    EXPECT_TRUE(device->raise({10, 10, 1}));
    EXPECT_EQ(repair(), 10);
    EXPECT_EQ(device->status().counts.overtaken, 0u);
}

TEST_F(Notice, NobodyWaitsLongerThanTheGuestHadToAnswer) {
    const auto device = start(20'000'000);
    EXPECT_TRUE(device->raise({5'000, 5'000, 1}));
    std::this_thread::sleep_for(30ms);
    EXPECT_EQ(device->tend(), std::nullopt) << "the guest did not run";
    EXPECT_EQ(continuo_gate_look(page()).state, CONTINUO_GATE_HELD);
    device->on_running(true);
    std::this_thread::sleep_for(30ms);
    EXPECT_EQ(device->tend(), NoticeDevice::Event::kReleased);
    EXPECT_EQ(continuo_gate_look(page()).state, CONTINUO_GATE_RELEASED);
    EXPECT_TRUE(device->save().sums.released);
    EXPECT_EQ(repair(), 5'000) << "a late agent finds it still";
    EXPECT_EQ(device->tend(), NoticeDevice::Event::kAnswered);
}

TEST_F(Notice, GarbageIsNamedOnceAndTheNextNoticeCarriesAll) {
    const auto source = start(20'000'000);
    EXPECT_TRUE(source->raise({5'000, 5'000, 1}));
    source->on_running(true);
    std::memset(memory_.host() + kPage, 0xa5, 4096);
    EXPECT_EQ(source->tend(), NoticeDevice::Event::kGarbage);
    EXPECT_EQ(source->status().garbage, 0xa5a5a5a5a5a5a5a5u);
    EXPECT_EQ(source->tend(), std::nullopt);
    std::this_thread::sleep_for(30ms);
    EXPECT_EQ(source->tend(), NoticeDevice::Event::kReleased) << "its time is up all the same";
    EXPECT_EQ(sequence(), 1u) << "and the sequence is put right";
    std::memset(memory_.host() + kPage, 0x5a, 4096);
    source->on_running(false);
    const auto device = moved(*source);
    EXPECT_TRUE(device->raise({700, 700, 1}));
    EXPECT_TRUE(continuo_travel_page_valid(page()));
    EXPECT_EQ(page()->time_travelled_ns, 5'700u) << "the host's own numbers";
    EXPECT_EQ(sequence(), 3u);
}

TEST_F(Notice, AGuestPlacesThePageWhereMemoryIsAndNowhereElse) {
    const auto device = start();
    EXPECT_TRUE(device->raise({5'000, 5'000, 1}));
    EXPECT_TRUE(device->place(0x20000));
    EXPECT_TRUE(continuo_travel_page_valid(page(0x20000)));
    EXPECT_EQ(page(0x20000)->migration_sequence, 2u) << "it begins anew there";
    EXPECT_EQ(page(0x20000)->accounted_ns, 5'000u);
    for (const std::uint64_t nowhere :
         {std::uint64_t{1} << 20, ~std::uint64_t{0xfff}, ~std::uint64_t{0}, std::uint64_t{0x20001},
          std::uint64_t{0xff800}, std::uint64_t{1} << 63}) {
        EXPECT_FALSE(device->place(nowhere)) << std::hex << nowhere;
        EXPECT_EQ(device->page(), 0u);
        EXPECT_FALSE(device->raise({10, 10, 1})) << "there is no page to tell it by";
        EXPECT_EQ(device->tend(), std::nullopt);
    }
    const auto next = moved(*device);
    EXPECT_EQ(next->page(), 0u);
    EXPECT_TRUE(next->place(kPage));
    EXPECT_TRUE(next->raise({10, 10, 1}));
    EXPECT_EQ(repair(), 10);
}

TEST_F(Notice, ForeignStateThatCannotBeIsRefused) {
    const auto refused = [this](const NoticeState& state) {
        const auto device = NoticeDevice::restore(wiring(), state);
        return !device && device.error().code == ErrorCode::kMalformed;
    };
    EXPECT_TRUE(refused({.page = 0xd001}));
    EXPECT_TRUE(refused({.page = std::uint64_t{1} << 20}));
    EXPECT_TRUE(refused({.page = ~std::uint64_t{0xfff}}));
    EXPECT_TRUE(refused({.page = kPage, .sums = {2, 0, 0, 0, 1, false}}));
    EXPECT_TRUE(refused({.page = kPage, .sums = {2, 0, 0, 0, 0, true}}));
    EXPECT_FALSE(refused({.page = kPage, .sums = {3, 0, 0, 0, 1, false}}));
    const auto outside = NoticeDevice::create(wiring(), std::uint64_t{1} << 20, 1);
    ASSERT_FALSE(outside);
    EXPECT_EQ(outside.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace continuo::vmm
