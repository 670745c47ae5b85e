// The wrappers on a real /dev/kvm: a 16-bit guest of a few bytes, and every get and set that a
// machine's state needs.
#include <gtest/gtest.h>
#include <linux/kvm.h>

#include <cstring>
#include <thread>
#include <vector>

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
        ASSERT_OK(vm_->set_tss_address(0xfffbd000));
        ASSERT_OK(vm_->create_irqchip());
        auto memory = GuestMemory::create(64 * kPageSize);
        ASSERT_TRUE(memory);
        memory_.emplace(std::move(*memory));
    }

    Vcpu make_vcpu(std::uint32_t id) {
        auto vcpu = Vcpu::create(*vm_, id);
        EXPECT_TRUE(vcpu) << vcpu.error().message();
        auto cpuid = system_->supported_cpuid();
        EXPECT_TRUE(cpuid && vcpu->set_cpuid(*cpuid));
        return std::move(*vcpu);
    }

    std::optional<System> system_;
    std::optional<GuestMemory> memory_;
    std::optional<Vm> vm_;
};

/// Real mode at 0:1000.
void start_at_1000(Vcpu& vcpu) {
    auto sregs = vcpu.sregs();
    ASSERT_TRUE(sregs);
    sregs->cs.base = 0;
    sregs->cs.selector = 0;
    ASSERT_OK(vcpu.set_sregs(*sregs));
    kvm_regs regs{};
    regs.rip = 0x1000;
    regs.rflags = 2;
    ASSERT_OK(vcpu.set_regs(regs));
}

TEST_F(WrappersOnKvm, GuestWritesReachMemoryAndTheDirtyLog) {
    // mov byte [0x5000], 0x2a; out 0x80, al
    const std::uint8_t code[] = {0xc6, 0x06, 0x00, 0x50, 0x2a, 0xe6, 0x80};
    ASSERT_OK(memory_->write(0x1000, std::as_bytes(std::span{code})));
    ASSERT_OK(vm_->set_memory(0, *memory_, true));
    Vcpu vcpu = make_vcpu(0);
    start_at_1000(vcpu);
    const auto end = vcpu.run();
    ASSERT_TRUE(end) << end.error().message();
    EXPECT_EQ(*end, RunEnd::kExit);
    EXPECT_EQ(vcpu.run_page().exit_reason, std::uint32_t{KVM_EXIT_IO});
    EXPECT_EQ(memory_->load<std::uint8_t>(0x5000), 0x2a);
    std::vector<std::uint64_t> dirty(1);
    ASSERT_OK(vm_->get_dirty_log(0, *memory_, dirty));
    EXPECT_TRUE(dirty[0] & (1u << 5));
    EXPECT_FALSE(dirty[0] & (1u << 6));
}

TEST_F(WrappersOnKvm, ImmediateExitComesBackWithoutEntering) {
    const std::uint8_t code[] = {0xeb, 0xfe};  // jmp $
    ASSERT_OK(memory_->write(0x1000, std::as_bytes(std::span{code})));
    ASSERT_OK(vm_->set_memory(0, *memory_, false));
    Vcpu vcpu = make_vcpu(0);
    start_at_1000(vcpu);
    vcpu.set_immediate_exit(true);
    const auto end = vcpu.run();
    ASSERT_TRUE(end);
    EXPECT_EQ(*end, RunEnd::kInterrupted);
    EXPECT_EQ(vcpu.regs()->rip, 0x1000u);
}

TEST_F(WrappersOnKvm, EveryPieceOfStateCanBeReadAndWrittenBack) {
    ASSERT_OK(vm_->create_pit());
    Vcpu vcpu = make_vcpu(0);
    ASSERT_OK(vcpu.set_regs(*vcpu.regs()));
    ASSERT_OK(vcpu.set_sregs(*vcpu.sregs()));
    ASSERT_OK(vcpu.set_lapic(*vcpu.lapic()));
    ASSERT_OK(vcpu.set_events(*vcpu.events()));
    ASSERT_OK(vcpu.set_debugregs(*vcpu.debugregs()));
    ASSERT_OK(vcpu.set_mp_state(*vcpu.mp_state()));
    std::vector<std::byte> xsave(4096);
    ASSERT_OK(vcpu.get_xsave(xsave));
    ASSERT_OK(vcpu.set_xsave(xsave));
    EXPECT_FALSE(vcpu.cpuid()->empty());
    ASSERT_OK(vm_->set_irqchip(*vm_->get_irqchip(KVM_IRQCHIP_IOAPIC)));
    ASSERT_OK(vm_->set_pit(*vm_->get_pit()));
}

TEST_F(WrappersOnKvm, MsrBatchesNameTheMsrThatIsRefused) {
    Vcpu vcpu = make_vcpu(0);
    MsrBatch batch;
    ASSERT_TRUE(batch.add(0x10));
    ASSERT_TRUE(batch.add(0x4b564d01));
    ASSERT_OK(vcpu.get_msrs(batch));
    ASSERT_TRUE(batch.add(0x12345678));
    const auto refused = vcpu.get_msrs(batch);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().where.find("0x12345678"), std::string::npos);
    for (std::uint32_t i = batch.size(); i < MsrBatch::kCapacity; ++i)
        ASSERT_TRUE(batch.add(i));
    EXPECT_FALSE(batch.add(1));
}

TEST_F(WrappersOnKvm, TheClockRunsAndItsErrorsNameTheIoctl) {
    Vcpu vcpu = make_vcpu(0);
    const auto before = vm_->get_clock();
    ASSERT_TRUE(before) << before.error().message();
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
    const auto after = vm_->get_clock();
    ASSERT_TRUE(after);
    EXPECT_GE(after->clock - before->clock, 2'000'000u);
    kvm_clock_data bad{};
    bad.flags = 0xffff0000;
    const auto refused = vm_->set_clock(bad);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().where, "KVM_SET_CLOCK");
    EXPECT_EQ(refused.error().sys_errno, EINVAL);
    EXPECT_EQ(vcpu.kvmclock_ctrl().error().sys_errno, EINVAL) << "no clock page yet";
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
