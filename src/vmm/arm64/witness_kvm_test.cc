// The witness guest on a real /dev/kvm: what only arm64 has.
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
