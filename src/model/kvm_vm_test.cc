// KVM's timekeeping as the model has it, call by call. The sums stand beside the numbers.
#include "continuo/model/kvm_vm.h"

#include <gtest/gtest.h>

namespace continuo::model {
namespace {

constexpr std::uint32_t kKhz = 2'000'000;  // 2 ticks a ns
constexpr std::uint64_t kSecond = std::uint64_t{kKhz} * 1000;

struct Bed {
    explicit Bed(KernelRules rules = KernelRules::linux(6, 12), unsigned vcpus = 2) {
        host.counter = 1000 * kSecond;
        vm.emplace(host, rules, vcpus);
    }
    void enable_pages() {
        for (unsigned i = 0; i < vm->vcpu_count(); ++i)
            EXPECT_TRUE(vm->guest_write_msr(i, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x1000 + 64 * i + 1));
    }
    void enter_all() {
        for (int pass = 0; pass < 3; ++pass)
            for (unsigned i = 0; i < vm->vcpu_count(); ++i)
                if (!vm->in_guest(i)) vm->enter(i);
    }
    HostPlatform host{kKhz};
    std::optional<KvmVm> vm;
};

TEST(KvmVm, ANewVmHasOneGenerationAndNoMasterclockBeforeItsFirstUpdate) {
    Bed bed;
    EXPECT_EQ(bed.vm->generation(), 1U);
    EXPECT_EQ(bed.vm->get_clock().flags, 0U);
    EXPECT_EQ(bed.vm->tsc_map(0), bed.vm->tsc_map(1));
    EXPECT_EQ(bed.vm->guest_tsc(0), 0U);  // the counter stood still since its creation
    bed.vm->enter(0);
    EXPECT_EQ(bed.vm->get_clock().flags,
              abi::kKVM_CLOCK_TSC_STABLE | abi::kKVM_CLOCK_REALTIME | abi::kKVM_CLOCK_HOST_TSC);
}

TEST(KvmVm, ThePagesOfAllVcpusAreOneLine) {
    Bed bed;
    bed.enable_pages();
    bed.host.counter += 7 * kSecond;
    bed.enter_all();
    EXPECT_EQ(bed.vm->page(0).tsc_timestamp, 7 * kSecond);
    EXPECT_EQ(bed.vm->page(0).system_time, 7'000'000'000U);
    EXPECT_EQ(bed.vm->page(0).flags, abi::kPVCLOCK_TSC_STABLE_BIT);
    EXPECT_EQ(bed.vm->page(0).tsc_to_system_mul, 1U << 31);  // half a ns a tick
    EXPECT_EQ(bed.vm->page(0).tsc_shift, 0);
    // Both vCPUs were left a masterclock update by their creation: the second one's kicks vCPU 0
    // out and has its page written again.
    EXPECT_EQ(bed.vm->page(0).version, 4U);
    EXPECT_EQ(bed.vm->page(1).version, 2U);
    EXPECT_EQ(bed.vm->page(0).tsc_timestamp, bed.vm->page(1).tsc_timestamp);
    EXPECT_EQ(bed.vm->page(0).system_time, bed.vm->page(1).system_time);
}

TEST(KvmVm, SetClockIsRightAtItsSampleAndInThePagesAtTheNextEntry) {
    Bed bed;
    bed.enable_pages();
    bed.enter_all();
    abi::kvm_clock_data data{};
    data.clock = 123'456'789;
    ASSERT_TRUE(bed.vm->set_clock(data));
    EXPECT_FALSE(bed.vm->in_guest(0));
    EXPECT_EQ(bed.vm->get_clock().clock, 123'456'789U);
    EXPECT_NE(bed.vm->page(0).system_time, 123'456'789U);
    bed.enter_all();
    EXPECT_EQ(bed.vm->page(0).system_time, 123'456'789U);
    EXPECT_EQ(bed.vm->page(1).system_time, 123'456'789U);
}

TEST(KvmVm, AnOffsetIsInForceAtOnce) {
    Bed bed;
    ASSERT_TRUE(bed.vm->set_tsc_offset(0, 5));
    EXPECT_EQ(bed.vm->guest_tsc(0), bed.host.counter + 5);
    EXPECT_EQ(*bed.vm->tsc_offset(0), 5U);
    EXPECT_EQ(bed.vm->generation(), 2U);
}

}  // namespace
}  // namespace continuo::model
