// One test for each row of the quirk table (docs/kernel-facts.md) that is about x86-64's time: the
// model does what the kernel does. The layers keep the table itself out of reach here, so each test
// has the name of its row's id. Rows that are not here: tsc_deadline_not_listed (a CPUID bit) and
// those of arm64 (kvm_arm_test.cc).
#include <gtest/gtest.h>

#include <array>

#include "kvm_test_vm.h"

namespace continuo::model {
namespace {

constexpr std::uint64_t kFar = 1ULL << 40;
const std::array kReleases{kLinux61, kLinux612, kLinux72};

/// 0.3 s of the bed's ticks.
constexpr std::uint64_t kThirdTicks = 600'000'000;

TEST(KvmQuirk, no_tsc_offset) {
    KvmTestVm before{KernelRules::linux(5, 15)};
    EXPECT_EQ(before.vm.set_tsc_offset(0, 1).error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(before.vm.tsc_offset(0).error().sys_errno, ENXIO);
    KvmTestVm since{KernelRules::linux(5, 16)};
    EXPECT_TRUE(since.vm.set_tsc_offset(0, 1));
    EXPECT_EQ(since.vm.tsc_offset(0), 1U);
}

TEST(KvmQuirk, tsc_offset_ignored) {
    KernelRules rules = kLinux612;
    rules.offset_stays_zero = true;
    KvmTestVm bed{rules};
    EXPECT_TRUE(bed.vm.set_tsc_offset(0, kFar));
    EXPECT_EQ(bed.vm.tsc_offset(0), 0U);
    EXPECT_EQ(bed.vm.guest_tsc(0), bed.host.counter);
}

TEST(KvmQuirk, tsc_write_ignored) {
    KernelRules rules = kLinux612;
    rules.offset_stays_zero = true;
    KvmTestVm bed{rules};
    bed.write_tsc(0, 2 * kFar);
    EXPECT_EQ(bed.vm.guest_tsc(0), bed.host.counter);
}

TEST(KvmQuirk, tsc_sync_on_first_write) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.host.counter += 100;
        bed.write_tsc(0, 100 + kThirdTicks);
        const std::uint64_t kept = bed.vm.guest_tsc(0) - 100;
        EXPECT_EQ(kept, rules.user_write_arms_sync ? kThirdTicks : 0);
        // The second is lost on all: the first has armed the window.
        bed.write_tsc(1, 100 + 2 * kThirdTicks);
        EXPECT_EQ(bed.vm.guest_tsc(1), bed.vm.guest_tsc(0));
    }
    EXPECT_FALSE(KernelRules::linux(6, 6).user_write_arms_sync);
    EXPECT_TRUE(KernelRules::linux(6, 7).user_write_arms_sync);
}

TEST(KvmQuirk, tsc_write_snaps) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.write_tsc(0, kFar);
        bed.host.counter += 1'000;
        bed.write_tsc(1, kFar + kThirdTicks);
        EXPECT_EQ(bed.offset(1), bed.offset(0));
    }
}

TEST(KvmQuirk, tsc_late_write_skews) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        bed.write_tsc(0, kFar);
        bed.host.sleep_ns(1'200'000'000);
        bed.write_tsc(1, kFar);
        EXPECT_EQ(bed.offset(0) - bed.offset(1), 2'400'000'000U);  // 1.2 s
        bed.enter_all();
        EXPECT_FALSE(bed.vm.masterclock());
    }
}

TEST(KvmQuirk, tsc_write_of_zero_snaps) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.write_tsc(0, kFar);
        bed.host.sleep_ns(5'000'000'000);
        bed.write_tsc(1, 0);
        EXPECT_EQ(bed.offset(1), bed.offset(0));
    }
}

TEST(KvmQuirk, tsc_khz_refused_sticks) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        const auto refused = bed.vm.set_tsc_khz(0, kBedKhz / 2);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().sys_errno, EINVAL);
        EXPECT_EQ(bed.vm.tsc_khz(0), kBedKhz / 2);
        EXPECT_EQ(bed.vm.tsc_map(0).ratio(), 1U);  // and the counter runs as before
    }
}

TEST(KvmQuirk, no_tsc_adjust) {
    KvmTestVm before{KernelRules::linux(3, 7)};
    EXPECT_FALSE(before.vm.host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 1));
    KvmTestVm since{KernelRules::linux(3, 8)};
    EXPECT_TRUE(since.vm.host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 1));
}

TEST(KvmQuirk, no_clock_triple) {
    KvmTestVm before{KernelRules::linux(5, 15)};
    before.boot();
    EXPECT_EQ(before.vm.get_clock().flags, abi::kKVM_CLOCK_TSC_STABLE);
    EXPECT_EQ(before.vm.get_clock().host_tsc, 0U);
    KvmTestVm since{KernelRules::linux(5, 16)};
    since.boot();
    EXPECT_EQ(since.vm.get_clock().host_tsc, since.host.counter);
}

TEST(KvmQuirk, clock_handed_back_goes_back) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        const auto got = bed.vm.get_clock();
        bed.host.sleep_ns(1'700);
        bed.set_clock(got.clock);
        EXPECT_EQ(bed.vm.get_clock().clock, got.clock);  // 1700 ns later
    }
}

TEST(KvmQuirk, clock_handed_back_advances) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        Random random{3};
        bed.host.take_time(&random, 400);
        const auto got = bed.vm.get_clock();
        const std::uint64_t at = got.host_tsc;
        ASSERT_TRUE(bed.vm.set_clock(got));
        const auto after = bed.vm.get_clock();
        // What it is over the line before: REALTIME is read a few instructions after the sample.
        const std::uint64_t over = after.clock - got.clock - (after.host_tsc - at) / kBedNs;
        EXPECT_GT(over, 0U);
        EXPECT_LE(over, 400U / kBedNs);
    }
}

TEST(KvmQuirk, clock_new_vm_unstable) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        EXPECT_EQ(bed.vm.get_clock().flags, 0U);
        bed.settle_all();
        EXPECT_NE(bed.vm.get_clock().flags & abi::kKVM_CLOCK_HOST_TSC, 0U);
    }
}

TEST(KvmQuirk, masterclock_lost_apart) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, bed.offset(1) + kFar));
        bed.enter_all();
        EXPECT_EQ(bed.vm.get_clock().flags, 0U);
        EXPECT_EQ(bed.vm.page(0).flags, 0U);
        EXPECT_EQ(bed.vm.page(1).flags, 0U);
    }
}

TEST(KvmQuirk, masterclock_needs_every_vcpu) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        const std::uint64_t together = bed.offset(0);
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, together + kFar));
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, together));
        bed.enter_all();
        EXPECT_FALSE(bed.vm.masterclock());
        bed.exit_all();
        ASSERT_TRUE(bed.vm.set_tsc_offset(0, together));
        bed.enter_all();
        EXPECT_TRUE(bed.vm.masterclock());
    }
}

TEST(KvmQuirk, masterclock_update_on_every_write) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        for (unsigned i = 0; i < 2; ++i)
            ASSERT_TRUE(bed.vm.set_tsc_offset(i, 5));
        bed.boot();
        bed.exit_all();
        const std::uint64_t timestamp = bed.vm.page(0).tsc_timestamp;
        bed.host.counter += 1'065'454;
        ASSERT_TRUE(bed.vm.set_tsc_offset(1, 5));
        bed.enter_all();
        EXPECT_EQ(bed.vm.page(0).tsc_timestamp - timestamp,
                  rules.same_offset_is_noop ? 0U : 1'065'454U);
    }
}

TEST(KvmQuirk, masterclock_update_moves_kvmclock) {
    for (const KernelRules& rules : kReleases) {
        // A frequency whose page is 285 ppb fast, while the raw clock is exact enough.
        KvmTestVm bed{rules.with_scaling(48), 2, 3'499'912};
        for (unsigned i = 0; i < 2; ++i)
            ASSERT_TRUE(bed.vm.set_tsc_khz(i, 3'503'411));
        bed.boot();
        bed.host.sleep_ns(1'000'000'000);
        const std::uint64_t before = bed.guest_clock(0);
        bed.exit_all();
        bed.set_clock(bed.vm.get_clock().clock);
        bed.enter_all();
        const auto moved = static_cast<std::int64_t>(bed.guest_clock(0) - before);
        EXPECT_LT(moved, -200);
        EXPECT_GT(moved, -300);
    }
}

TEST(KvmQuirk, stable_bit_stays_on_guest_write) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        ASSERT_TRUE(bed.vm.guest_write_msr(1, abi::kMSR_IA32_TSC, kFar));
        bed.enter_all();
        EXPECT_NE(bed.offset(0), bed.offset(1));
        EXPECT_NE(bed.vm.get_clock().flags & abi::kKVM_CLOCK_TSC_STABLE, 0U);
        EXPECT_NE(bed.vm.page(1).flags & abi::kPVCLOCK_TSC_STABLE_BIT, 0);
    }
}

TEST(KvmQuirk, guest_stopped_not_saved) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        bed.boot();
        bed.exit_all();
        ASSERT_TRUE(bed.vm.kvmclock_ctrl(0));
        EXPECT_EQ(bed.vm.page(0).flags & abi::kPVCLOCK_GUEST_STOPPED, 0);
        bed.settle_all();
        EXPECT_NE(bed.vm.page(0).flags & abi::kPVCLOCK_GUEST_STOPPED, 0);
    }
}

TEST(KvmQuirk, no_kvmclock_ctrl) {
    KvmTestVm before{KernelRules::linux(3, 3)};
    before.boot();
    EXPECT_FALSE(before.vm.kvmclock_ctrl(0));
    KvmTestVm since{KernelRules::linux(3, 4)};
    since.boot();
    EXPECT_TRUE(since.vm.kvmclock_ctrl(0));
}

TEST(KvmQuirk, thread_change_waits) {
    for (const KernelRules& rules : kReleases) {
        KvmTestVm bed{rules};
        EXPECT_FALSE(bed.vm.run_on_thread(0, 1));  // a vCPU that never ran has no last thread
        EXPECT_FALSE(bed.vm.run_on_thread(0, 1));
        EXPECT_EQ(bed.vm.run_on_thread(0, 2), rules.thread_change_waits);
    }
    EXPECT_TRUE(KernelRules::linux(6, 12).thread_change_waits);
    EXPECT_FALSE(KernelRules::linux(6, 13).thread_change_waits);
}

}  // namespace
}  // namespace continuo::model
