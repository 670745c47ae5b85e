// KVM's counters on arm64: what each call does to them, to the tick, and the contract of every
// machine on hosts of each kind.
#include "continuo/model/kvm_arm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "continuo/machine/migration.h"
#include "continuo/model/kvm_arm_machine.h"
#include "contract_tests.h"

namespace continuo::model {
namespace {

using abi::kKVM_REG_ARM_PTIMER_CNT;
using abi::kKVM_REG_ARM_TIMER_CNT;
using state::ErrorCode;

const ArmRules kOld = ArmRules::linux(6, 1);
const ArmRules kNew = ArmRules::linux(6, 12);

/// A VM of two vCPUs, made at counter 1000 and 1010.
struct Vm {
    explicit Vm(ArmRules rules, ArmMode mode = ArmMode::kVhe, bool ecv = false) : kvm{host, rules} {
        host.counter = 1000;
        host.mode = mode;
        host.ecv_cntpoff = ecv;
        EXPECT_EQ(*kvm.create_vcpu(), 0U);
        host.counter = 1010;
        EXPECT_EQ(*kvm.create_vcpu(), 1U);
    }
    ArmHost host;
    KvmArm kvm;
};

TEST(KvmArm, ReleasesDifferInTheOffsetCall) {
    EXPECT_FALSE(ArmRules::linux(5, 19).counter_offset);
    EXPECT_FALSE(ArmRules::linux(6, 3).counter_offset);
    EXPECT_TRUE(ArmRules::linux(6, 4).counter_offset);
    EXPECT_TRUE(ArmRules::linux(7, 2).counter_offset);
}

TEST(KvmArm, EachNewVcpuStartsTheVirtualCounterAgain) {
    for (const ArmRules rules : {kOld, kNew}) {
        Vm vm{rules};
        vm.host.counter = 1500;
        EXPECT_EQ(vm.kvm.guest_cntvct(0), 490U);  // 1500 - 1010, not - 1000
        EXPECT_EQ(vm.kvm.guest_cntvct(1), 490U);
        EXPECT_EQ(vm.kvm.guest_cntpct(0), 1500U);
        // Restored to 70 000, and then one more vCPU: it is lost.
        ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_TIMER_CNT, 70'000));
        vm.host.counter = 1600;
        EXPECT_EQ(vm.kvm.guest_cntvct(1), 70'100U);  // 70 000 + (1600 - 1500)
        ASSERT_TRUE(vm.kvm.create_vcpu());
        EXPECT_EQ(vm.kvm.guest_cntvct(0), 0U);
    }
}

TEST(KvmArm, EachNewVcpuTakesThePhysicalCounterBackToTheHosts) {
    Vm vm{kNew};
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_PTIMER_CNT, 5));
    EXPECT_EQ(vm.kvm.guest_cntpct(0), 5U);
    ASSERT_TRUE(vm.kvm.create_vcpu());
    EXPECT_EQ(vm.kvm.guest_cntpct(0), 1010U);
    EXPECT_EQ(vm.kvm.physical_access(0), PhysicalAccess::kNative);
}

TEST(KvmArm, AnOffsetOutlivesTheCreationOfVcpus) {
    Vm vm{kNew};
    ASSERT_TRUE(vm.kvm.set_counter_offset({300, 0}));
    vm.host.counter = 2000;
    ASSERT_TRUE(vm.kvm.create_vcpu());
    for (unsigned v = 0; v < 3; ++v) {
        EXPECT_EQ(vm.kvm.guest_cntvct(v), 1700U);  // 2000 - 300
        EXPECT_EQ(vm.kvm.guest_cntpct(v), 1700U);
    }
}

TEST(KvmArm, TheOldestKernelsHaveNeitherCallNorPhysicalRegister) {
    Vm vm{kOld};
    const Status call = vm.kvm.set_counter_offset({300, 0});
    ASSERT_FALSE(call);
    EXPECT_EQ(call.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(call.error().sys_errno, ENOTTY);
    EXPECT_EQ(vm.kvm.set_one_reg(0, kKVM_REG_ARM_PTIMER_CNT, 5).error().sys_errno, ENOENT);
    EXPECT_EQ(vm.kvm.one_reg(0, kKVM_REG_ARM_PTIMER_CNT).error().sys_errno, ENOENT);
    EXPECT_EQ(vm.kvm.guest_cntpct(0), vm.host.counter);
}

TEST(KvmArm, OneRegisterMovesEveryVcpuAndNothingAfterAnOffset) {
    Vm vm{kNew};
    vm.host.counter = 5000;
    ASSERT_TRUE(vm.kvm.set_one_reg(1, kKVM_REG_ARM_TIMER_CNT, 1ULL << 40));
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_PTIMER_CNT, 77));
    vm.host.counter = 5003;
    EXPECT_EQ(vm.kvm.guest_cntvct(0), (1ULL << 40) + 3);
    EXPECT_EQ(*vm.kvm.one_reg(0, kKVM_REG_ARM_TIMER_CNT), (1ULL << 40) + 3);
    EXPECT_EQ(vm.kvm.guest_cntpct(1), 80U);  // 77 + 3

    ASSERT_TRUE(vm.kvm.set_counter_offset({3, 0}));
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_TIMER_CNT, 1)) << "the answer is 0 all the same";
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_PTIMER_CNT, 1));
    EXPECT_EQ(vm.kvm.guest_cntvct(0), 5000U);  // 5003 - 3
    EXPECT_EQ(vm.kvm.guest_cntpct(0), 5000U);
}

TEST(KvmArm, WritingEachVcpusOwnValueLeavesAllAtTheLast) {
    Vm vm{kOld};
    // Saved in turn, 40 ticks apart, as a VMM does; restored in turn, 25 ticks apart.
    vm.host.counter = 10'000;
    const std::uint64_t first = *vm.kvm.one_reg(0, kKVM_REG_ARM_TIMER_CNT);
    vm.host.counter = 10'040;
    const std::uint64_t second = *vm.kvm.one_reg(1, kKVM_REG_ARM_TIMER_CNT);
    EXPECT_EQ(second - first, 40U);
    vm.host.counter = 20'000;
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_TIMER_CNT, first));
    vm.host.counter = 20'025;
    const std::uint64_t before = vm.kvm.guest_cntvct(0);
    ASSERT_TRUE(vm.kvm.set_one_reg(1, kKVM_REG_ARM_TIMER_CNT, second));
    // vCPU 0's counter moves by 40 saved - 25 passed.
    EXPECT_EQ(vm.kvm.guest_cntvct(0) - before, 15U);
    EXPECT_EQ(vm.kvm.guest_cntvct(0), second);
}

TEST(KvmArm, RefusesAnOffsetWhileAVcpuRuns) {
    Vm vm{kNew};
    vm.kvm.enter(1, 0);
    const Status busy = vm.kvm.set_counter_offset({7, 0});
    ASSERT_FALSE(busy);
    EXPECT_EQ(busy.error().code, ErrorCode::kBusy);
    EXPECT_EQ(busy.error().sys_errno, EBUSY);
    EXPECT_FALSE(vm.kvm.offset_was_set());
    vm.kvm.exit(1);
    ASSERT_TRUE(vm.kvm.set_counter_offset({7, 0}));
    EXPECT_EQ(vm.kvm.set_counter_offset({7, 1}).error().sys_errno, EINVAL);
}

TEST(KvmArm, ARunningVcpuGoesOnWithTheOffsetItWasEnteredWith) {
    Vm vm{kNew};
    vm.host.counter = 2000;
    vm.kvm.enter(0, 3);
    ASSERT_TRUE(vm.kvm.set_one_reg(1, kKVM_REG_ARM_TIMER_CNT, 0));
    EXPECT_EQ(vm.kvm.guest_cntvct(1), 0U);
    EXPECT_EQ(vm.kvm.guest_cntvct(0), 990U);  // 2000 - 1010 until it is entered again
    vm.kvm.exit(0);
    vm.kvm.enter(0, 3);
    EXPECT_EQ(vm.kvm.guest_cntvct(0), 0U);

    // A trapped read takes the VM's offset of the moment, CNTPOFF_EL2 the loaded one.
    ASSERT_TRUE(vm.kvm.set_one_reg(1, kKVM_REG_ARM_PTIMER_CNT, 500));
    vm.kvm.exit(0);
    vm.kvm.enter(0, 3);
    ASSERT_EQ(vm.kvm.physical_access(0), PhysicalAccess::kTrapped);
    ASSERT_TRUE(vm.kvm.set_one_reg(1, kKVM_REG_ARM_PTIMER_CNT, 900));
    EXPECT_EQ(vm.kvm.guest_cntpct(0), 900U);
    Vm ecv{kNew, ArmMode::kVhe, true};
    ASSERT_TRUE(ecv.kvm.set_one_reg(1, kKVM_REG_ARM_PTIMER_CNT, 500));
    ecv.kvm.enter(0, 3);
    ASSERT_TRUE(ecv.kvm.set_one_reg(1, kKVM_REG_ARM_PTIMER_CNT, 900));
    EXPECT_EQ(ecv.kvm.guest_cntpct(0), 500U);
}

TEST(KvmArm, ThePhysicalCounterIsReadAsTheHostCan) {
    struct Row {
        ArmMode mode;
        bool ecv;
        std::uint64_t offset;
        PhysicalAccess access;
        std::uint64_t reads;  // at counter 9000
    };
    constexpr std::array rows{
        Row{ArmMode::kVhe, false, 0, PhysicalAccess::kNative, 9000},
        Row{ArmMode::kVhe, true, 0, PhysicalAccess::kNative, 9000},
        Row{ArmMode::kVhe, false, 400, PhysicalAccess::kTrapped, 8600},  // 9000 - 400
        Row{ArmMode::kVhe, true, 400, PhysicalAccess::kCntpoff, 8600},
        Row{ArmMode::kNvhe, false, 0, PhysicalAccess::kNative, 9000},
        Row{ArmMode::kNvhe, false, 400, PhysicalAccess::kTrapped, 8600},
        Row{ArmMode::kNvhe, true, 400, PhysicalAccess::kTrapped, 8600},  // ECV is VHE's alone
        Row{ArmMode::kProtected, false, 400, PhysicalAccess::kNative, 9000},
        Row{ArmMode::kProtected, true, 400, PhysicalAccess::kNative, 9000},
    };
    for (const Row& row : rows) {
        Vm vm{kNew, row.mode, row.ecv};
        ASSERT_TRUE(vm.kvm.set_counter_offset({row.offset, 0}));
        vm.host.counter = 9000;
        EXPECT_EQ(vm.kvm.physical_access(0), row.access);
        EXPECT_EQ(vm.kvm.guest_cntpct(0), row.reads);
        EXPECT_EQ(vm.kvm.guest_cntvct(0), 9000 - row.offset);
    }
}

TEST(KvmArm, ACntpoffWithoutEffectLeavesTheHostsCounter) {
    Vm vm{kNew, ArmMode::kVhe, true};
    vm.host.cntpoff_without_effect = true;
    ASSERT_TRUE(vm.kvm.set_counter_offset({400, 0}));
    EXPECT_EQ(vm.kvm.guest_cntpct(0), 1010U);
    EXPECT_EQ(*vm.kvm.one_reg(0, kKVM_REG_ARM_PTIMER_CNT), 610U) << "what KVM believes";
}

TEST(KvmArm, UnderPkvmTheRegistersTellOfAPhysicalOffsetThatTheGuestDoesNotSee) {
    Vm vm{kNew, ArmMode::kProtected};
    ASSERT_TRUE(vm.kvm.set_counter_offset({10, 0}));
    EXPECT_EQ(*vm.kvm.one_reg(0, kKVM_REG_ARM_PTIMER_CNT), 1000U);  // 1010 - 10
    EXPECT_EQ(vm.kvm.guest_cntpct(0), 1010U);
    EXPECT_EQ(vm.kvm.guest_cntvct(0), 1000U);

    KvmArm hidden{vm.host, kNew, true};
    ASSERT_TRUE(hidden.create_vcpu());
    EXPECT_EQ(hidden.guest_cntvct(0), 1010U) << "a protected guest's counters are the host's";
    EXPECT_EQ(hidden.set_counter_offset({10, 0}).error().sys_errno, EINVAL);
}

TEST(KvmArm, TimersGoByTheCounterOfTheirOwnOffset) {
    Vm vm{kNew};
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_TIMER_CNT, 100));  // virtual: counter - 910
    ASSERT_TRUE(vm.kvm.set_one_reg(0, abi::kKVM_REG_ARM_TIMER_CVAL, 150));
    ASSERT_TRUE(vm.kvm.set_one_reg(0, abi::kKVM_REG_ARM_PTIMER_CVAL, 1020));
    ASSERT_TRUE(vm.kvm.set_one_reg(0, abi::kKVM_REG_ARM_TIMER_CTL, 0b101));   // ISTATUS is not kept
    ASSERT_TRUE(vm.kvm.set_one_reg(0, abi::kKVM_REG_ARM_PTIMER_CTL, 0b011));  // masked
    vm.host.counter = 1059;
    EXPECT_EQ(*vm.kvm.one_reg(0, abi::kKVM_REG_ARM_TIMER_CTL), 0b001U);  // 149 < 150
    vm.host.counter = 1060;
    EXPECT_TRUE(vm.kvm.timer_due(0, ArmTimer::kVirtual));
    EXPECT_EQ(*vm.kvm.one_reg(0, abi::kKVM_REG_ARM_TIMER_CTL), 0b101U);
    EXPECT_FALSE(vm.kvm.timer_due(0, ArmTimer::kPhysical));
    ASSERT_TRUE(vm.kvm.set_one_reg(0, abi::kKVM_REG_ARM_PTIMER_CTL, 0b001));
    EXPECT_TRUE(vm.kvm.timer_due(0, ArmTimer::kPhysical));  // 1060 >= 1020
    // Moved back with its counter, it is no longer due.
    ASSERT_TRUE(vm.kvm.set_counter_offset({1000, 0}));
    EXPECT_FALSE(vm.kvm.timer_due(0, ArmTimer::kPhysical));  // 60 < 1020
}

TEST(KvmArm, CntfrqIsThatOfTheCpuTheVcpuRunsOn) {
    Vm vm{kNew};
    vm.host.cntfrq[5] = 24'000'000;  // firmware's mistake
    vm.kvm.enter(0, 0);
    EXPECT_EQ(vm.kvm.guest_cntfrq(0), 62'500'000U);
    vm.kvm.exit(0);
    vm.kvm.enter(0, 5);
    EXPECT_EQ(vm.kvm.guest_cntfrq(0), 24'000'000U);
}

TEST(KvmArm, ThePtpCallGivesBothCountersOfOneInstant) {
    Vm vm{kNew};
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_TIMER_CNT, 0));      // virtual: - 1010
    ASSERT_TRUE(vm.kvm.set_one_reg(0, kKVM_REG_ARM_PTIMER_CNT, 1000));  // physical: - 10
    vm.host.counter = (7ULL << 32) + 1010;
    // 16 ns a tick at 62.5 MHz: 1.7e18 + 16 * (7 * 2^32 + 1010) = 1 700 000 481 036 353 312
    const std::uint64_t real = 1'700'000'481'036'353'312;
    const auto virt = vm.kvm.ptp(abi::kKVM_PTP_VIRT_COUNTER);
    ASSERT_TRUE(virt);
    EXPECT_EQ(*virt, (std::array<std::uint64_t, 4>{real >> 32, real & 0xffff'ffff, 7, 0}));
    const auto phys = vm.kvm.ptp(abi::kKVM_PTP_PHYS_COUNTER);
    ASSERT_TRUE(phys);
    EXPECT_EQ((*phys)[2], 7U);
    EXPECT_EQ((*phys)[3], 1000U);  // 7 * 2^32 + 1010 - 10
    EXPECT_FALSE(vm.kvm.ptp(2));
    vm.host.arch_counter_clocksource = false;
    EXPECT_FALSE(vm.kvm.ptp(abi::kKVM_PTP_VIRT_COUNTER));
}

// The machine on it.

TEST(KvmArmMachine, AUserSpaceWithAnotherCounterIsFoundOut) {
    // The bracket of a read is at most three times what a call takes.
    for (const std::uint64_t call_ticks : {0U, 3U}) {
        ArmHost host;
        KvmArm vm{host, kNew};
        KvmArmMachine machine{host, vm, 2, true, {call_ticks, 1}};
        EXPECT_TRUE(machine.tsc_map(0));
        host.user_offset = 10;
        const auto map = machine.tsc_map(0);
        ASSERT_FALSE(map);
        EXPECT_EQ(map.error().code, ErrorCode::kKernel);
        if (call_ticks == 0) {
            EXPECT_NE(map.error().what.find("10 ticks off"), std::string::npos);
        }
    }
}

TEST(KvmArmMachine, OffsetsThatDisagreeAreRefusedAndNothingMoves) {
    ArmHost host;
    KvmArm vm{host, kNew};
    KvmArmMachine machine{host, vm, 3, true, {}};
    ASSERT_TRUE(machine.set_tsc_offset(0, 1000));
    const Status refused = machine.set_tsc_offset(2, 1007);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().what.find("7 ticks apart"), std::string::npos);
    EXPECT_EQ(machine.tsc_map(2)->offset(), 1000U);
    ASSERT_TRUE(machine.anchor()) << "the next plan begins with one";
    EXPECT_TRUE(machine.set_tsc_offset(2, 1007));
}

struct Move {
    ArmHost source;
    ArmHost destination;
    ArmRules from = kNew;
    ArmRules to = kNew;
};

/// Moves a guest of 3 vCPUs with the policy freeze: what came of its last vCPU's counter.
struct Moved {
    tl::expected<state::Plan, std::string> plan = tl::unexpected(std::string{});
    bool holds = false;
    std::int64_t certified = 0;  ///< its seam according to the certificate, ticks,
    std::uint64_t bound = 0;     ///< within this of the true one
    std::int64_t seam = 0;       ///< what the guest reads on resuming less what it read last
};

Moved move(Move& hosts, ArmCallCost cost) {
    Moved moved;
    hosts.destination.identity.boot_id = {2};
    hosts.destination.counter = 77'000'000'000;
    KvmArm source_vm{hosts.source, hosts.from};
    KvmArmMachine source{hosts.source, source_vm, 3, true, cost};
    hosts.source.counter += 1'000'000'000;
    const auto record = machine::capture(source);
    EXPECT_TRUE(record) << record.error().message();
    KvmArm vm{hosts.destination, hosts.to};
    KvmArmMachine machine{hosts.destination, vm, 3, true, cost};
    const auto here = machine::destination_for(machine, *record);
    EXPECT_TRUE(here);
    state::PlanOptions options;
    options.policy = state::Policy::kFreeze;
    const auto plan = state::plan(*record, *here, options);
    if (!plan) {
        moved.plan = tl::unexpected(plan.error().front().message);
        return moved;
    }
    moved.plan = *plan;
    const auto applied = machine::apply(machine, *plan);
    EXPECT_TRUE(applied) << applied.error().message();
    const auto certificate = machine::verify(machine, *plan, *applied);
    moved.holds = certificate->holds();
    for (const auto& clock : certificate->clocks)
        if (clock.clock == state::ClockKind::kVirtualCounter && clock.vcpu == 2U) {
            moved.certified = clock.seam;
            moved.bound = clock.seam_bound;
        }
    hosts.destination.counter = plan->resume_at.raw();
    moved.seam = static_cast<std::int64_t>(vm.guest_cntvct(2) - record->vcpus[2].counter.raw());
    return moved;
}

TEST(KvmArmMachine, AMoveByOffsetHasNoSeamInEitherCounter) {
    Move hosts;
    const Moved moved = move(hosts, {40, 7});
    ASSERT_TRUE(moved.plan) << moved.plan.error();
    EXPECT_TRUE(moved.holds);
    EXPECT_EQ(moved.seam, 0);
    EXPECT_EQ(moved.certified, 0);
    EXPECT_EQ(moved.bound, 0U);
}

TEST(KvmArmMachine, AMoveToAnOldKernelGoesByValueWithinItsBound) {
    std::int64_t largest = 0;
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
        Move hosts;
        hosts.to = kOld;
        const Moved moved = move(hosts, {40, seed});
        ASSERT_TRUE(moved.plan) << moved.plan.error();
        EXPECT_TRUE(moved.holds);
        const auto untold = static_cast<std::uint64_t>(std::abs(moved.seam - moved.certified));
        EXPECT_LE(untold, moved.bound) << "seed " << seed;
        largest = std::max(largest, std::abs(moved.seam));
    }
    EXPECT_GT(largest, 0) << "calls take time, and by value some of it shows";
}

TEST(KvmArmMachine, AnotherFrequencyIsRefusedByThePlanner) {
    Move hosts;
    hosts.destination.frequency = *time::Hz::from_hz(24'000'000);
    const Moved moved = move(hosts, {});
    ASSERT_FALSE(moved.plan);
    EXPECT_NE(moved.plan.error().find("no counter scaling"), std::string::npos)
        << moved.plan.error();
}

// The contract.

using machine::ContractFactory;
using machine::MachineContract;

class ArmSubject final : public machine::ContractSubject {
  public:
    ArmSubject(ArmHost host, ArmRules rules, std::size_t vcpus, bool own, std::uint64_t ticks)
        : host_{host},
          vm_{host_, rules},
          machine_{host_, vm_, static_cast<unsigned>(vcpus), own, {ticks, 1}} {}
    machine::Machine& machine() override { return machine_; }
    void sleep_ns(std::uint64_t ns) override {
        host_.counter += ns * host_.frequency.hz() / time::kNanosPerSecond;
    }

  private:
    ArmHost host_;
    KvmArm vm_;
    KvmArmMachine machine_;
};

ContractFactory arm(std::string name, ArmMode mode, bool ecv, ArmRules rules, bool own = true) {
    return {std::move(name), [=](std::size_t vcpus) {
                ArmHost host;
                host.mode = mode;
                host.ecv_cntpoff = ecv;
                return std::make_unique<ArmSubject>(host, rules, vcpus, own, 30);
            }};
}

INSTANTIATE_TEST_SUITE_P(KvmArm, MachineContract,
                         testing::Values(arm("vhe", ArmMode::kVhe, false, kNew),
                                         arm("vhe_ecv", ArmMode::kVhe, true, kNew),
                                         arm("nvhe", ArmMode::kNvhe, false, kNew),
                                         arm("protected", ArmMode::kProtected, false, kNew),
                                         arm("linux61", ArmMode::kVhe, false, kOld),
                                         arm("by_value", ArmMode::kVhe, false, kNew, false)),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace continuo::model
