// What guests make of kvmclock when they write its MSR again, unplug vCPU 0, lose stability while
// running, and what COUNTS_FROM_ZERO did to them. The sums stand beside the numbers.
#include "continuo/model/guest_clock.h"

#include "kvm_bed.h"

namespace continuo::model {
namespace {

using Fallback = KvmclockReader::Fallback;

KernelRules rules() {
    return KernelRules::linux(6, 12);
}

KernelRules from_zero() {
    KernelRules with = rules();
    with.counts_from_zero = true;
    return with;
}

/// The guest writes its system-time MSR and goes on.
void write_msr(KvmBed& bed, unsigned vcpu, std::uint32_t msr = abi::kMSR_KVM_SYSTEM_TIME_NEW) {
    ASSERT_TRUE(bed.vm->guest_write_msr(vcpu, msr, 0x1000 + 64 * vcpu + 1));
    bed.enter_all();
}

// S4.1

TEST(SystemTimeMsr, MayBeWrittenAsOftenAsTheGuestLikesAndTimeGoesOn) {
    KvmBed bed{rules()};
    bed.enter_all();
    KvmclockReader clock{*bed.vm};
    for (std::uint64_t i = 1; i <= 20; ++i) {
        bed.host.counter += k2Ghz / 20;
        write_msr(bed, i % 2);
        for (unsigned vcpu = 0; vcpu < 2; ++vcpu)
            EXPECT_EQ(clock.read(vcpu), i * 50'000'000) << "50 ms each";
    }
    EXPECT_TRUE(bed.vm->masterclock());
}

TEST(SystemTimeMsr, TheOldNumberCostsTheMasterclockAndNoTime) {
    KvmBed bed{rules()};
    bed.enter_all();
    KvmclockReader clock{*bed.vm};
    bed.sleep_s(3);
    write_msr(bed, 0, abi::kMSR_KVM_SYSTEM_TIME);
    EXPECT_FALSE(bed.vm->masterclock());
    EXPECT_EQ(clock.read(0), 3 * kNs);
    write_msr(bed, 1, abi::kMSR_KVM_SYSTEM_TIME);
    bed.sleep_s(1);
    EXPECT_EQ(clock.read(1), 4 * kNs);
    write_msr(bed, 0);
    EXPECT_TRUE(bed.vm->masterclock());
    EXPECT_EQ(clock.read(0), 4 * kNs);
}

TEST(SystemTimeMsr, AnotherAddressIsAnotherPage) {
    KvmBed bed{rules()};
    bed.enter_all();
    KvmclockReader clock{*bed.vm};
    bed.sleep_s(2);
    ASSERT_TRUE(bed.vm->guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x2001));
    EXPECT_EQ(clock.read(0), std::nullopt) << "nothing is there before the next entry";
    bed.enter_all();
    EXPECT_EQ(clock.read(0), 2 * kNs);
    ASSERT_TRUE(bed.vm->guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x2000));
    EXPECT_FALSE(bed.vm->vcpu(0).page_active());
}

TEST(KvmclockReader, AReaderSeesNoTornPageAndClearsGuestStopped) {
    KvmBed bed{rules()};
    bed.enter_all();
    KvmclockReader clock{*bed.vm};
    bed.exit_all();
    ASSERT_TRUE(bed.vm->kvmclock_ctrl(0));
    EXPECT_EQ(bed.vm->step(0), Step::kPageBegin);
    EXPECT_EQ(clock.read(0), std::nullopt) << "version " << bed.vm->page(0).version;
    while (bed.vm->step(0) != Step::kEntered) {
    }
    EXPECT_EQ(clock.read(0), 0U);
    EXPECT_EQ(clock.stops_seen(), 1U);
    EXPECT_EQ(clock.read(0), 0U);
    EXPECT_EQ(clock.stops_seen(), 1U);
}

// S4.2

TEST(CountsFromZero, StartsTheGuestsClockAtItsBootAndSaysSo) {
    // Firmware runs for 10 s before the kernel writes the MSR.
    for (const bool proposal : {false, true}) {
        KvmBed bed{proposal ? from_zero() : rules()};
        bed.enter_all();
        bed.sleep_s(10);
        write_msr(bed, 0);
        KvmclockReader clock{*bed.vm};
        EXPECT_EQ(clock.read(0), proposal ? 0 : 10 * kNs);
        EXPECT_EQ((bed.vm->page(0).flags & abi::kPVCLOCK_COUNTS_FROM_ZERO) != 0, proposal);
    }
}

TEST(CountsFromZero, ASecondWriteTakesTimeBack) {
    // A kernel that writes the MSR whenever it likes (SLES 10), vCPU 0 plugged in again, or kexec:
    // to KVM all three are the write of 30 s after the first.
    for (const bool proposal : {false, true}) {
        KvmBed bed{proposal ? from_zero() : rules()};
        bed.enter_all();
        KvmclockReader clock{*bed.vm};
        bed.sleep_s(30);
        ASSERT_EQ(clock.read(1), 30 * kNs);
        write_msr(bed, 0);
        EXPECT_EQ(clock.read(0), proposal ? 0 : 30 * kNs);
        // The other page follows with the work item of 100 ms later: until then two vCPUs with the
        // stable bit are 30 s apart.
        bed.host.counter += k2Ghz / 100;
        EXPECT_EQ(clock.read(1), 30 * kNs + 10'000'000);
        EXPECT_EQ(clock.read(0), (proposal ? 0 : 30 * kNs) + 10'000'000);
        EXPECT_NE(bed.vm->page(1).flags & abi::kPVCLOCK_TSC_STABLE_BIT, 0);
        bed.host.counter += k2Ghz / 10;
        bed.vm->run_work(bed.host.base_now_ns(0));
        bed.enter_all();
        EXPECT_EQ(clock.read(1), (proposal ? 0 : 30 * kNs) + 110'000'000);
    }
}

TEST(CountsFromZero, VcpusOtherThan0AndTheHostStartNothing) {
    KvmBed bed{from_zero()};
    bed.enter_all();
    KvmclockReader clock{*bed.vm};
    bed.sleep_s(5);
    write_msr(bed, 1);
    EXPECT_EQ(clock.read(1), 5 * kNs);
    bed.exit_all();
    ASSERT_TRUE(bed.vm->host_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x1001));
    bed.enter_all();
    EXPECT_EQ(clock.read(0), 5 * kNs) << "a restored VM keeps its time";
}

TEST(CountsFromZero, BeginsBelowZeroWhereThePageIsSlowerThanTheRawClock) {
    // kvmclock's offset becomes minus the raw clock; the page still has the sample of 10 s ago. At
    // 3 499 912 kHz the raw clock counts 10 000 000 394 ns since then and the page 9 999 999 999:
    // the guest boots at 2^64 - 395 ns, 584 years up.
    KvmBed bed{from_zero(), 3'499'912};
    bed.enter_all();
    bed.sleep_s(10);
    write_msr(bed, 0);
    EXPECT_EQ(KvmclockReader{*bed.vm}.read(0), 0 - std::uint64_t{395});
}

// S4.3

/// Without a TSC clocksource each page has a line of its own, from the entry at which it was
/// written. vCPU 1's is 100 s old when vCPU 0's is written: by then the raw clock has counted 100
/// 000 003 947 ns and vCPU 1's page 99 999 999 995, 3952 ns less.
struct Apart : KvmBed {
    Apart() : KvmBed{rules(), 3'499'912} {
        host.is_tsc_clocksource = false;
        vm->clocksource_changed();
        enter_all();
        sleep_s(100);
        vm->vcpu_migrated(0, 1);  // to another CPU, which is when KVM writes a page by itself
        vm->enter(0);
    }
};

TEST(SchedClock, ReadsSinceBootOnEveryVcpuWithoutTheStableBit) {
    Apart bed;
    KvmclockReader reader{*bed.vm};
    SchedClock sched{reader, 0, SchedClock::Underflow::kGuarded};
    EXPECT_EQ(sched.offset(), 100'000'003'947U);
    EXPECT_EQ(sched.read(0), 0U);
    EXPECT_EQ(sched.read(1), 0U) << "the reader's maximum holds it up";
    bed.sleep_s(1);
    EXPECT_EQ(sched.read(0), 999'999'999U);  // the page's second is cut off by the ABI's floor
    EXPECT_EQ(bed.vm->page(0).flags, 0);
}

TEST(SchedClock, AnImpreciseClockUnderflowsUnlessGuarded) {
    Apart bed;
    KvmclockReader reader{*bed.vm, Fallback::kNone};
    SchedClock wraps{reader, 0, SchedClock::Underflow::kWraps};
    EXPECT_EQ(wraps.read(1), 0 - std::uint64_t{3952}) << "2^64 - 3952 ns: 584 years";
    SchedClock guarded{reader, 0, SchedClock::Underflow::kGuarded};
    EXPECT_EQ(guarded.read(1), 0U);
    bed.host.counter += 20'000;
    // 5714 ns, less the 3952: from there on there is nothing to guard.
    EXPECT_EQ(guarded.read(1), *wraps.read(1));
    EXPECT_EQ(guarded.read(1), 1762U);
}

// S4.4

TEST(Vcpu0, MayBeUnpluggedAndPluggedInAgain) {
    for (const bool proposal : {false, true}) {
        KvmBed bed{proposal ? from_zero() : rules()};
        bed.enter_all();
        KvmclockReader clock{*bed.vm};
        bed.sleep_s(20);
        // The guest takes it offline: INIT switches its page off. The others go on.
        bed.vm->reset_vcpu(0);
        bed.sleep_s(5);
        EXPECT_EQ(clock.read(1), 25 * kNs);
        EXPECT_TRUE(bed.vm->masterclock());
        write_msr(bed, 0);
        EXPECT_EQ(bed.vm->guest_tsc(0), 25 * k2Ghz) << "INIT does not touch the TSC";
        EXPECT_EQ(clock.read(0), proposal ? 0 : 25 * kNs);
    }
}

TEST(Vcpu0, ALateVcpuJoinsTheOthersOffsetAndLine) {
    KvmBed bed{rules()};
    bed.enter_all();
    bed.sleep_s(50);
    ASSERT_EQ(*bed.vm->create_vcpu(), 2U);
    ASSERT_TRUE(bed.vm->guest_write_msr(2, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x1081));
    bed.enter_all();
    EXPECT_EQ(bed.vm->tsc_map(2), bed.vm->tsc_map(0));
    EXPECT_TRUE(bed.vm->masterclock());
    KvmclockReader clock{*bed.vm};
    bed.host.counter += 10;
    for (unsigned vcpu = 0; vcpu < 3; ++vcpu)
        EXPECT_EQ(clock.read(vcpu), 50 * kNs + 5);
}

// S4.5

/// tsc -> hpet 10 s after the last sample; vCPU 0's page is of that moment, vCPU 1's of 10 s later.
struct LostStability : KvmBed {
    explicit LostStability(std::uint32_t guest = 0)
        : KvmBed{rules().with_scaling(time::kVmxFracBits), 3'499'912, guest} {
        enter_all();
        sleep_s(10);
    }
    void lose() {
        host.is_tsc_clocksource = false;
        vm->clocksource_changed();
        exit_all();
        enter_all();
    }
    /// Its thread goes to another CPU, which is when KVM writes a page by itself.
    void move(unsigned vcpu) {
        vm->vcpu_migrated(vcpu, 1);
        vm->enter(vcpu);
    }
};

TEST(LostStability, IsSeenAtTheNextEntryAndNotBefore) {
    LostStability bed;
    bed.host.is_tsc_clocksource = false;
    bed.vm->clocksource_changed();
    EXPECT_NE(bed.vm->page(0).flags & abi::kPVCLOCK_TSC_STABLE_BIT, 0)
        << "it is still in guest mode";
    EXPECT_TRUE(bed.vm->in_guest(0));
    bed.exit_all();
    bed.enter_all();
    EXPECT_EQ(bed.vm->page(0).flags, 0);
    EXPECT_EQ(bed.vm->page(1).flags, 0);
}

TEST(LostStability, WithoutTheFallbackAReadOnAnotherVcpuGoesBack) {
    for (const Fallback fallback :
         {Fallback::kNone, Fallback::kGlobalMaximum, Fallback::kMaximumOfAll}) {
        LostStability bed;
        bed.lose();
        KvmclockReader clock{*bed.vm, fallback};
        bed.sleep_s(10);
        bed.move(1);
        const auto first = clock.read(1);
        const auto then = clock.read(0);
        // By the raw clock 10 000 000 395 ns since the pages were written; vCPU 0's own page is of
        // then and counts 9 999 999 999 (in both, the 10 s before lie below): 396 back.
        EXPECT_EQ(first, 10'000'000'394U + 10'000'000'395U);
        EXPECT_EQ(static_cast<std::int64_t>(*then - *first),
                  fallback == Fallback::kNone ? -396 : 0);
    }
}

TEST(LostStability, TheFallbackDoesNotKnowWhatWasReadBefore) {
    // A guest of 1 GHz, whose page is fast: 10 s after the sample it says 10 000 009 997 ns, and
    // the raw clock, which the new pages go by, 10 000 000 394: 9603 back, on one vCPU. Linux's
    // maximum holds what was read of unstable pages only.
    for (const Fallback fallback : {Fallback::kGlobalMaximum, Fallback::kMaximumOfAll}) {
        LostStability bed{1'000'000};
        KvmclockReader clock{*bed.vm, fallback};
        const auto before = clock.read(0);
        EXPECT_EQ(before, 10'000'009'997U);
        bed.lose();
        const auto after = clock.read(0);
        EXPECT_EQ(static_cast<std::int64_t>(*after - *before),
                  fallback == Fallback::kGlobalMaximum ? -9603 : 0);
    }
}

TEST(LostStability, TheMasterclockDoesNotComeBackByItself) {
    LostStability bed;
    bed.lose();
    bed.host.is_tsc_clocksource = true;
    bed.vm->clocksource_changed();
    bed.exit_all();
    bed.enter_all();
    EXPECT_FALSE(bed.vm->masterclock()) << "nothing tells KVM";

    KernelRules told = rules();
    told.change_notifier = true;
    KvmBed notified{told};
    notified.enter_all();
    notified.host.is_tsc_clocksource = false;
    notified.vm->clocksource_changed();
    EXPECT_FALSE(notified.vm->in_guest(0)) << "kicked, by the proposal";
    notified.enter_all();
    EXPECT_FALSE(notified.vm->masterclock());
    notified.host.is_tsc_clocksource = true;
    notified.vm->clocksource_changed();
    notified.enter_all();
    EXPECT_TRUE(notified.vm->masterclock());
}

}  // namespace
}  // namespace continuo::model
