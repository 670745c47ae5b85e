// The vmclock device on memory without a VM, read by the guest's own reader: mappings stay inside
// the bound of the one before and hold the true time however the host's clock wanders; a host clock
// that is set is told; and what a guest does to its page does nothing.
#include "continuo/vmm/vmclock_device.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <limits>
#include <set>

#include "continuo/guest/vmclock_reader.h"

namespace continuo::vmm {
namespace {

using abi::VmclockHost;
using Change = VmclockHost::Change;
using state::ErrorCode;

constexpr std::uint64_t kPage = 0xd1000;
constexpr std::uint64_t kHz = 2'500'000'000;
constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kTai0 = 1'800'000'000 * kSecond;
constexpr std::uint64_t kAhead = std::uint64_t{1} << 40;  ///< of the guest's counter

#if defined(__x86_64__)
constexpr std::uint8_t kCounter = abi::kVMCLOCK_COUNTER_X86_TSC;
#else
constexpr std::uint8_t kCounter = abi::kVMCLOCK_COUNTER_ARM_VCNT;
#endif

continuo_vmclock_words words_of(const abi::vmclock_abi& page) {
    continuo_vmclock_page copy;
    std::memcpy(&copy, &page, sizeof copy);
    return continuo_vmclock_load(&copy);
}

continuo_vmclock_reading read_at(const abi::vmclock_abi& page, std::uint64_t counter) {
    const continuo_vmclock_words words = words_of(page);
    continuo_vmclock_reading reading{};
    EXPECT_EQ(continuo_vmclock_judge(&words), CONTINUO_VMCLOCK_OK);
    EXPECT_EQ(continuo_vmclock_evaluate(&words, counter, &reading), CONTINUO_VMCLOCK_OK);
    EXPECT_TRUE(reading.bounded);
    return reading;
}

/// A host whose counter runs at another rate than it states, and whose clock wanders within what it
/// admits, as NTP has it: now and then its error shrinks, else the bound grows.
class WanderingHost {
  public:
    /// `off_ppb`: the counter's true rate, less the stated one.
    explicit WanderingHost(std::int64_t off_ppb) : off_ppb_{off_ppb} {}

    void run(std::uint64_t ticks) { ticks_ += ticks; }
    std::uint64_t guest_counter() const { return kAhead + ticks_; }
    /// The true TAI, to the ns: a tick is longer where the counter is slow.
    std::uint64_t true_tai() const {
        const auto ns = static_cast<time::i128>(ticks_) * 1'000'000'000 / kHz;
        return kTai0 + static_cast<std::uint64_t>(ns - ns * off_ppb_ / 1'000'000'000);
    }
    /// The clock, at an error between its bounds.
    abi::VmclockSample sample(std::uint64_t bound_ns, std::int64_t error_ns,
                              std::uint64_t rate_bound_ppb) const {
        return {time::Count<time::GuestCounter>::from_raw(guest_counter()),
                true_tai() + static_cast<std::uint64_t>(error_ns),
                bound_ns + 2,  // true_tai() is to the ns
                37,
                true,
                abi::VmclockRate::make(*time::Hz::from_hz(kHz), 0, rate_bound_ppb)};
    }

  private:
    std::int64_t off_ppb_;
    std::uint64_t ticks_ = 0;
};

std::int64_t within(std::uint64_t bound) {
    const auto reach = static_cast<std::int64_t>(bound);
    return *rc::gen::inRange<std::int64_t>(-reach, reach + 1);
}

RC_GTEST_PROP(VmclockMapping, EachLiesInsideTheBoundOfTheOneBeforeAndHoldsTheTruth, ()) {
    const auto rate_bound = *rc::gen::inRange<std::uint64_t>(0, 100'000);
    WanderingHost host{within(rate_bound)};
    VmclockHost clock{{}, kCounter};
    auto bound = *rc::gen::inRange<std::uint64_t>(100, 20'000'000);
    clock.begin(host.sample(bound, within(bound), rate_bound));
    std::uint64_t refits = 0;
    for (int i = 0; i < 60; ++i) {
        const auto ticks = *rc::gen::inRange<std::uint64_t>(0, 40 * kHz);
        host.run(ticks);
        // The kernel lets its maxerror grow by 500 ppm; an update of NTP's gives another.
        bound += ticks / 5'000;
        if (*rc::gen::inRange(0, 3) == 0) bound = *rc::gen::inRange<std::uint64_t>(100, 20'000'000);
        const abi::vmclock_abi before = clock.page();
        const auto change = clock.offer(host.sample(bound, within(bound), rate_bound));
        RC_ASSERT(change == Change::kNone || change == Change::kRefit);
        const abi::vmclock_abi after = clock.page();
        RC_ASSERT(after.seq_count % 2 == 0u);
        RC_ASSERT((change == Change::kNone) == (after == before));
        const std::uint64_t now = host.guest_counter();
        const auto old_reading = read_at(before, now);
        const auto new_reading = read_at(after, now);
        RC_ASSERT(old_reading.earliest_ns <= new_reading.earliest_ns);
        RC_ASSERT(new_reading.latest_ns <= old_reading.latest_ns);
        RC_ASSERT(new_reading.earliest_ns <= host.true_tai());
        RC_ASSERT(host.true_tai() <= new_reading.latest_ns);
        // And what a reader makes of it later is what the old mapping allowed it to be.
        const std::uint64_t later = now + 10 * kHz;
        RC_ASSERT(read_at(before, later).earliest_ns <= read_at(after, later).tai_ns);
        RC_ASSERT(read_at(after, later).tai_ns <= read_at(before, later).latest_ns);
        if (change == Change::kRefit) ++refits;
    }
    RC_ASSERT(clock.counts().refits == refits);
    RC_ASSERT(clock.counts().doubts == 0u);
    RC_TAG(refits > 5 ? "many refits" : "few refits");
}

TEST(VmclockMapping, FollowsABetterReadingAndIsQuietWithoutOne) {
    WanderingHost host{10'000};
    VmclockHost clock{{}, kCounter};
    clock.begin(host.sample(16'000'000'000, 0, 500'000));  // not synchronised yet
    host.run(kHz);
    EXPECT_EQ(clock.offer(host.sample(1'000'000, 300'000, 25'000)), Change::kRefit);
    EXPECT_EQ(read_at(clock.page(), host.guest_counter()).tai_ns, host.true_tai() + 300'000 - 1)
        << "the host's own time, cut off to the ns";
    int quiet = 0;
    for (int second = 0; second < 60; ++second) {
        host.run(kHz);
        if (clock.offer(host.sample(1'000'000 + 500'000u * static_cast<unsigned>(second), 300'000,
                                    25'000)) == Change::kNone)
            ++quiet;
    }
    EXPECT_EQ(quiet, 60) << "each mapping wakes the guest's readers: only better ones are worth it";
}

TEST(VmclockMapping, AClockThatIsSetIsDoubtedThenToldAnew) {
    for (const std::int64_t step : {5'000'000'000L, -5'000'000'000L, 10'000'000L}) {
        WanderingHost host{0};
        VmclockHost clock{{}, kCounter};
        clock.begin(host.sample(1'000'000, 0, 25'000));
        const abi::vmclock_abi good = clock.page();
        EXPECT_EQ(good.clock_status, abi::kVMCLOCK_STATUS_SYNCHRONIZED);
        host.run(kHz);
        EXPECT_EQ(clock.offer(host.sample(1'000'000, step, 25'000)), Change::kDoubted);
        const abi::vmclock_abi doubted = clock.page();
        EXPECT_EQ(doubted.clock_status, abi::kVMCLOCK_STATUS_UNRELIABLE);
        EXPECT_NE(doubted.seq_count, good.seq_count);
        const continuo_vmclock_words words = words_of(doubted);
        EXPECT_EQ(continuo_vmclock_judge(&words), CONTINUO_VMCLOCK_UNKNOWN);
        EXPECT_NEAR(static_cast<double>(clock.step_ns()), static_cast<double>(step), 2);
        host.run(kHz);
        EXPECT_EQ(clock.offer(host.sample(1'000'000, step, 25'000)), Change::kStepped);
        const auto reading = read_at(clock.page(), host.guest_counter());
        EXPECT_NEAR(
            static_cast<double>(static_cast<std::int64_t>(reading.tai_ns - host.true_tai())),
            static_cast<double>(step), 2);
        EXPECT_EQ(clock.counts().steps, 1u);
        EXPECT_EQ(clock.page().disruption_marker, 0u) << "the guest's counter was not disturbed";
    }
}

TEST(VmclockMapping, AClockThatComesBackIsBelievedAgain) {
    WanderingHost host{0};
    VmclockHost clock{{}, kCounter};
    clock.begin(host.sample(1'000'000, 0, 25'000));
    host.run(kHz);
    EXPECT_EQ(clock.offer(host.sample(1'000'000, 5'000'000'000, 25'000)), Change::kDoubted);
    host.run(kHz);
    EXPECT_EQ(clock.offer(host.sample(1'000'000, -7'000'000'000, 25'000)), Change::kNone)
        << "neither of the two: still unreliable";
    EXPECT_EQ(clock.page().clock_status, abi::kVMCLOCK_STATUS_UNRELIABLE);
    host.run(kHz);
    EXPECT_EQ(clock.offer(host.sample(1'000'000, 0, 25'000)), Change::kBelieved);
    EXPECT_EQ(clock.page().clock_status, abi::kVMCLOCK_STATUS_SYNCHRONIZED);
    EXPECT_EQ(clock.counts().steps, 0u);
}

TEST(VmclockMapping, AClockThatIsSetAndAdmitsItLeavesThePageOnItsOwn) {
    // settimeofday: the kernel says STA_UNSYNC, and 16 s of maxerror: the old bound is the better.
    WanderingHost host{0};
    VmclockHost clock{{}, kCounter};
    clock.begin(host.sample(1'000'000, 0, 25'000));
    host.run(kHz);
    abi::VmclockSample sample = host.sample(16'000'000'000, 5'000'000'000, 500'000);
    sample.synchronised = false;
    EXPECT_EQ(clock.offer(sample), Change::kRefit);
    EXPECT_EQ(clock.page().clock_status, abi::kVMCLOCK_STATUS_FREERUNNING);
    EXPECT_EQ(read_at(clock.page(), host.guest_counter()).tai_ns, host.true_tai() - 1);
}

TEST(VmclockMapping, AHostThatLearnsWhatTaiIsBeginsAnew) {
    WanderingHost host{0};
    VmclockHost clock{{}, kCounter};
    abi::VmclockSample utc = host.sample(1'000'000, -37'000'000'000, 25'000);
    utc.tai_offset_sec = 0;
    clock.begin(utc);
    EXPECT_EQ(clock.page().time_type, abi::kVMCLOCK_TIME_UTC);
    EXPECT_EQ(clock.page().flags & abi::kVMCLOCK_FLAG_TAI_OFFSET_VALID, 0u);
    host.run(kHz);
    EXPECT_EQ(clock.offer(host.sample(1'000'000, 0, 25'000)), Change::kDoubted);
    host.run(kHz);
    EXPECT_EQ(clock.offer(host.sample(1'000'000, 0, 25'000)), Change::kStepped);
    EXPECT_EQ(clock.page().time_type, abi::kVMCLOCK_TIME_TAI);
    EXPECT_EQ(clock.page().tai_offset_sec, 37);
}

TEST(VmclockRate, PeriodsAreWholeAndTheirErrorsHoldThem) {
    for (const std::uint64_t hz :
         {std::uint64_t{2}, std::uint64_t{1'000}, std::uint64_t{24'000'000}, kHz,
          std::uint64_t{1} << 32, ~std::uint64_t{0}}) {
        const auto rate = abi::VmclockRate::make(*time::Hz::from_hz(hz), 0, 15'000);
        // period * hz is a second, but for less than hz of 2^-(64 + shift) s.
        const time::u128 second = time::u128{1} << (64 + rate.shift);
        const time::u128 made = static_cast<time::u128>(rate.period) * hz;
        EXPECT_LE(made, second);
        EXPECT_LT(second - made, hz);
        EXPECT_GE(rate.period, std::uint64_t{1} << 62);
        EXPECT_GT(rate.maxerror, rate.period / 1'000'000 * 15);
    }
    const auto slow = abi::VmclockRate::make(*time::Hz::from_hz(kHz), -20'000, 35'000);
    const auto exact = abi::VmclockRate::make(*time::Hz::from_hz(kHz), 0, 35'000);
    EXPECT_NEAR(static_cast<double>(slow.period) / static_cast<double>(exact.period), 1 - 20e-6,
                1e-9);
    EXPECT_GT(slow.maxerror, exact.maxerror) << "the correction may be a slew";
}

// ---- The device ----

class Vmclock : public testing::Test {
  protected:
    VmclockDevice::Wiring wiring() {
        return {memory_, [this](std::uint64_t gpa) { dirty_.insert(gpa); },
                [this] { ++interrupts_; },
                [this](time::Hz hz) -> state::Result<kvm::DisciplinedAnchor> {
                    if (broken_) return state::fail(ErrorCode::kKernel, "adjtimex", "no");
                    kvm::DisciplinedAnchor read;
                    read.anchor.counter = time::Count<time::HostCounter>::from_raw(1'000);
                    read.anchor.tai = time::Instant<time::Tai>::from_raw(kTai0);
                    read.anchor.tai_bound_ns = 5'000;
                    read.anchor.tai_offset_sec = 37;
                    read.anchor.frequency = hz;
                    return read;
                }};
    }
    std::unique_ptr<VmclockDevice> make(const VmclockDeviceState& state = {kPage, {}}) {
        auto device = VmclockDevice::create(wiring(), state);
        EXPECT_TRUE(device) << device.error().message();
        return std::move(*device);
    }
    static VmclockCounter counter() {
        return {time::TscMap{kAhead}, *time::Hz::from_hz(kHz), *time::Hz::from_hz(kHz)};
    }
    abi::vmclock_abi page() { return *memory_.read_object<abi::vmclock_abi>(kPage); }

    kvm::GuestMemory memory_ = std::move(*kvm::GuestMemory::create(1 << 20));
    std::set<std::uint64_t> dirty_;
    int interrupts_ = 0;
    bool broken_ = false;
};

TEST_F(Vmclock, AStartingGuestReadsTheHostsTime) {
    const auto device = make();
    EXPECT_TRUE(dirty_.empty());
    ASSERT_TRUE(device->start(counter()));
    EXPECT_EQ(dirty_, std::set<std::uint64_t>{kPage});
    EXPECT_EQ(page(), device->status().page);
    const auto reading = read_at(page(), kAhead + 1'000 + kHz);
    EXPECT_EQ(reading.tai_ns, kTai0 + kSecond - 1);
    EXPECT_GE(reading.latest_ns - reading.earliest_ns, 2 * 5'000u);
    EXPECT_EQ(page().flags & abi::kVMCLOCK_FLAG_NOTIFICATION_PRESENT,
              abi::kVMCLOCK_FLAG_NOTIFICATION_PRESENT);
}

TEST_F(Vmclock, WithoutACounterThereIsAPageAndNoTime) {
    const auto device = make();
    ASSERT_TRUE(device->start(std::nullopt));
    EXPECT_EQ(page().magic, abi::kVMCLOCK_MAGIC);
    EXPECT_EQ(page().size, 4096u);
    EXPECT_EQ(page().counter_id, abi::kVMCLOCK_COUNTER_INVALID);
    EXPECT_EQ(page().clock_status, abi::kVMCLOCK_STATUS_UNKNOWN);
    EXPECT_EQ(*device->tend(), Change::kNone);
    ASSERT_TRUE(device->disrupt(std::nullopt, std::nullopt));
    EXPECT_EQ(page().disruption_marker, 1u) << "which needs no time";
}

TEST_F(Vmclock, AMoveRaisesTheMarkerASnapshotTheGenerationToo) {
    const auto source = make();
    ASSERT_TRUE(source->start(counter()));
    const auto moved = make(source->save());
    for (int i = 0; i < 3; ++i)
        ASSERT_TRUE(moved->disrupt(counter(), std::nullopt));
    EXPECT_EQ(page().disruption_marker, 1u) << "the last call counts";
    EXPECT_EQ(page().vm_generation_counter, 0u);
    EXPECT_NE(page().seq_count, source->status().page.seq_count);
    EXPECT_EQ(interrupts_, 0);
    moved->announce();
    EXPECT_EQ(interrupts_, 1);
    const auto restored = make(moved->save());
    ASSERT_TRUE(restored->disrupt(counter(), 0x1234));
    EXPECT_EQ(page().disruption_marker, 2u);
    EXPECT_EQ(page().vm_generation_counter, 0x1234u);
    const auto after = make(restored->save());
    ASSERT_TRUE(after->disrupt(counter(), std::nullopt));
    EXPECT_EQ(page().vm_generation_counter, 0x1234u) << "a move keeps it";
}

TEST_F(Vmclock, WhatAGuestWritesThereIsOverwrittenWhole) {
    const auto device = make();
    ASSERT_TRUE(device->start(counter()));
    std::memset(memory_.host() + kPage, 0xa5, 4096);
    ASSERT_TRUE(device->disrupt(counter(), std::nullopt));
    EXPECT_EQ(page(), device->status().page);
    EXPECT_EQ(page().seq_count, 4u) << "the host counts for itself";
}

TEST_F(Vmclock, AHostThatCannotReadItsClocksSaysSo) {
    const auto device = make();
    ASSERT_TRUE(device->start(counter()));
    broken_ = true;
    EXPECT_FALSE(device->tend());
    EXPECT_FALSE(device->disrupt(counter(), std::nullopt));
}

TEST_F(Vmclock, ForeignStateThatCannotBeIsRefused) {
    for (const VmclockDeviceState& state :
         {VmclockDeviceState{0xd1001, {}}, VmclockDeviceState{std::uint64_t{1} << 20, {}},
          VmclockDeviceState{~std::uint64_t{0xfff}, {}}, VmclockDeviceState{kPage, {1, 2, 3}}}) {
        const auto device = VmclockDevice::create(wiring(), state);
        ASSERT_FALSE(device);
        EXPECT_EQ(device.error().code, ErrorCode::kMalformed);
    }
}

}  // namespace
}  // namespace continuo::vmm
