// What a host's write of a TSC does: kvm_synchronize_tsc() before 6.7 and since, the generations,
// the masterclock's requests, TSC_ADJUST. The sums stand beside the numbers; the bed's counter has
// 2 ticks a ns, and a guest of the host's frequency has as many.
#include <gtest/gtest.h>

#include "kvm_test_vm.h"

namespace continuo::model {
namespace {

constexpr std::uint64_t kFar = 1ULL << 40;  // ticks: beyond the second of any frequency

struct WindowCase {
    const char* what;
    std::int64_t off_ticks;  // of the value, against what the vCPU counts
    bool taken_for_sync;
};

// 1 s is 2'000'000'000 ticks, and both ends are outside: data < expected + hz, data + hz >
// expected.
const WindowCase kWindow[] = {
    {"the expected value", 0, true},
    {"just inside, ahead", 1'999'999'999, true},
    {"one second ahead", 2'000'000'000, false},
    {"just inside, behind", -1'999'999'999, true},
    {"one second behind", -2'000'000'000, false},
    {"far", std::int64_t{1} << 40, false},
};

TEST(KvmSync, AWriteWithinASecondOfTheLastIsDiscarded) {
    for (const KernelRules& rules : {kLinux61, kLinux612, kLinux72})
        for (const WindowCase& test : kWindow) {
            KvmTestVm bed{rules};
            bed.write_tsc(0, kFar);
            bed.host.sleep_ns(3'000'000'000);
            // Since the write 6'000'000'000 ticks passed.
            const std::uint64_t expected = kFar + 6'000'000'000;
            const auto value = expected + static_cast<std::uint64_t>(test.off_ticks);
            const std::uint64_t generation = bed.vm.generation();
            bed.write_tsc(1, value);
            EXPECT_EQ(bed.vm.guest_tsc(1), test.taken_for_sync ? expected : value) << test.what;
            EXPECT_EQ(bed.vm.generation(), generation + (test.taken_for_sync ? 0 : 1)) << test.what;
            EXPECT_EQ(bed.offset(0) == bed.offset(1), test.taken_for_sync || test.off_ticks == 0);
        }
}

// The window moves with each write that falls into it (last_tsc_write), while the offset stays that
// of the generation (cur_tsc_offset): 0.9 s and 0.9 s more is still a synchronisation.
TEST(KvmSync, TheWindowIsAroundTheLastWriteAndTheOffsetIsTheGenerations) {
    KvmTestVm bed;
    bed.write_tsc(0, kFar);
    bed.write_tsc(1, kFar + 1'800'000'000);
    bed.write_tsc(0, kFar + 3'600'000'000);
    EXPECT_EQ(bed.vm.guest_tsc(0), kFar);
    EXPECT_EQ(bed.vm.generation(), 2U);
    bed.write_tsc(0, kFar + 5'600'000'000);  // 2'000'000'000 from the last: outside
    EXPECT_EQ(bed.vm.guest_tsc(0), kFar + 5'600'000'000);
}

// Near 2^64 the kernel's sums wrap, and what wraps is outside.
TEST(KvmSync, TheWindowDoesNotReachOverTheWrap) {
    KvmTestVm bed;
    bed.write_tsc(0, ~std::uint64_t{0} - 10);
    bed.write_tsc(1, 1'000);  // 1011 ticks ahead, modulo 2^64
    EXPECT_EQ(bed.vm.guest_tsc(1), 1'000U);
    EXPECT_EQ(bed.vm.generation(), 3U);
}

TEST(KvmSync, AnotherFrequencyIsNotMatched) {
    KvmTestVm bed{kLinux612.with_scaling(48)};
    bed.write_tsc(0, kFar);
    ASSERT_TRUE(bed.vm.set_tsc_khz(1, 1'000'000));
    bed.write_tsc(1, kFar);
    EXPECT_EQ(bed.vm.generation(), 3U);
    EXPECT_EQ(bed.vm.guest_tsc(1), kFar);
    // Zero as well, and then it is a value: 0.
    bed.write_tsc(0, 0);
    EXPECT_EQ(bed.vm.guest_tsc(0), 0U);
}

// On an unstable host a match adds the time since the last write instead: 1 us is 2000 ticks. The
// load before it counts as well: none passes here.
TEST(KvmSync, OnAnUnstableHostAMatchedWriteMovesOnByTheElapsedTime) {
    KvmTestVm bed;
    bed.host.is_tsc_unstable = true;
    bed.write_tsc(0, kFar);
    bed.host.sleep_ns(1'000);
    bed.write_tsc(1, kFar + 7);
    EXPECT_EQ(bed.vm.guest_tsc(1), kFar + 7 + 2'000);
    EXPECT_EQ(bed.vm.generation(), 2U);  // matched all the same
}

// Until its next entry such a vCPU stands still: every load of it sets the counter back to what was
// written last.
TEST(KvmSync, OnAnUnstableHostAWrittenValueStandsUntilTheVcpuIsEntered) {
    KvmTestVm bed;
    bed.host.is_tsc_unstable = true;
    bed.write_tsc(0, kFar);
    bed.host.sleep_ns(5'000'000'000);
    EXPECT_EQ(bed.vm.host_read_msr(0, abi::kMSR_IA32_TSC), kFar);
}

TEST(KvmSync, TheOffsetAttributeTakesPartInTheGenerations) {
    for (const KernelRules& rules : {kLinux61, kLinux612}) {
        KvmTestVm bed{rules, 3};
        EXPECT_EQ(bed.vm.arch().nr_vcpus_matched_tsc, 2U);
        ASSERT_TRUE(bed.vm.set_tsc_offset(0, 10));
        EXPECT_EQ(bed.vm.arch().nr_vcpus_matched_tsc, 0U);
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, 10));
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, 10));  // counted once
        EXPECT_EQ(bed.vm.arch().nr_vcpus_matched_tsc, 1U);
        ASSERT_TRUE(bed.vm.set_tsc_offset(2, 10));
        EXPECT_EQ(bed.vm.arch().nr_vcpus_matched_tsc, 2U);
        EXPECT_EQ(bed.vm.generation(), 2U);
        bed.enter_all();
        EXPECT_TRUE(bed.vm.masterclock());
        // A value in the window of the attribute's write matches it: now the window is armed.
        bed.write_tsc(0, bed.host.counter + 10 + 1'000'000);
        EXPECT_EQ(bed.offset(0), 10U);
    }
}

struct RequestCase {
    const char* what;
    const KernelRules& rules;
    std::uint64_t offset_of_1;
    Requests left;
};

TEST(KvmSync, WhichWritesLeaveAMasterclockUpdate) {
    const RequestCase cases[] = {
        {"6.1: the same offset again", kLinux61, 10, kMasterclockUpdate},
        {"6.1: another", kLinux61, 11, kMasterclockUpdate},
        {"6.12: the same offset again", kLinux612, 10, 0},
        {"6.12: another", kLinux612, 11, kMasterclockUpdate},
        {"7.2: the same offset again", kLinux72, 10, 0},
        {"7.2: another", kLinux72, 11, kMasterclockUpdate},
    };
    for (const RequestCase& test : cases) {
        KvmTestVm bed{test.rules};
        for (unsigned i = 0; i < 2; ++i)
            ASSERT_TRUE(bed.vm.set_tsc_offset(i, 10));
        bed.boot();
        bed.exit_all();
        ASSERT_EQ(bed.vm.pending(1), 0) << test.what;
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, test.offset_of_1));
        EXPECT_EQ(bed.vm.pending(1), test.left) << test.what;
    }
}

// Every vCPU but the last one to match is left a masterclock update: the first begins a generation
// under a masterclock that stands, the last one would bring it back.
TEST(KvmSync, ARestoreLeavesUpdatesThatMoveKvmclockUntilTheyAreCarriedOut) {
    KvmTestVm bed{kLinux612, 4};
    bed.boot();
    bed.exit_all();
    for (unsigned i = 0; i < 4; ++i)
        ASSERT_TRUE(bed.vm.set_tsc_offset(i, 1'000));
    EXPECT_EQ(bed.vm.pending(0), kMasterclockUpdate);  // new generation
    EXPECT_EQ(bed.vm.pending(1), kMasterclockUpdate);  // to be switched off
    EXPECT_EQ(bed.vm.pending(2), kMasterclockUpdate);  // to be switched off
    EXPECT_EQ(bed.vm.pending(3), 0);                   // all match, and it stands: nothing to do
}

TEST(KvmSync, AGuestsWriteMovesOffsetAndAdjustAndSynchronisesNothing) {
    KvmTestVm bed;
    bed.boot();
    const std::uint64_t before = bed.offset(1);
    ASSERT_TRUE(bed.vm.guest_write_msr(1, abi::kMSR_IA32_TSC, 5'000));
    EXPECT_EQ(bed.vm.guest_tsc(1), 5'000U);
    EXPECT_EQ(bed.offset(1), before + 5'000);
    EXPECT_EQ(bed.vm.guest_read_msr(1, abi::kMSR_IA32_TSC_ADJUST), 5'000U);
    EXPECT_EQ(bed.vm.generation(), 1U);
    EXPECT_EQ(bed.vm.pending(1), 0);
    // A write of TSC_ADJUST moves the counter by the difference, and asks for a page.
    ASSERT_TRUE(bed.vm.guest_write_msr(1, abi::kMSR_IA32_TSC_ADJUST, 4'000));
    EXPECT_EQ(bed.vm.guest_tsc(1), 4'000U);
    EXPECT_EQ(bed.vm.pending(1), kClockUpdate);
    ASSERT_TRUE(bed.vm.guest_write_msr(1, abi::kMSR_IA32_TSC_ADJUST, 0 - std::uint64_t{1'000}));
    EXPECT_EQ(bed.vm.guest_tsc(1), 0 - std::uint64_t{1'000});
    bed.enter_all();
    EXPECT_EQ(bed.guest_clock(1), bed.guest_clock(0));  // the page goes with it
}

TEST(KvmSync, AHostsWriteOfTscAdjustOnlyStoresIt) {
    KvmTestVm bed;
    const std::uint64_t before = bed.offset(0);
    ASSERT_TRUE(bed.vm.host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 123));
    EXPECT_EQ(bed.offset(0), before);
    EXPECT_EQ(bed.vm.host_read_msr(0, abi::kMSR_IA32_TSC_ADJUST), 123U);
    // The guest's next write moves the counter by the difference to it.
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 100));
    EXPECT_EQ(bed.offset(0), before - 23);
}

TEST(KvmSync, WithoutTscAdjustInTheCpuidWritesOfItAreDropped) {
    KvmTestVm bed;
    bed.vm.set_cpuid_tsc_adjust(false);
    ASSERT_TRUE(bed.vm.host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 123));
    EXPECT_EQ(bed.vm.host_read_msr(0, abi::kMSR_IA32_TSC_ADJUST), 0U);
    const std::uint64_t before = bed.offset(0);
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 9));
    EXPECT_EQ(bed.offset(0), before);
}

TEST(KvmSync, AnUnknownMsrIsRefused) {
    KvmTestVm bed;
    EXPECT_EQ(bed.vm.host_write_msr(0, 0x1b, 0).error().code, state::ErrorCode::kUnsupported);
    EXPECT_FALSE(bed.vm.guest_read_msr(0, 0xc0000104));
}

}  // namespace
}  // namespace continuo::model
