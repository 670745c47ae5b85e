// The witness guest on a real /dev/kvm: what only x86-64 has.
#include "continuo/vmm/witness_machine.h"
#include "witness_kvm_fixture.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

TEST_F(WitnessOnKvm, WatchesFromRing3WithTimerAndWorkload) {
    boot(3, {.timer_period_ns = 5'000'000, .dirty_pages_a_second = 2000});
    ASSERT_OK(machine_->resume());
    run_for_loops(2000);
    std::this_thread::sleep_for(300ms);
    ASSERT_OK(machine_->stop());
    EXPECT_EQ(machine_->console(), "witness: watching\n");
    const auto reports = witness_reports(machine_->memory(), 3);
    ASSERT_OK(reports);
    for (const witness::Report& report : *reports) {
        expect_sane(report);
        EXPECT_GT(report.ticks, 0u);
        EXPECT_GT(report.pages_written, 0u);
        EXPECT_GT(report.cross_checks, 0u);
    }
    for (kvm::Vcpu& vcpu : machine_->vcpus())
        EXPECT_EQ(vcpu.msr(0x4b564d01).value_or(0) & 1, 1u);
    const auto pages = verify_workload(machine_->memory(), 3);
    ASSERT_OK(pages);
    EXPECT_EQ(*pages, 3u * 64);
    // The check can fail: one word off is found.
    const std::uint64_t gpa = witness::kWorkload + 65 * kvm::kPageSize + witness::kWordStride;
    ASSERT_OK(machine_->memory().write_object(gpa, std::uint64_t{1} << 63));
    EXPECT_EQ(verify_workload(machine_->memory(), 3).error().code, state::ErrorCode::kIntegrity);
}

TEST_F(WitnessOnKvm, WatchesFromRing0) {
    boot(1, {.user_mode = false, .cross_pages_a_loop = 0});
    ASSERT_OK(machine_->resume());
    run_for_loops(20);
    ASSERT_OK(machine_->stop());
    expect_sane(*witness_report(machine_->memory(), 0));
    EXPECT_EQ(machine_->vcpus()[0].sregs()->cs.dpl, 0);
}

TEST_F(WitnessOnKvm, AFaultIsNamed) {
    boot(1, {});
    auto regs = machine_->vcpus()[0].regs();
    ASSERT_OK(regs);
    regs->rdi = 1ull << 40;  // a report outside the page tables
    ASSERT_OK(machine_->vcpus()[0].set_regs(*regs));
    ASSERT_OK(machine_->resume());
    const auto until = std::chrono::steady_clock::now() + 10s;
    while (machine_->health() && std::chrono::steady_clock::now() < until)
        std::this_thread::sleep_for(1ms);
    ASSERT_FALSE(machine_->health());
    EXPECT_EQ(machine_->health().error().code, state::ErrorCode::kGuest);
    ASSERT_OK(machine_->stop());
    EXPECT_EQ(machine_->exit_code(), witness::kExitFault);
    EXPECT_EQ(witness_report(machine_->memory(), 0)->fault_vector, 14u + 1);
}

TEST_F(WitnessOnKvm, StateMovesToASecondVm) {
    boot(2, {.timer_period_ns = 2'000'000, .dirty_pages_a_second = 500});
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
    const auto clock = machine_->vm().get_clock();
    ASSERT_OK(clock);
    machine_ = std::move(*second);
    ASSERT_OK(load_state(*machine_, *state));
    kvm_clock_data clock_then{};
    clock_then.clock = clock->clock;
    ASSERT_OK(machine_->vm().set_clock(clock_then));
    ASSERT_OK(arm_timers(*machine_, *state));

    // What was loaded reads back.
    const auto again = save_state(*machine_, *system_);
    ASSERT_OK(again);
    for (std::size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(again->vcpus[i].regs.rip, state->vcpus[i].regs.rip);
        EXPECT_EQ(again->vcpus[i].regs.rsp, state->vcpus[i].regs.rsp);
        EXPECT_EQ(again->vcpus[i].sregs.apic_base, state->vcpus[i].sregs.apic_base);
        EXPECT_EQ(machine_->vcpus()[i].msr(0x4b564d01), 0x21001u + 64 * i);
    }
    ASSERT_OK(machine_->resume());
    run_for_loops(100);
    std::this_thread::sleep_for(50ms);
    ASSERT_OK(machine_->stop());
    const auto after = witness_reports(machine_->memory(), 2);
    ASSERT_OK(after);
    for (std::size_t i = 0; i < 2; ++i) {
        EXPECT_GT((*after)[i].loops, (*before)[i].loops);
        EXPECT_GT((*after)[i].ticks, (*before)[i].ticks) << "the timer goes on";
        EXPECT_EQ((*after)[i].fault_vector, 0u);
    }
    ASSERT_OK(verify_workload(machine_->memory(), 2));
}

}  // namespace
}  // namespace continuo::vmm
