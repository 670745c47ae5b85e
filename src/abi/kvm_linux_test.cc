// The numbers and structures here against this machine's <linux/kvm.h>, and the ones that C++ gets
// wrong there against the kernel itself.
#include <asm/kvm_para.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>

#include "continuo/abi/arm64.h"
#include "continuo/abi/clock_pairing.h"
#include "continuo/abi/cpuid.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/abi/steal_time.h"

namespace continuo::abi {
namespace {

struct Pair {
    const char* name;
    std::uint64_t ours, linux_header;
};

TEST(LinuxHeaders, NumbersAgree) {
    const Pair pairs[] = {
        {"KVM_SET_CLOCK", kKVM_SET_CLOCK, KVM_SET_CLOCK},
        {"KVM_GET_CLOCK", kKVM_GET_CLOCK, KVM_GET_CLOCK},
        {"KVM_KVMCLOCK_CTRL", kKVM_KVMCLOCK_CTRL, KVM_KVMCLOCK_CTRL},
        {"KVM_SET_TSC_KHZ", kKVM_SET_TSC_KHZ, KVM_SET_TSC_KHZ},
        {"KVM_GET_TSC_KHZ", kKVM_GET_TSC_KHZ, KVM_GET_TSC_KHZ},
        {"KVM_SET_DEVICE_ATTR", kKVM_SET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR},
        {"KVM_GET_DEVICE_ATTR", kKVM_GET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR},
        {"KVM_HAS_DEVICE_ATTR", kKVM_HAS_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR},
        {"KVM_GET_DIRTY_LOG", kKVM_GET_DIRTY_LOG, KVM_GET_DIRTY_LOG},
        {"KVM_CLEAR_DIRTY_LOG", kKVM_CLEAR_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG},
        {"KVM_SET_USER_MEMORY_REGION", kKVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION},
        {"KVM_ENABLE_CAP", kKVM_ENABLE_CAP, KVM_ENABLE_CAP},
        {"KVM_GET_ONE_REG", kKVM_GET_ONE_REG, KVM_GET_ONE_REG},
        {"KVM_SET_ONE_REG", kKVM_SET_ONE_REG, KVM_SET_ONE_REG},
        {"KVM_VCPU_TSC_CTRL", kKVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_CTRL},
        {"KVM_VCPU_TSC_OFFSET", kKVM_VCPU_TSC_OFFSET, KVM_VCPU_TSC_OFFSET},
        {"KVM_CLOCK_TSC_STABLE", kKVM_CLOCK_TSC_STABLE, KVM_CLOCK_TSC_STABLE},
        {"KVM_CLOCK_REALTIME", kKVM_CLOCK_REALTIME, KVM_CLOCK_REALTIME},
        {"KVM_CLOCK_HOST_TSC", kKVM_CLOCK_HOST_TSC, KVM_CLOCK_HOST_TSC},
        {"KVM_CPUID_FLAG_SIGNIFCANT_INDEX", kKVM_CPUID_FLAG_SIGNIFCANT_INDEX,
         KVM_CPUID_FLAG_SIGNIFCANT_INDEX},
        {"KVM_MEM_LOG_DIRTY_PAGES", kKVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_LOG_DIRTY_PAGES},
        {"KVM_MEM_READONLY", kKVM_MEM_READONLY, KVM_MEM_READONLY},
        {"KVM_CAP_ADJUST_CLOCK", kKVM_CAP_ADJUST_CLOCK, KVM_CAP_ADJUST_CLOCK},
        {"KVM_CAP_TSC_CONTROL", kKVM_CAP_TSC_CONTROL, KVM_CAP_TSC_CONTROL},
        {"KVM_CAP_GET_TSC_KHZ", kKVM_CAP_GET_TSC_KHZ, KVM_CAP_GET_TSC_KHZ},
        {"KVM_CAP_TSC_DEADLINE_TIMER", kKVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_TSC_DEADLINE_TIMER},
        {"KVM_CAP_KVMCLOCK_CTRL", kKVM_CAP_KVMCLOCK_CTRL, KVM_CAP_KVMCLOCK_CTRL},
        {"KVM_CAP_HYPERV_TIME", kKVM_CAP_HYPERV_TIME, KVM_CAP_HYPERV_TIME},
        {"KVM_CAP_VCPU_ATTRIBUTES", kKVM_CAP_VCPU_ATTRIBUTES, KVM_CAP_VCPU_ATTRIBUTES},
        {"KVM_CAP_XSAVE2", kKVM_CAP_XSAVE2, KVM_CAP_XSAVE2},
        {"KVM_CAP_VM_TSC_CONTROL", kKVM_CAP_VM_TSC_CONTROL, KVM_CAP_VM_TSC_CONTROL},
    };
    for (const Pair& pair : pairs)
        EXPECT_EQ(pair.ours, pair.linux_header) << pair.name;
}

TEST(LinuxHeaders, GuestNumbersAgree) {
    const Pair pairs[] = {
        {"MSR_KVM_WALL_CLOCK", kMSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK},
        {"MSR_KVM_SYSTEM_TIME", kMSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME},
        {"MSR_KVM_WALL_CLOCK_NEW", kMSR_KVM_WALL_CLOCK_NEW, MSR_KVM_WALL_CLOCK_NEW},
        {"MSR_KVM_SYSTEM_TIME_NEW", kMSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_SYSTEM_TIME_NEW},
        {"MSR_KVM_ASYNC_PF_EN", kMSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_EN},
        {"MSR_KVM_STEAL_TIME", kMSR_KVM_STEAL_TIME, MSR_KVM_STEAL_TIME},
        {"MSR_KVM_PV_EOI_EN", kMSR_KVM_PV_EOI_EN, MSR_KVM_PV_EOI_EN},
        {"MSR_KVM_POLL_CONTROL", kMSR_KVM_POLL_CONTROL, MSR_KVM_POLL_CONTROL},
        {"MSR_KVM_ASYNC_PF_INT", kMSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_INT},
        {"MSR_KVM_ASYNC_PF_ACK", kMSR_KVM_ASYNC_PF_ACK, MSR_KVM_ASYNC_PF_ACK},
        {"MSR_KVM_MIGRATION_CONTROL", kMSR_KVM_MIGRATION_CONTROL, MSR_KVM_MIGRATION_CONTROL},
        {"KVM_MSR_ENABLED", kKVM_MSR_ENABLED, KVM_MSR_ENABLED},
        {"KVM_CPUID_SIGNATURE", kKVM_CPUID_SIGNATURE, KVM_CPUID_SIGNATURE},
        {"KVM_CPUID_FEATURES", kKVM_CPUID_FEATURES, KVM_CPUID_FEATURES},
        {"KVM_FEATURE_CLOCKSOURCE", kKVM_FEATURE_CLOCKSOURCE, KVM_FEATURE_CLOCKSOURCE},
        {"KVM_FEATURE_CLOCKSOURCE2", kKVM_FEATURE_CLOCKSOURCE2, KVM_FEATURE_CLOCKSOURCE2},
        {"KVM_FEATURE_STEAL_TIME", kKVM_FEATURE_STEAL_TIME, KVM_FEATURE_STEAL_TIME},
        {"KVM_FEATURE_CLOCKSOURCE_STABLE_BIT", kKVM_FEATURE_CLOCKSOURCE_STABLE_BIT,
         KVM_FEATURE_CLOCKSOURCE_STABLE_BIT},
        {"KVM_CLOCK_PAIRING_WALLCLOCK", kKVM_CLOCK_PAIRING_WALLCLOCK, KVM_CLOCK_PAIRING_WALLCLOCK},
    };
    for (const Pair& pair : pairs)
        EXPECT_EQ(pair.ours, pair.linux_header) << pair.name;
    EXPECT_EQ(kKVM_SIGNATURE, std::string_view(KVM_SIGNATURE, kKVM_SIGNATURE.size()));
}

// Where C++ may get the header's size wrong, all of the number but the size must agree.
TEST(LinuxHeaders, NumbersOfFlexibleArraysAgreeButForTheSize) {
    const Pair pairs[] = {
        {"KVM_GET_MSR_INDEX_LIST", kKVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_INDEX_LIST},
        {"KVM_GET_MSR_FEATURE_INDEX_LIST", kKVM_GET_MSR_FEATURE_INDEX_LIST,
         KVM_GET_MSR_FEATURE_INDEX_LIST},
        {"KVM_GET_MSRS", kKVM_GET_MSRS, KVM_GET_MSRS},
        {"KVM_SET_MSRS", kKVM_SET_MSRS, KVM_SET_MSRS},
        {"KVM_GET_SUPPORTED_CPUID", kKVM_GET_SUPPORTED_CPUID, KVM_GET_SUPPORTED_CPUID},
        {"KVM_GET_EMULATED_CPUID", kKVM_GET_EMULATED_CPUID, KVM_GET_EMULATED_CPUID},
        {"KVM_SET_CPUID2", kKVM_SET_CPUID2, KVM_SET_CPUID2},
        {"KVM_GET_CPUID2", kKVM_GET_CPUID2, KVM_GET_CPUID2},
        {"KVM_GET_SUPPORTED_HV_CPUID", kKVM_GET_SUPPORTED_HV_CPUID, KVM_GET_SUPPORTED_HV_CPUID},
        {"KVM_GET_XSAVE", kKVM_GET_XSAVE, KVM_GET_XSAVE},
        {"KVM_SET_XSAVE", kKVM_SET_XSAVE, KVM_SET_XSAVE},
        {"KVM_GET_XSAVE2", kKVM_GET_XSAVE2, KVM_GET_XSAVE2},
        {"KVM_SET_GSI_ROUTING", kKVM_SET_GSI_ROUTING, KVM_SET_GSI_ROUTING},
        {"KVM_SET_SIGNAL_MASK", kKVM_SET_SIGNAL_MASK, KVM_SET_SIGNAL_MASK},
        {"KVM_GET_REG_LIST", kKVM_GET_REG_LIST, KVM_GET_REG_LIST},
    };
    constexpr std::uint64_t no_size = ~(std::uint64_t{0x3fff} << 16);
    for (const Pair& pair : pairs)
        EXPECT_EQ(pair.ours & no_size, pair.linux_header & no_size) << pair.name;
}

// What kvm_x86.h leaves to <linux/kvm.h>: the numbers are the kernel's.
TEST(LinuxHeaders, WhatIsLeftToThemIsRight) {
    const Pair pairs[] = {
        {"KVM_GET_REGS", 0x8090ae81, KVM_GET_REGS},
        {"KVM_SET_REGS", 0x4090ae82, KVM_SET_REGS},
        {"KVM_GET_SREGS", 0x8138ae83, KVM_GET_SREGS},
        {"KVM_SET_SREGS", 0x4138ae84, KVM_SET_SREGS},
        {"KVM_GET_LAPIC", 0x8400ae8e, KVM_GET_LAPIC},
        {"KVM_SET_LAPIC", 0x4400ae8f, KVM_SET_LAPIC},
        {"KVM_GET_VCPU_EVENTS", 0x8040ae9f, KVM_GET_VCPU_EVENTS},
        {"KVM_SET_VCPU_EVENTS", 0x4040aea0, KVM_SET_VCPU_EVENTS},
        {"KVM_GET_XCRS", 0x8188aea6, KVM_GET_XCRS},
        {"KVM_SET_XCRS", 0x4188aea7, KVM_SET_XCRS},
        {"KVM_GET_DEBUGREGS", 0x8080aea1, KVM_GET_DEBUGREGS},
        {"KVM_SET_DEBUGREGS", 0x4080aea2, KVM_SET_DEBUGREGS},
        {"KVM_GET_MP_STATE", 0x8004ae98, KVM_GET_MP_STATE},
        {"KVM_SET_MP_STATE", 0x4004ae99, KVM_SET_MP_STATE},
        {"KVM_GET_IRQCHIP", 0xc208ae62, KVM_GET_IRQCHIP},
        {"KVM_SET_IRQCHIP", 0x8208ae63, KVM_SET_IRQCHIP},
        {"KVM_GET_PIT2", 0x8070ae9f, KVM_GET_PIT2},
        {"KVM_SET_PIT2", 0x4070aea0, KVM_SET_PIT2},
        {"KVM_CREATE_PIT2", 0x4040ae77, KVM_CREATE_PIT2},
        {"kvm_irq_routing_entry", 48, sizeof(::kvm_irq_routing_entry)},
    };
    for (const Pair& pair : pairs)
        EXPECT_EQ(pair.ours, pair.linux_header) << pair.name;
}

#define CONTINUO_SAME_OFFSET(type, field) \
    static_assert(offsetof(continuo::abi::type, field) == offsetof(::type, field))

static_assert(sizeof(abi::kvm_clock_data) == sizeof(::kvm_clock_data));
CONTINUO_SAME_OFFSET(kvm_clock_data, clock);
CONTINUO_SAME_OFFSET(kvm_clock_data, flags);
CONTINUO_SAME_OFFSET(kvm_clock_data, realtime);
CONTINUO_SAME_OFFSET(kvm_clock_data, host_tsc);
CONTINUO_SAME_OFFSET(kvm_clock_data, pad);
static_assert(sizeof(abi::kvm_msr_entry) == sizeof(::kvm_msr_entry));
CONTINUO_SAME_OFFSET(kvm_msr_entry, index);
CONTINUO_SAME_OFFSET(kvm_msr_entry, data);
CONTINUO_SAME_OFFSET(kvm_msrs, nmsrs);
CONTINUO_SAME_OFFSET(kvm_msrs, pad);
static_assert(sizeof(abi::kvm_cpuid_entry2) == sizeof(::kvm_cpuid_entry2));
CONTINUO_SAME_OFFSET(kvm_cpuid_entry2, flags);
CONTINUO_SAME_OFFSET(kvm_cpuid_entry2, eax);
CONTINUO_SAME_OFFSET(kvm_cpuid_entry2, edx);
static_assert(sizeof(abi::kvm_device_attr) == sizeof(::kvm_device_attr));
CONTINUO_SAME_OFFSET(kvm_device_attr, group);
CONTINUO_SAME_OFFSET(kvm_device_attr, attr);
CONTINUO_SAME_OFFSET(kvm_device_attr, addr);
static_assert(sizeof(abi::kvm_dirty_log) == sizeof(::kvm_dirty_log));
CONTINUO_SAME_OFFSET(kvm_dirty_log, slot);
CONTINUO_SAME_OFFSET(kvm_dirty_log, dirty_bitmap);
static_assert(sizeof(abi::kvm_clear_dirty_log) == sizeof(::kvm_clear_dirty_log));
CONTINUO_SAME_OFFSET(kvm_clear_dirty_log, first_page);
CONTINUO_SAME_OFFSET(kvm_clear_dirty_log, dirty_bitmap);
static_assert(sizeof(abi::kvm_userspace_memory_region) == sizeof(::kvm_userspace_memory_region));
CONTINUO_SAME_OFFSET(kvm_userspace_memory_region, flags);
CONTINUO_SAME_OFFSET(kvm_userspace_memory_region, guest_phys_addr);
CONTINUO_SAME_OFFSET(kvm_userspace_memory_region, memory_size);
CONTINUO_SAME_OFFSET(kvm_userspace_memory_region, userspace_addr);
static_assert(sizeof(abi::kvm_enable_cap) == sizeof(::kvm_enable_cap));
CONTINUO_SAME_OFFSET(kvm_enable_cap, args);
static_assert(sizeof(abi::kvm_one_reg) == sizeof(::kvm_one_reg));
CONTINUO_SAME_OFFSET(kvm_one_reg, addr);
static_assert(sizeof(abi::kvm_clock_pairing) == sizeof(::kvm_clock_pairing));
CONTINUO_SAME_OFFSET(kvm_clock_pairing, tsc);
CONTINUO_SAME_OFFSET(kvm_clock_pairing, flags);
CONTINUO_SAME_OFFSET(kvm_clock_pairing, pad);
static_assert(sizeof(abi::kvm_steal_time) == sizeof(::kvm_steal_time));
CONTINUO_SAME_OFFSET(kvm_steal_time, version);
CONTINUO_SAME_OFFSET(kvm_steal_time, preempted);
CONTINUO_SAME_OFFSET(kvm_steal_time, pad);
CONTINUO_SAME_OFFSET(kvm_xsave, region);

/// /dev/kvm, or the test is skipped.
class RealKvm : public testing::Test {
  protected:
    void SetUp() override {
        fd_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        if (fd_ < 0) GTEST_SKIP() << "/dev/kvm: " << std::strerror(errno);
    }
    void TearDown() override {
        if (fd_ >= 0) close(fd_);
    }
    int fd_ = -1;
};

// A wrong size in the number would be ENOTTY.
TEST_F(RealKvm, KnowsTheNumbersOfFlexibleArrays) {
    const auto msrs = std::make_unique<KvmMsrList<4096>>();
    ASSERT_EQ(ioctl(fd_, kKVM_GET_MSR_INDEX_LIST, msrs.get()), 0) << std::strerror(errno);
    EXPECT_GT(msrs->head.nmsrs, 0U);
    bool tsc_is_listed = false;
    for (std::uint32_t i = 0; i < msrs->head.nmsrs; ++i)
        tsc_is_listed = tsc_is_listed || msrs->indices[i] == kMSR_IA32_TSC;
    EXPECT_TRUE(tsc_is_listed);

    const auto cpuid = std::make_unique<KvmCpuid2<256>>();
    ASSERT_EQ(ioctl(fd_, kKVM_GET_SUPPORTED_CPUID, cpuid.get()), 0) << std::strerror(errno);
    bool signature_is_listed = false;
    for (std::uint32_t i = 0; i < cpuid->head.nent; ++i) {
        const abi::kvm_cpuid_entry2& leaf = cpuid->entries[i];
        signature_is_listed =
            signature_is_listed ||
            (leaf.function == kKVM_CPUID_SIGNATURE && leaf.ebx == kKVM_SIGNATURE_EBX &&
             leaf.ecx == kKVM_SIGNATURE_ECX && leaf.edx == kKVM_SIGNATURE_EDX);
    }
    EXPECT_TRUE(signature_is_listed);
}

TEST_F(RealKvm, AnswersGetClockInOurLayout) {
    const int vm = ioctl(fd_, KVM_CREATE_VM, 0);
    ASSERT_GE(vm, 0) << std::strerror(errno);
    abi::kvm_clock_data data{};
    const int result = ioctl(vm, kKVM_GET_CLOCK, &data);
    close(vm);
    ASSERT_EQ(result, 0) << std::strerror(errno);
    EXPECT_LT(data.clock, std::uint64_t{60} * 1'000'000'000);  // a VM as young as this test
}

}  // namespace
}  // namespace continuo::abi
