// The wrappers on a real arm64 /dev/kvm: registers of every size, the vGICv3, and the counter.
#include <gtest/gtest.h>
#include <linux/kvm.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "continuo/abi/arm64.h"
#include "continuo/kvm/counter.h"
#include "continuo/kvm/vcpu.h"

namespace continuo::kvm {
namespace {

#define ASSERT_OK(expression)                                \
    do {                                                     \
        auto outcome_ = (expression);                        \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

class WrappersOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto system = System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        system_.emplace(std::move(*system));
        auto vm = Vm::create(*system_);
        ASSERT_TRUE(vm) << vm.error().message();
        vm_.emplace(std::move(*vm));
    }

    Vcpu make_vcpu(std::uint32_t id, bool powered_off = false) {
        auto vcpu = Vcpu::create(*vm_, id);
        EXPECT_TRUE(vcpu) << vcpu.error().message();
        const auto ready = vcpu->init(*vm_, powered_off);
        EXPECT_TRUE(ready) << ready.error().message();
        return std::move(*vcpu);
    }

    std::optional<System> system_;
    std::optional<Vm> vm_;
};

TEST_F(WrappersOnKvm, EveryListedRegisterCanBeReadAndMostWrittenBack) {
    Vcpu vcpu = make_vcpu(0);
    const auto list = vcpu.reg_list();
    ASSERT_TRUE(list) << list.error().message();
    EXPECT_NE(std::find(list->begin(), list->end(), abi::kKVM_REG_ARM_TIMER_CNT), list->end());
    std::size_t written = 0;
    for (const std::uint64_t id : *list) {
        std::vector<std::byte> value(register_size(id));
        ASSERT_OK(vcpu.get_one_reg(id, value));
        if (vcpu.set_one_reg(id, std::span<const std::byte>{value})) ++written;
    }
    EXPECT_GT(list->size(), 100u);
    EXPECT_GT(written, list->size() * 9 / 10);
}

TEST_F(WrappersOnKvm, AValueOfAnotherSizeIsRefusedAndTheRegisterNamed) {
    Vcpu vcpu = make_vcpu(0);
    std::vector<std::byte> four(4);
    const auto refused = vcpu.get_one_reg(abi::kKVM_REG_ARM_TIMER_CNT, four);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, state::ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().where.find("0x603000000013df1a"), std::string::npos)
        << refused.error().where;
    const auto unknown = vcpu.one_reg(0x6030'0000'0013'ffff);
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().sys_errno, ENOENT);
}

TEST_F(WrappersOnKvm, AVcpuThatWaitsForItsCpuOnSaysSo) {
    Vcpu boot = make_vcpu(0);
    Vcpu other = make_vcpu(1, true);
    EXPECT_EQ(boot.mp_state()->mp_state, std::uint32_t{KVM_MP_STATE_RUNNABLE});
    EXPECT_EQ(other.mp_state()->mp_state, std::uint32_t{KVM_MP_STATE_STOPPED});
    ASSERT_OK(other.set_events(*other.events()));
}

TEST_F(WrappersOnKvm, ImmediateExitComesBackWithoutEntering) {
    Vcpu vcpu = make_vcpu(0);
    vcpu.set_immediate_exit(true);
    const auto end = vcpu.run();
    ASSERT_TRUE(end) << end.error().message();
    EXPECT_EQ(*end, RunEnd::kInterrupted);
}

TEST_F(WrappersOnKvm, TheVgicKeepsWhatIsWritten) {
    auto vgic = Device::create(*vm_, KVM_DEV_TYPE_ARM_VGIC_V3);
    if (!vgic && vgic.error().code == state::ErrorCode::kUnsupported)
        GTEST_SKIP() << "this host has no GICv3: " << vgic.error().message();
    ASSERT_TRUE(vgic) << vgic.error().message();
    Vcpu vcpu = make_vcpu(0);
    ASSERT_OK(
        vgic->set_attribute_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, 0x800'0000));
    const std::uint64_t redistributors = std::uint64_t{1} << 52 | 0x80a'0000;
    ASSERT_OK(vgic->set_attribute_u64(KVM_DEV_ARM_VGIC_GRP_ADDR,
                                      KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, redistributors));
    ASSERT_OK(vgic->set_attribute_u32(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 64));
    ASSERT_OK(vgic->command(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT));
    EXPECT_EQ(*vgic->attribute_u64(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST),
              0x800'0000u);
    // GICD_ISENABLER1
    ASSERT_OK(vgic->set_attribute_u32(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0x104, 1U << 7));
    EXPECT_EQ(*vgic->attribute_u32(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, 0x104), 1U << 7);
    const auto again = vgic->command(KVM_DEV_ARM_VGIC_GRP_CTRL, 99);
    ASSERT_FALSE(again);
    EXPECT_NE(again.error().where.find("group 4, attribute 0x63"), std::string::npos)
        << again.error().where;
}

TEST_F(WrappersOnKvm, TheCounterIsOwnedFromTheStartOn) {
    if (!vm_->counter_offset()) GTEST_SKIP() << vm_->why_no_offset()->message();
    const std::uint64_t offset = *vm_->counter_offset();
    std::vector<Vcpu> vcpus;
    for (std::uint32_t id = 0; id < 3; ++id) {
        vcpus.push_back(make_vcpu(id));
        for (const Vcpu& vcpu : vcpus) {
            const std::uint64_t before = host_counter().raw() - offset;
            const auto read = vcpu.one_reg(abi::kKVM_REG_ARM_TIMER_CNT);
            const std::uint64_t after = host_counter().raw() - offset;
            ASSERT_TRUE(read) << read.error().message();
            EXPECT_LE(*read - before, after - before) << "vCPU " << vcpu.id();
        }
    }
    EXPECT_EQ(vm_->counter_offset(), offset);
}

TEST_F(WrappersOnKvm, WithoutThatTheKernelMovesItAtEachNewVcpu) {
    auto vm = Vm::create(*system_, {0, CounterOwner::kKernel});
    ASSERT_TRUE(vm) << vm.error().message();
    EXPECT_FALSE(vm->counter_offset());
    const auto init = [&](Vcpu& vcpu) { ASSERT_OK(vcpu.init(*vm, false)); };
    auto first = Vcpu::create(*vm, 0);
    ASSERT_TRUE(first);
    init(*first);
    ASSERT_OK(first->set_one_reg(abi::kKVM_REG_ARM_TIMER_CNT, std::uint64_t{1} << 60));
    EXPECT_GE(*first->one_reg(abi::kKVM_REG_ARM_TIMER_CNT), std::uint64_t{1} << 60);
    auto second = Vcpu::create(*vm, 1);
    ASSERT_TRUE(second);
    EXPECT_LT(*first->one_reg(abi::kKVM_REG_ARM_TIMER_CNT), std::uint64_t{1} << 60)
        << "the fact behind CounterOwner::kUs";
}

TEST(SystemWithoutKvm, SaysThatThereIsNone) {
    const auto system = System::open("/dev/no-such-kvm");
    ASSERT_FALSE(system);
    EXPECT_EQ(system.error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(system.error().sys_errno, ENOENT);
    const auto not_kvm = System::open("/dev/null");
    ASSERT_FALSE(not_kvm);
    EXPECT_EQ(not_kvm.error().where, "KVM_GET_API_VERSION");
}

}  // namespace
}  // namespace continuo::kvm
