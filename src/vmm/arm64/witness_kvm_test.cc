// The witness guest on a real /dev/kvm: what only arm64 has.
#include "arm64/interrupt_controller.h"
#include "continuo/kvm/counter.h"
#include "continuo/kvm/doctor.h"
#include "continuo/vmm/core_registers.h"
#include "witness_kvm_fixture.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

/// False on an emulator whose CNTPOFF_EL2 does nothing: doctor finds it, and the witness must see
/// the same.
bool physical_counter_follows(const kvm::System& system) {
    const auto report = kvm::examine(system);
    return report && !state::has(report->quirks, state::Quirk::kPhysicalCounterFixed);
}

TEST_F(WitnessOnKvm, WatchesBothCountersWithWorkload) {
    boot(3, {.dirty_pages_a_second = 2000});
    ASSERT_OK(machine_->resume());
    run_for_loops(500);
    std::this_thread::sleep_for(300ms);  // where no read traps, 500 loops are over before one page
    ASSERT_OK(machine_->stop());
    EXPECT_EQ(machine_->console(), "witness: watching\n");
    const auto reports = witness_reports(machine_->memory(), 3);
    ASSERT_OK(reports);
    const bool one_offset = machine_->vm().counter_offset().has_value();
    const bool follows = physical_counter_follows(*system_);
    for (const witness::Report& report : *reports) {
        expect_sane(report);
        EXPECT_GT(report.pages_written, 0u);
        EXPECT_EQ(report.cross_checks > 0, one_offset);
        EXPECT_EQ(report.cross_skew.count > 0, one_offset && !follows)
            << report.cross_skew.before << " and " << report.cross_skew.after;
    }
    const WitnessSummary summary = summarise(*reports);
    EXPECT_EQ(summary.worst_backward_counter + summary.worst_backward_clock, 0u);
    const auto pages = verify_workload(machine_->memory(), 3);
    ASSERT_OK(pages);
    EXPECT_EQ(*pages, 3u * 64);
    // The check can fail: one word off is found.
    const std::uint64_t gpa = witness::kWorkload + 65 * kvm::kPageSize + witness::kWordStride;
    ASSERT_OK(machine_->memory().write_object(gpa, std::uint64_t{1} << 63));
    EXPECT_EQ(verify_workload(machine_->memory(), 3).error().code, state::ErrorCode::kIntegrity);
}

TEST_F(WitnessOnKvm, TheGuestsCountersAreTheHostsLessTheOffset) {
    boot(2, {});
    if (!machine_->vm().counter_offset()) GTEST_SKIP() << machine_->vm().why_no_offset()->message();
    constexpr std::uint64_t kAhead = std::uint64_t{1} << 60;
    const std::uint64_t physical_ahead = physical_counter_follows(*system_) ? kAhead : 0;
    ASSERT_OK(machine_->vm().set_counter_offset(0 - kAhead));
    const std::uint64_t before = kvm::host_counter().raw();
    ASSERT_OK(machine_->resume());
    run_for_loops(20);
    ASSERT_OK(machine_->stop());
    const std::uint64_t after = kvm::host_counter().raw();
    const auto reports = witness_reports(machine_->memory(), 2);
    ASSERT_OK(reports);
    for (const witness::Report& report : *reports) {
        expect_sane(report);
        EXPECT_GE(report.last.counter, before + kAhead);
        EXPECT_LE(report.last.counter, after + kAhead);
        EXPECT_GE(report.last.clock, before + physical_ahead);
        EXPECT_LE(report.last.clock, after + physical_ahead);
        EXPECT_EQ(report.cross_skew.count > 0, physical_ahead != kAhead);
    }
}

TEST_F(WitnessOnKvm, AFaultIsNamed) {
    boot(1, {});
    // A report outside the translation table.
    ASSERT_OK(machine_->vcpus()[0].set_one_reg(general_register(0), std::uint64_t{1} << 40));
    ASSERT_OK(machine_->resume());
    const auto until = std::chrono::steady_clock::now() + 10s;
    while (machine_->health() && std::chrono::steady_clock::now() < until)
        std::this_thread::sleep_for(1ms);
    ASSERT_FALSE(machine_->health());
    EXPECT_EQ(machine_->health().error().code, state::ErrorCode::kGuest);
    ASSERT_OK(machine_->stop());
    EXPECT_EQ(machine_->exit_code(), witness::kExitFault);
    const auto report = witness_report(machine_->memory(), 0);
    ASSERT_OK(report);
    EXPECT_EQ(report->fault_vector, 4u + 1) << "synchronous, from EL1 with SP_EL1";
    EXPECT_EQ(report->fault_error >> 26, 0x25u) << "a data abort without a change of level";
}

/// Every word other than at reset, as far as the kernel lets it be.
arm64::GicState changed(arm64::GicState state) {
    arm64::GicDistributor& distributor = state.distributor;
    distributor.control |= 2;        // the second group is enabled
    distributor.config[0] &= ~0x2u;  // interrupt 32 is triggered by level; 33 by its edge,
    distributor.pending = 0x2;       // has come,
    distributor.route[1] = 1;        // and goes to vCPU 1
    distributor.enabled = 0x7;
    distributor.active = 0x4;
    distributor.level = 0x1;
    distributor.priority[0] = 0xa0b0'c0d0;
    arm64::GicVcpuState& vcpu = state.vcpus[1];
    vcpu.redistributor.enabled |= 1u << 27;
    vcpu.redistributor.pending = 1u << 3;
    vcpu.redistributor.active = 1u << 27;
    vcpu.redistributor.level = 1u << 26;
    vcpu.redistributor.priority[7] = 0x2030'4050;
    vcpu.cpu_interface.priority_mask = 0xf0;
    vcpu.cpu_interface.group_enable[1] = 1;
    vcpu.cpu_interface.binary_point[1] = 4;
    vcpu.cpu_interface.active_priorities[1][0] = 0x10;
    return state;
}

TEST_F(WitnessOnKvm, TheInterruptControllerComesBackAsItWas) {
    boot(2, {});
    if (machine_->board().gic() == nullptr) GTEST_SKIP() << "this host can give no VM a GICv3";
    const auto reset = machine_->board().gic()->save(2);
    ASSERT_OK(reset);
    const arm64::GicState wanted = changed(*reset);
    ASSERT_OK(machine_->board().gic()->load(wanted));
    const auto loaded = machine_->board().gic()->save(2);
    ASSERT_OK(loaded);
    EXPECT_EQ(loaded->distributor, wanted.distributor);
    EXPECT_EQ(loaded->vcpus[0], wanted.vcpus[0]);
    EXPECT_EQ(loaded->vcpus[1].redistributor, wanted.vcpus[1].redistributor);
    EXPECT_EQ(loaded->vcpus[1].cpu_interface, wanted.vcpus[1].cpu_interface);
    // A kernel that cannot be what the guest's was says so.
    arm64::GicState other = wanted;
    other.distributor.implementer ^= 0xf000;
    EXPECT_EQ(machine_->board().gic()->load(other).error().code, state::ErrorCode::kKernel);
}

TEST_F(WitnessOnKvm, StateOfAnotherBoardIsRefused) {
    boot(1, {});
    auto state = save_state(*machine_, *system_);
    ASSERT_OK(state);
    if (!state->gic) GTEST_SKIP() << "this host can give no VM a GICv3";
    state->gic.reset();
    const auto loaded = load_state(*machine_, *state);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().where, "interrupt controller");
}

TEST_F(WitnessOnKvm, StateMovesToASecondVm) {
    boot(2, {.dirty_pages_a_second = 500});
    ASSERT_OK(machine_->resume());
    run_for_loops(100);
    ASSERT_OK(machine_->stop());
    const auto saved = save_state(*machine_, *system_);
    ASSERT_OK(saved);
    const auto state = decode_state(encode_state(*saved));
    ASSERT_OK(state);
    const auto before = witness_reports(machine_->memory(), 2);
    ASSERT_OK(before);

    auto second = VirtualMachine::create(*system_, machine_->config(), machine_->cpu_model());
    ASSERT_OK(second);
    const auto from = machine_->memory().at(0, machine_->memory().size());
    ASSERT_OK((*second)->memory().write(0, *from));
    if (const auto offset = machine_->vm().counter_offset())
        ASSERT_OK((*second)->vm().set_counter_offset(*offset));
    machine_ = std::move(*second);
    ASSERT_OK(load_state(*machine_, *state));
    ASSERT_OK(arm_timers(*machine_, *state));

    const auto again = save_state(*machine_, *system_);
    ASSERT_OK(again);
    EXPECT_EQ(*again, *state) << "what was loaded reads back";
    EXPECT_GT(state->vcpus[0].registers.size(), 100u);
    ASSERT_OK(machine_->resume());
    run_for_loops(100);
    ASSERT_OK(machine_->stop());
    const auto after = witness_reports(machine_->memory(), 2);
    ASSERT_OK(after);
    for (std::size_t i = 0; i < 2; ++i) {
        EXPECT_GT((*after)[i].loops, (*before)[i].loops);
        EXPECT_EQ((*after)[i].fault_vector, 0u);
        if (machine_->vm().counter_offset()) expect_sane((*after)[i]);
    }
    ASSERT_OK(verify_workload(machine_->memory(), 2));
}

}  // namespace
}  // namespace continuo::vmm
