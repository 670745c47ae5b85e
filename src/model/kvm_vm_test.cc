// The VM's clock as the model has it: masterclock, pages, KVM_GET_CLOCK and KVM_SET_CLOCK, the
// MSRs, the host's events. The sums stand beside the numbers.
#include "continuo/model/kvm_vm.h"

#include <gtest/gtest.h>

#include "kvm_test_vm.h"

namespace continuo::model {
namespace {

constexpr std::uint32_t kAllFlags =
    abi::kKVM_CLOCK_TSC_STABLE | abi::kKVM_CLOCK_REALTIME | abi::kKVM_CLOCK_HOST_TSC;

TEST(KvmVm, ANewVmHasOneGenerationAndNoMasterclockBeforeItsFirstUpdate) {
    KvmTestVm bed;
    EXPECT_EQ(bed.vm.generation(), 1U);
    EXPECT_EQ(bed.vm.get_clock().flags, 0U);
    EXPECT_EQ(bed.vm.tsc_map(0), bed.vm.tsc_map(1));
    EXPECT_EQ(bed.vm.guest_tsc(0), 0U);  // the counter stood still since its creation
    bed.vm.enter(0);
    EXPECT_EQ(bed.vm.get_clock().flags, kAllFlags);
}

TEST(KvmVm, ThePagesOfAllVcpusAreOneLine) {
    KvmTestVm bed;
    bed.enable_pages();
    bed.host.counter += 7 * kBedSecond;
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0).tsc_timestamp, 7 * kBedSecond);
    EXPECT_EQ(bed.vm.page(0).system_time, 7'000'000'000U);
    EXPECT_EQ(bed.vm.page(0).flags, abi::kPVCLOCK_TSC_STABLE_BIT);
    EXPECT_EQ(bed.vm.page(0).tsc_to_system_mul, 1U << 31);  // half a ns a tick
    EXPECT_EQ(bed.vm.page(0).tsc_shift, 0);
    // Both vCPUs were left a masterclock update by their creation: the second one's kicks vCPU 0
    // out and has its page written again.
    EXPECT_EQ(bed.vm.page(0).version, 4U);
    EXPECT_EQ(bed.vm.page(1).version, 2U);
    EXPECT_EQ(bed.vm.page(0).tsc_timestamp, bed.vm.page(1).tsc_timestamp);
    EXPECT_EQ(bed.vm.page(0).system_time, bed.vm.page(1).system_time);
}

TEST(KvmVm, SetClockIsRightAtItsSampleAndInThePagesAtTheNextEntry) {
    KvmTestVm bed;
    bed.boot();
    bed.set_clock(123'456'789);
    EXPECT_FALSE(bed.vm.in_guest(0));
    EXPECT_EQ(bed.vm.pending(0), kClockUpdate);
    EXPECT_EQ(bed.vm.get_clock().clock, 123'456'789U);
    EXPECT_NE(bed.vm.page(0).system_time, 123'456'789U);
    bed.host.sleep_ns(5'000);
    bed.enter_all();
    // The page is of the sample inside the call, not of the entry.
    EXPECT_EQ(bed.vm.page(0).system_time, 123'456'789U);
    EXPECT_EQ(bed.guest_clock(0), 123'461'789U);
    EXPECT_EQ(bed.guest_clock(1), 123'461'789U);
}

TEST(KvmVm, SetClockWithRealtimeAddsWhatPassedAndNeverTakesAway) {
    KvmTestVm bed;
    bed.boot();
    const auto now = static_cast<std::uint64_t>(bed.host.realtime_ns(bed.host.counter));
    bed.set_clock(1'000'000, abi::kKVM_CLOCK_REALTIME, now - 250);
    EXPECT_EQ(bed.vm.get_clock().clock, 1'000'250U);
    bed.set_clock(1'000'000, abi::kKVM_CLOCK_REALTIME, now + 250);
    EXPECT_EQ(bed.vm.get_clock().clock, 1'000'000U);
    bed.set_clock(1'000'000, abi::kKVM_CLOCK_HOST_TSC, now - 250);  // the flag alone does nothing
    EXPECT_EQ(bed.vm.get_clock().clock, 1'000'000U);
}

TEST(KvmVm, AnyClockCanBeSet) {
    for (const std::uint64_t clock :
         {std::uint64_t{0}, std::uint64_t{1}, (std::uint64_t{1} << 63) - 1, std::uint64_t{1} << 63,
          ~std::uint64_t{0}}) {
        KvmTestVm bed;
        bed.boot();
        bed.set_clock(clock);
        bed.enter_all();
        EXPECT_EQ(bed.vm.page(1).system_time, clock);
        EXPECT_EQ(bed.vm.get_clock().clock, clock);
        bed.host.sleep_ns(10);
        EXPECT_EQ(bed.vm.get_clock().clock, clock + 10);
    }
}

TEST(KvmVm, SetClockRefusesFlagsThatTheKernelDoesNotKnow) {
    abi::kvm_clock_data data{};
    data.flags = 1;
    KvmTestVm bed;
    EXPECT_EQ(bed.vm.set_clock(data).error().code, state::ErrorCode::kKernel);
    data.flags = abi::kKVM_CLOCK_TSC_STABLE;  // what KVM_GET_CLOCK gave may be handed back
    EXPECT_TRUE(bed.vm.set_clock(data));
    KvmTestVm old{KernelRules::linux(5, 15)};
    EXPECT_FALSE(old.vm.set_clock(data));
}

TEST(KvmVm, GetClockCountsHostTicksFromTheSample) {
    KvmTestVm bed;
    bed.boot();
    bed.set_clock(500);
    const std::uint64_t sample = bed.host.counter;
    bed.host.counter += 3;  // 1.5 ns, rounded down
    const auto data = bed.vm.get_clock();
    EXPECT_EQ(data.clock, 501U);
    EXPECT_EQ(data.host_tsc, sample + 3);
    EXPECT_EQ(data.realtime, static_cast<std::uint64_t>(bed.host.realtime_ns(sample + 3)));
}

TEST(KvmVm, WithoutATscClocksourceGetClockHasNoHostTscFlag) {
    KvmTestVm bed;
    bed.boot();
    bed.host.is_tsc_clocksource = false;
    // The masterclock stands until its update: the flag of the stable clock alone.
    EXPECT_EQ(bed.vm.get_clock().flags, abi::kKVM_CLOCK_TSC_STABLE);
}

// S0.4: the loss reaches every vCPU; nothing brings the masterclock back but a reason of its own.
TEST(KvmVm, AClocksourceThatIsNoTscCostsTheMasterclockAndOneThatIsDoesNotBringItBack) {
    KvmTestVm bed;
    bed.boot();
    bed.host.is_tsc_clocksource = false;
    bed.vm.clocksource_changed();
    EXPECT_TRUE(bed.vm.in_guest(0));  // nobody is kicked
    EXPECT_EQ(bed.vm.pending(1), kMasterclockUpdate);
    bed.exit_all();
    bed.enter_all();
    EXPECT_FALSE(bed.vm.masterclock());
    EXPECT_EQ(bed.vm.page(0).flags, 0U);
    bed.vm.clocksource_changed();  // the timekeeper's next tick: nothing left to take
    EXPECT_EQ(bed.vm.pending(0), 0);
    bed.host.is_tsc_clocksource = true;
    bed.vm.clocksource_changed();
    bed.exit_all();
    bed.enter_all();
    EXPECT_FALSE(bed.vm.masterclock());
    bed.exit_all();
    bed.set_clock(bed.vm.get_clock().clock);
    bed.enter_all();
    EXPECT_TRUE(bed.vm.masterclock());
    EXPECT_EQ(bed.vm.page(1).flags, abi::kPVCLOCK_TSC_STABLE_BIT);
}

TEST(KvmVm, TheOldMsrOnVcpu0CostsTheMasterclockAndTheNewOneBringsItBack) {
    KvmTestVm bed;
    bed.boot();
    ASSERT_TRUE(bed.vm.guest_write_msr(1, abi::kMSR_KVM_SYSTEM_TIME, 64 | 1));
    bed.enter_all();
    EXPECT_TRUE(bed.vm.masterclock());  // another vCPU's number says nothing
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME, 1));
    bed.enter_all();
    EXPECT_FALSE(bed.vm.masterclock());
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 1));
    bed.enter_all();
    EXPECT_TRUE(bed.vm.masterclock());
    bed.exit_all();
    ASSERT_TRUE(bed.vm.host_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME, 1));
    bed.enter_all();
    EXPECT_TRUE(bed.vm.masterclock());  // a host's write does not count
}

// S4.1: the guest may write the MSR as often as it likes, and time goes on.
TEST(KvmVm, WritingTheSystemTimeMsrAgainChangesNoTime) {
    for (const KernelRules& rules : {kLinux61, kLinux612, kLinux72}) {
        KvmTestVm bed{rules};
        bed.boot();
        std::uint64_t last = bed.guest_clock(0);
        for (int i = 0; i < 100; ++i) {
            bed.host.sleep_ns(333);
            ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 1));
            bed.enter_all();
            EXPECT_EQ(bed.guest_clock(0), last + 333);
            last += 333;
        }
        EXPECT_EQ(bed.vm.host_read_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW), 1U);
    }
}

TEST(KvmVm, AnotherAddressIsOtherMemoryAndBitZeroSwitchesThePageOff) {
    KvmTestVm bed;
    bed.boot();
    bed.vm.page(0).pad[0] = 0xaa;
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x2000 | 1));
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0).version, 2U);  // written once
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x2000));
    const auto before = bed.vm.page(0);
    bed.host.sleep_ns(1000);
    bed.exit_all();
    bed.set_clock(5);
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0), before);
    // A structure that crosses into the next page of memory is never written.
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x3fe4 | 1));
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0).version, 0U);
}

TEST(KvmVm, GuestStoppedGoesOutOnceAndStaysUntilTheGuestClearsIt) {
    KvmTestVm bed;
    bed.boot();
    bed.exit_all();
    ASSERT_TRUE(bed.vm.kvmclock_ctrl(0));
    EXPECT_EQ(bed.vm.page(0).flags, abi::kPVCLOCK_TSC_STABLE_BIT);  // not yet
    bed.enter_all();
    const auto both =
        static_cast<std::uint8_t>(abi::kPVCLOCK_TSC_STABLE_BIT | abi::kPVCLOCK_GUEST_STOPPED);
    EXPECT_EQ(bed.vm.page(0).flags, both);
    EXPECT_EQ(bed.vm.page(1).flags, abi::kPVCLOCK_TSC_STABLE_BIT);
    bed.exit_all();
    bed.set_clock(77);
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0).flags, both);  // kept over an update
    bed.vm.page(0).flags = abi::kPVCLOCK_TSC_STABLE_BIT;
    bed.exit_all();
    bed.set_clock(78);
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0).flags, abi::kPVCLOCK_TSC_STABLE_BIT);
}

TEST(KvmVm, KvmclockCtrlNeedsAPage) {
    KvmTestVm bed;
    const auto refused = bed.vm.kvmclock_ctrl(0);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().sys_errno, EINVAL);
    KvmTestVm old{KernelRules::linux(3, 3)};
    old.enable_pages();
    EXPECT_EQ(old.vm.kvmclock_ctrl(0).error().code, state::ErrorCode::kUnsupported);
}

TEST(KvmVm, TheWallClockIsRealtimeAtKvmclockZero) {
    for (const KernelRules& rules : {kLinux61, kLinux72}) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        bed.set_clock(1'500'000'000);
        const std::int64_t now = bed.host.realtime_ns(bed.host.counter);
        ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_WALL_CLOCK_NEW, 0x5000));
        const abi::pvclock_wall_clock wall = bed.vm.wall_clock();
        EXPECT_EQ(wall.version, 2U);
        EXPECT_EQ(abi::realtime_at_kvmclock_zero(wall)->raw(),
                  static_cast<std::uint64_t>(now) - 1'500'000'000U);
        ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_WALL_CLOCK, 0x5000));
        EXPECT_EQ(bed.vm.wall_clock().version, 4U);
        EXPECT_EQ(bed.vm.guest_read_msr(0, abi::kMSR_KVM_WALL_CLOCK), 0x5000U);
    }
}

// From two readings the epoch is off by what passes between them; from one it is exact.
TEST(KvmVm, OlderKernelsReadTheWallClockAtTwoInstants) {
    const auto epoch_error = [](const KernelRules& rules) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        bed.set_clock(0);
        const auto truth = static_cast<std::uint64_t>(bed.host.realtime_ns(bed.host.counter));
        Random random{5};
        bed.host.take_time(&random, 2000);
        EXPECT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_KVM_WALL_CLOCK_NEW, 0x5000));
        return static_cast<std::int64_t>(
            abi::realtime_at_kvmclock_zero(bed.vm.wall_clock())->raw() - truth);
    };
    EXPECT_EQ(epoch_error(kLinux72), 0);
    EXPECT_LT(epoch_error(kLinux61), -100);  // kvmclock was read the later
}

TEST(KvmVm, ClockPairingIsOneInstantOfRealtimeAndTheGuestsCounter) {
    KvmTestVm bed;
    bed.boot();
    bed.host.counter += 12'345;
    const auto pairing = bed.vm.clock_pairing(1);
    ASSERT_TRUE(pairing);
    EXPECT_EQ(pairing->tsc, 12'345U);
    EXPECT_EQ(pairing->sec * 1'000'000'000 + pairing->nsec, bed.host.realtime_ns(bed.host.counter));
    EXPECT_LT(pairing->nsec, 1'000'000'000);
    bed.host.is_tsc_clocksource = false;
    EXPECT_FALSE(bed.vm.clock_pairing(1));
}

// A vCPU that is made after the others ran takes their offset and their generation.
TEST(KvmVm, ALateVcpuJoinsTheGeneration) {
    for (const KernelRules& rules : {kLinux61, kLinux612, kLinux72}) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        for (unsigned i = 0; i < 2; ++i)
            ASSERT_TRUE(bed.vm.set_tsc_offset(i, 4242));
        bed.enter_all();
        bed.host.sleep_ns(90'000'000'000);
        ASSERT_EQ(bed.vm.create_vcpu(), 2U);
        EXPECT_EQ(bed.offset(2), 4242U);
        EXPECT_EQ(bed.vm.vcpu(2).generation, bed.vm.generation());
        ASSERT_TRUE(bed.vm.guest_write_msr(2, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x800 | 1));
        bed.enter_all();
        EXPECT_TRUE(bed.vm.masterclock());
        EXPECT_EQ(bed.guest_clock(2), bed.guest_clock(0));
    }
}

// Where the vCPUs are apart, there is no masterclock for the late one to join, but an offset.
TEST(KvmVm, ALateVcpuOfAVmThatIsApartMatchesTheLastGenerationOnly) {
    KvmTestVm bed;
    bed.boot();
    bed.exit_all();
    ASSERT_TRUE(bed.vm.set_tsc_offset(1, 99));
    ASSERT_TRUE(bed.vm.create_vcpu());
    EXPECT_EQ(bed.offset(2), 99U);
    bed.enter_all();
    EXPECT_FALSE(bed.vm.masterclock());
}

TEST(KvmVm, ThereIsRoomForEightVcpus) {
    KvmTestVm bed{kLinux612, KvmVm::kVcpusMax};
    EXPECT_EQ(bed.vm.create_vcpu().error().code, state::ErrorCode::kTooLarge);
}

TEST(KvmVm, AResetVcpuHasNoPageAndItsCounterGoesOn) {
    KvmTestVm bed;
    bed.boot();
    bed.host.counter += 500;
    bed.vm.reset_vcpu(0);
    EXPECT_EQ(bed.vm.guest_tsc(0), 500U);
    EXPECT_FALSE(bed.vm.vcpu(0).page_active());
    bed.enter_all();
    EXPECT_TRUE(bed.vm.masterclock());
}

// Without a masterclock a vCPU that changes its CPU has its page written again, and the others'
// follow: at once, or 100 ms later.
TEST(KvmVm, AGlobalUpdateReachesTheOthersByWorkOrAtOnce) {
    for (const KernelRules& rules : {kLinux612, kLinux72}) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, 1ULL << 40));
        bed.enter_all();
        ASSERT_FALSE(bed.vm.masterclock());
        bed.vm.run_work(bed.host.base_ns(bed.host.counter) + 200'000'000);
        bed.enter_all();
        bed.host.sleep_ns(1000);
        bed.vm.vcpu_migrated(0, 1);
        const std::uint32_t version = bed.vm.page(1).version;
        bed.vm.enter(0);
        EXPECT_EQ(bed.vm.page(0).tsc_timestamp, bed.vm.guest_tsc(0));
        if (rules.global_update_by_work) {
            EXPECT_TRUE(bed.vm.in_guest(1));
            ASSERT_EQ(bed.vm.next_work_ns(), bed.host.base_ns(bed.host.counter) + 100'000'000);
            bed.vm.run_work(*bed.vm.next_work_ns() - 1);
            EXPECT_TRUE(bed.vm.in_guest(1));
            bed.vm.run_work(*bed.vm.next_work_ns());
        }
        EXPECT_FALSE(bed.vm.in_guest(1));
        bed.enter_all();
        EXPECT_EQ(bed.vm.page(1).version, version + 2);
    }
}

TEST(KvmVm, GlobalUpdatesAreLimitedToTenASecondWhereTheyAreAtOnce) {
    KvmTestVm bed{kLinux72};
    bed.boot();
    bed.exit_all();
    ASSERT_TRUE(bed.vm.set_tsc_offset(1, 1ULL << 40));
    bed.host.sleep_ns(2'000'000'000);
    bed.enter_all();
    int global = 0;
    for (unsigned i = 0; i < 15; ++i) {
        bed.vm.vcpu_migrated(0, 1 + i % 2);
        if ((bed.vm.pending(0) & kGlobalClockUpdate) != 0) ++global;
        bed.enter_all();
    }
    EXPECT_EQ(global, 10);
    bed.host.sleep_ns(1'000'000'001);
    bed.vm.vcpu_migrated(0, 3);
    EXPECT_NE(bed.vm.pending(0) & kGlobalClockUpdate, 0);
}

// Every 300 s the pages are written again, with nothing new in them under a masterclock.
TEST(KvmVm, ThePeriodicUpdateMovesNoLineOfTheMasterclock) {
    KvmTestVm bed;
    bed.boot();
    // The MSR's writes left an update of all pages in 100 ms.
    ASSERT_EQ(bed.vm.next_work_ns(), bed.host.base_ns(bed.host.counter) + 100'000'000);
    bed.vm.run_work(*bed.vm.next_work_ns());
    const std::int64_t due = *bed.vm.next_work_ns();
    EXPECT_EQ(due, bed.host.base_ns(bed.host.counter) + 300'000'000'000);
    bed.enter_all();
    const auto before = bed.vm.page(0);
    bed.host.sleep_ns(300'000'000'000);
    bed.vm.run_work(due);
    bed.enter_all();
    EXPECT_EQ(bed.vm.page(0).version, before.version + 2);
    EXPECT_EQ(bed.vm.page(0).tsc_timestamp, before.tsc_timestamp);
    EXPECT_EQ(bed.vm.page(0).system_time, before.system_time);
    EXPECT_EQ(*bed.vm.next_work_ns(), due + 300'000'000'000);
}

TEST(KvmVm, AnUpdateThatWaitsAlreadyKeepsItsTime) {
    KvmTestVm bed;
    const std::int64_t sync = *bed.vm.next_work_ns();
    bed.host.sleep_ns(299'950'000'000);
    bed.boot();  // asks for an update of all pages in 100 ms, 50 ms after the periodic one
    bed.vm.run_work(sync);
    EXPECT_TRUE(bed.vm.in_guest(0));
    EXPECT_EQ(bed.vm.next_work_ns(), sync + 50'000'000);
    bed.vm.run_work(sync + 50'000'000);
    EXPECT_FALSE(bed.vm.in_guest(0));
}

TEST(KvmVm, AnUnstableTscIsMovedAtEveryLoadAndCatchesUp) {
    KvmTestVm bed;
    bed.boot();
    bed.host.counter += 1000;
    bed.exit_all();  // the last the guest saw: 1000
    bed.host.is_tsc_unstable = true;
    bed.host.is_tsc_clocksource = false;
    bed.vm.clocksource_changed();
    bed.host.counter += 5000;
    // The load sets the counter back to what the guest saw last; the page's update then brings it
    // up to its frequency again, (6000 ticks = 3000 ns since the write of 0).
    EXPECT_EQ(bed.vm.host_read_msr(0, abi::kMSR_IA32_TSC), 1000U);
    bed.vm.enter(0);
    EXPECT_EQ(bed.vm.guest_tsc(0), 6000U);
    EXPECT_EQ(bed.vm.page(0).tsc_timestamp, 6000U);
    EXPECT_EQ(bed.vm.page(0).flags, 0U);
}

TEST(KvmVm, ACounterThatIsBehindOnTheNextCpuIsFoundUnstable) {
    KvmTestVm bed;
    bed.boot();
    bed.host.cpu_skew[1] = 0 - std::uint64_t{1'000'000};
    bed.vm.vcpu_migrated(0, 1);
    EXPECT_TRUE(bed.host.is_tsc_unstable);
    EXPECT_EQ(bed.vm.guest_tsc(0), 0U);  // where the guest was, not a million before
    KvmTestVm ahead;
    ahead.boot();
    ahead.host.cpu_skew[1] = 1'000'000;
    ahead.vm.vcpu_migrated(0, 1);
    EXPECT_FALSE(ahead.host.is_tsc_unstable);
    EXPECT_EQ(ahead.vm.guest_tsc(0), 1'000'000U);  // and the guest sees it
}

TEST(KvmVm, ASuspendThatResetsTheCounterIsMadeUpForAndCostsTheMasterclock) {
    KvmTestVm bed;
    bed.boot();
    bed.host.sleep_ns(1'000'000'000);
    const std::uint64_t before = bed.vm.guest_tsc(0);
    bed.vm.host_suspended();
    bed.host.raw = bed.host.raw.moved_to(bed.host.counter);
    bed.host.raw.counter = 0;
    bed.host.slept_ns = 60'000'000'000;
    bed.host.counter = 0;
    bed.vm.host_resumed();
    bed.enter_all();
    EXPECT_EQ(bed.vm.guest_tsc(0), before);
    EXPECT_EQ(bed.vm.guest_tsc(1), before);
    EXPECT_FALSE(bed.vm.masterclock());
    EXPECT_NE(bed.vm.page(0).flags & abi::kPVCLOCK_GUEST_STOPPED, 0);
    // kvmclock counts the sleep, the counter does not.
    EXPECT_EQ(bed.guest_clock(0), 61'000'000'000U);
    // Nothing brings it back (backwards_tsc_observed).
    bed.exit_all();
    for (unsigned i = 0; i < 2; ++i)
        ASSERT_TRUE(bed.vm.set_tsc_offset(i, 7));
    bed.set_clock(7);
    bed.enter_all();
    EXPECT_FALSE(bed.vm.masterclock());
}

// Every CPU that comes up runs the same code, and the first has made up for all of it. The last
// write of a TSC is forgotten: what is expected of the next counts from boot.
TEST(KvmVm, AResumeIsMadeUpForOnce) {
    KvmTestVm bed{kLinux61};
    bed.boot();
    const std::uint64_t before = bed.vm.guest_tsc(0);
    bed.vm.host_suspended();
    bed.host.counter -= 500 * kBedSecond;
    bed.host.slept_ns += 500'000'000'000;
    bed.vm.host_resumed(0);
    bed.vm.host_resumed(1);
    bed.enter_all();
    EXPECT_EQ(bed.vm.guest_tsc(0), before);
    bed.exit_all();
    const std::uint64_t generation = bed.vm.generation();
    bed.write_tsc(0, 1000 * kBedSecond + 5);  // 1000 s since boot
    EXPECT_EQ(bed.vm.generation(), generation);
}

TEST(KvmVm, ASuspendThatKeepsTheCounterChangesNothingButTheNotice) {
    KvmTestVm bed;
    bed.boot();
    bed.vm.host_suspended();
    bed.host.sleep_ns(5'000'000'000);
    bed.vm.host_resumed();
    bed.enter_all();
    EXPECT_EQ(bed.vm.guest_tsc(0), 5 * kBedSecond);
    EXPECT_TRUE(bed.vm.masterclock());
    EXPECT_NE(bed.vm.page(1).flags & abi::kPVCLOCK_GUEST_STOPPED, 0);
}

TEST(KvmVm, ACpuThatGoesOfflineLetsNoVcpuIn) {
    KvmTestVm bed{kLinux61};
    bed.enable_pages();
    bed.host.khz_at_load[0] = 0;
    EXPECT_FALSE(bed.vm.enter(0));
    EXPECT_FALSE(bed.vm.in_guest(0));
    EXPECT_EQ(bed.vm.pending(0) & kClockUpdate, kClockUpdate);
    bed.host.khz_at_load[0] = kBedKhz;
    EXPECT_TRUE(bed.vm.enter(0));
}

}  // namespace
}  // namespace continuo::model
