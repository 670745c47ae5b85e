// Entry in steps, and what holds of the model whatever is done to it.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <vector>

#include "kvm_test_vm.h"

namespace continuo::model {
namespace {

// step() by step() comes out where enter() does, from whatever state.
enum class Deed : int {
    kOffset,
    kTsc,
    kGuestTsc,
    kAdjust,
    kClock,
    kMsr,
    kCtrl,
    kKhz,
    kMove,
    kDeeds
};

void act(KvmVm& vm, HostPlatform& host, Random& random) {
    const auto vcpu = static_cast<unsigned>(random.between(0, vm.vcpu_count() - 1));
    const std::uint64_t value = random.one_in(4)
                                    ? random.next()
                                    : static_cast<std::uint64_t>(random.of_any_size(1LL << 50));
    host.counter += static_cast<std::uint64_t>(random.of_any_size(1LL << 33));
    vm.exit(vcpu);
    const auto deed = static_cast<Deed>(random.between(0, static_cast<int>(Deed::kDeeds) - 1));
    abi::kvm_clock_data data{};
    data.clock = value;
    Status done;
    if (deed == Deed::kOffset) done = vm.set_tsc_offset(vcpu, random.one_in(2) ? value : 4711);
    if (deed == Deed::kTsc) done = vm.host_write_msr(vcpu, abi::kMSR_IA32_TSC, value);
    if (deed == Deed::kGuestTsc) done = vm.guest_write_msr(vcpu, abi::kMSR_IA32_TSC, value);
    if (deed == Deed::kAdjust) done = vm.guest_write_msr(vcpu, abi::kMSR_IA32_TSC_ADJUST, value);
    if (deed == Deed::kClock) done = vm.set_clock(data);
    if (deed == Deed::kMsr)
        done = vm.guest_write_msr(
            vcpu, random.one_in(2) ? abi::kMSR_KVM_SYSTEM_TIME : abi::kMSR_KVM_SYSTEM_TIME_NEW,
            (64 * vcpu) | (random.one_in(4) ? 0 : 1));
    if (deed == Deed::kCtrl) done = vm.kvmclock_ctrl(vcpu);
    if (deed == Deed::kKhz)
        done = vm.set_tsc_khz(vcpu, static_cast<std::uint32_t>(random.between(1'000, 4'000'000)));
    if (deed == Deed::kMove) vm.vcpu_migrated(vcpu, static_cast<unsigned>(random.between(0, 3)));
}

std::vector<std::uint64_t> state_of(const KvmVm& vm) {
    const KvmArch& arch = vm.arch();
    std::vector<std::uint64_t> out{arch.use_master_clock,
                                   arch.master_cycle_now,
                                   static_cast<std::uint64_t>(arch.master_kernel_ns),
                                   static_cast<std::uint64_t>(arch.kvmclock_offset),
                                   arch.cur_tsc_generation,
                                   arch.cur_tsc_offset,
                                   arch.last_tsc_write,
                                   arch.nr_vcpus_matched_tsc};
    for (unsigned i = 0; i < vm.vcpu_count(); ++i) {
        const KvmVcpu& vcpu = vm.vcpu(i);
        for (const std::uint64_t word :
             {vcpu.map.ratio(), vcpu.map.offset(), vcpu.generation, vcpu.last_guest_tsc,
              vcpu.tsc_adjust, std::uint64_t{vcpu.requests}, std::uint64_t{vcpu.in_guest},
              std::uint64_t{vcpu.page.version}, vcpu.page.tsc_timestamp, vcpu.page.system_time,
              std::uint64_t{vcpu.page.tsc_to_system_mul},
              static_cast<std::uint64_t>(vcpu.page.tsc_shift), std::uint64_t{vcpu.page.flags}})
            out.push_back(word);
    }
    return out;
}

KernelRules any_rules() {
    const KernelRules rules = *rc::gen::element(kLinux61, kLinux612, kLinux72);
    const int bits = *rc::gen::element(0, 32, 48);
    return bits == 0 ? rules : rules.with_scaling(bits);
}

RC_GTEST_PROP(KvmVmSteps, ComeOutWhereEnterDoes, (std::uint64_t seed)) {
    KvmTestVm bed{any_rules(), 3};
    Random random{seed};
    for (int i = 0; i < 30; ++i) {
        act(bed.vm, bed.host, random);
        for (unsigned vcpu = 0; vcpu < 3; ++vcpu) {
            if (bed.vm.in_guest(vcpu)) continue;
            HostPlatform world = bed.host;
            KvmVm other = bed.vm;
            other.rebind(world);
            const bool entered = bed.vm.enter(vcpu);
            Step last = Step::kPageStep;
            for (int steps = 0; last != Step::kEntered && last != Step::kBlocked; ++steps) {
                RC_ASSERT(steps < 20);
                last = other.step(vcpu);
            }
            RC_ASSERT((last == Step::kEntered) == entered);
            RC_ASSERT(state_of(other) == state_of(bed.vm));
        }
    }
}

// Whatever is done to it, a masterclock is one line: who has entered since the last update reads
// the same on every vCPU that has the generation's offset.
RC_GTEST_PROP(KvmVmMasterclock, IsOneLineForAllVcpus, (std::uint64_t seed)) {
    KvmTestVm bed{any_rules(), 3};
    bed.enable_pages();
    Random random{seed};
    for (int i = 0; i < 30; ++i) {
        act(bed.vm, bed.host, random);
        bed.enter_all();
        if (!bed.vm.masterclock()) continue;
        for (unsigned vcpu = 0; vcpu < 3; ++vcpu) {
            const auto& page = bed.vm.page(vcpu);
            if (!bed.vm.vcpu(vcpu).page_active() || bed.vm.vcpu(vcpu).tsc_catchup) continue;
            RC_ASSERT(page.system_time ==
                      static_cast<std::uint64_t>(bed.vm.arch().master_kernel_ns) +
                          static_cast<std::uint64_t>(bed.vm.arch().kvmclock_offset));
            RC_ASSERT((page.flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0);
        }
    }
}

TEST(KvmVmSteps, AReaderBetweenTwoStoresSeesAnOddVersion) {
    KvmTestVm bed{kLinux612, 1};
    bed.boot();
    bed.vm.exit(0);
    const auto old = bed.vm.page(0);
    bed.host.sleep_ns(1000);
    bed.set_clock(9'000'000);
    ASSERT_EQ(bed.vm.step(0), Step::kPageBegin);
    for (unsigned step = 1; step < PageUpdate::kSteps; ++step) {
        EXPECT_EQ(bed.vm.page(0).version, old.version + 1);
        // Words 2 to 5: version, tsc_timestamp, system_time, the scale and the flags.
        const std::uint64_t shown = step <= 4 ? old.system_time : 9'000'000U;
        EXPECT_EQ(bed.vm.page(0).system_time, shown) << step;
        ASSERT_EQ(bed.vm.step(0), Step::kPageStep);
    }
    EXPECT_EQ(bed.vm.page(0).version, old.version + 2);
    EXPECT_EQ(bed.vm.page(0).system_time, 9'000'000U);
    EXPECT_EQ(bed.vm.step(0), Step::kEntered);
}

// The look at the flags and their store are two steps: what the guest clears between is set again.
TEST(KvmVmSteps, AGuestThatClearsGuestStoppedWhileItIsKeptLosesTheRace) {
    KvmTestVm bed{kLinux612, 1};
    bed.boot();
    bed.vm.exit(0);
    ASSERT_TRUE(bed.vm.kvmclock_ctrl(0));
    bed.vm.enter(0);
    bed.vm.exit(0);
    bed.set_clock(1);
    ASSERT_EQ(bed.vm.step(0), Step::kPageBegin);
    ASSERT_EQ(bed.vm.step(0), Step::kPageStep);  // it has looked
    bed.vm.page(0).flags = 0;
    while (bed.vm.vcpu(0).update_step != 0)
        bed.vm.step(0);
    EXPECT_NE(bed.vm.page(0).flags & abi::kPVCLOCK_GUEST_STOPPED, 0);
}

TEST(KvmVmSteps, NobodyEntersWhileTheMasterclockIsUpdated) {
    KvmTestVm bed;
    bed.boot();
    bed.exit_all();
    for (unsigned i = 0; i < 2; ++i)
        ASSERT_TRUE(bed.vm.set_tsc_offset(i, 3));
    bed.vm.enter(1);
    ASSERT_EQ(bed.vm.step(0), Step::kMasterclockBegin);
    EXPECT_FALSE(bed.vm.in_guest(1));
    EXPECT_EQ(bed.vm.step(1), Step::kBlocked);
    ASSERT_EQ(bed.vm.step(0), Step::kMasterclockSample);
    EXPECT_EQ(bed.vm.step(1), Step::kBlocked);
    ASSERT_EQ(bed.vm.step(0), Step::kMasterclockEnd);
    EXPECT_EQ(bed.vm.step(1), Step::kPageBegin);
}

TEST(KvmVm, TheSameSeedTwiceIsTheSameRun) {
    const auto run = [](std::uint64_t seed) {
        KvmTestVm bed{kLinux612.with_scaling(48), 4};
        Random jitter{seed};
        Random random{seed + 1};
        bed.host.take_time(&jitter, 100);
        for (int i = 0; i < 500; ++i) {
            act(bed.vm, bed.host, random);
            bed.enter_all();
        }
        return state_of(bed.vm);
    };
    EXPECT_EQ(run(1), run(1));
    EXPECT_NE(run(1), run(2));
}

}  // namespace
}  // namespace continuo::model
