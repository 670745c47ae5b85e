// The witness guest on a real /dev/kvm.
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <thread>

#include "continuo/kvm/counter.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/vm_state.h"
#include "continuo/vmm/witness.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

#define ASSERT_OK(expression)                                \
    do {                                                     \
        const auto& outcome_ = (expression);                 \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

class WitnessOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto system = kvm::System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        system_.emplace(std::move(*system));
    }

    void boot(std::uint32_t vcpus, const WitnessConfig& witness) {
        auto machine = VirtualMachine::create(*system_, {.vcpus = vcpus});
        ASSERT_OK(machine);
        machine_ = std::move(*machine);
        ASSERT_OK(load_witness(*machine_, witness));
    }

    /// Runs until every vCPU has looped `loops` times more, at most 30 s.
    void run_for_loops(std::uint64_t loops) {
        std::vector<std::uint64_t> from;
        for (std::uint32_t i = 0; i < machine_->config().vcpus; ++i)
            from.push_back(loops_of(i));
        const auto until = std::chrono::steady_clock::now() + 30s;
        for (std::uint32_t i = 0; i < from.size();) {
            ASSERT_OK(machine_->health());
            ASSERT_LT(std::chrono::steady_clock::now(), until) << "vCPU " << i << " stands still";
            if (loops_of(i) >= from[i] + loops) {
                ++i;
            } else {
                std::this_thread::sleep_for(2ms);
            }
        }
    }
    std::uint64_t loops_of(std::uint32_t vcpu) {
        return *machine_->memory().load<std::uint64_t>(
            witness::kReports + witness::kReportStride * vcpu + offsetof(witness::Report, loops));
    }

    std::optional<kvm::System> system_;
    std::unique_ptr<VirtualMachine> machine_;
};

void expect_sane(const witness::Report& report) {
    EXPECT_EQ(report.fault_vector, 0u) << "at " << std::hex << report.fault_rip;
    EXPECT_EQ(report.tsc_back_own.count, 0u);
    EXPECT_EQ(report.kvmclock_back_own.count, 0u);
    EXPECT_GT(report.loops, 0u);
    EXPECT_GT(report.last.kvmclock_ns, 0u);
}

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

TEST_F(WitnessOnKvm, ManyStopsLoseNoKickAndKeepEveryEpoch) {
    boot(4, {.dirty_pages_a_second = 100});
    ASSERT_OK(machine_->resume());
    run_for_loops(100);
    for (int round = 0; round < 20; ++round) {
        ASSERT_OK(machine_->stop());
        const auto stopped = kvm::host_counter().raw();
        const auto epoch = raise_epoch(*machine_);
        ASSERT_OK(epoch);
        std::this_thread::sleep_for(1ms);
        const auto resumed = kvm::host_counter().raw();
        ASSERT_OK(machine_->resume());
        run_for_loops(3);
        for (std::uint32_t i = 0; i < 4; ++i) {
            const auto report = witness_report(machine_->memory(), i);
            ASSERT_OK(report);
            const auto record = epoch_record(*report, *epoch);
            ASSERT_TRUE(record) << "vCPU " << i << " epoch " << *epoch;
            // Offsets are equal for all readings: the guest's TSC spans the host's stop.
            const std::uint64_t gap = record->after.tsc - record->before.tsc;
            EXPECT_GE(gap, resumed - stopped);
            EXPECT_GT(record->next.tsc, record->after.tsc);
            EXPECT_GT(record->after.kvmclock_ns, record->before.kvmclock_ns);
        }
    }
    // Stops that come before the threads have even started to enter.
    for (int round = 0; round < 200; ++round) {
        ASSERT_OK(machine_->stop());
        ASSERT_OK(machine_->resume());
    }
    ASSERT_OK(machine_->stop());
    ASSERT_OK(machine_->health());
}

TEST_F(WitnessOnKvm, AllVcpusEnterAtTheGate) {
    boot(2, {});
    ASSERT_OK(machine_->resume());
    run_for_loops(10);
    ASSERT_OK(machine_->stop());
    const auto gate = kvm::host_counter() + time::Ticks<time::HostCounter>::from_raw(50'000'000);
    ASSERT_OK(machine_->resume_at(gate));
    EXPECT_EQ(machine_->gate_report().vcpus, 0u) << "20 ms before the gate nobody has passed";
    run_for_loops(3);
    const GateReport report = machine_->gate_report();
    EXPECT_EQ(report.vcpus, 2u);
    EXPECT_GE(report.worst_past_ticks, 0);
    // A gate far away is given up for a stop.
    ASSERT_OK(machine_->stop());
    ASSERT_OK(machine_->resume_at(kvm::host_counter() +
                                  time::Ticks<time::HostCounter>::from_raw(std::int64_t{1} << 50)));
    ASSERT_OK(machine_->stop());
}

TEST_F(WitnessOnKvm, JobsRunOnTheVcpusOwnThreads) {
    boot(2, {});
    std::mutex mutex;
    std::vector<std::thread::id> threads;
    const auto note = [&](kvm::Vcpu&) {
        std::lock_guard lock{mutex};
        threads.push_back(std::this_thread::get_id());
        return Status{};
    };
    ASSERT_OK(machine_->on_vcpu_thread(1, note));
    ASSERT_OK(machine_->on_all_vcpu_threads(note));
    ASSERT_EQ(threads.size(), 3u);
    EXPECT_NE(threads[1], threads[2]);
    EXPECT_TRUE(threads[0] == threads[1] || threads[0] == threads[2]);
    ASSERT_OK(machine_->resume());
    EXPECT_EQ(machine_->on_vcpu_thread(0, note).error().code, state::ErrorCode::kBusy);
    ASSERT_OK(machine_->stop());
}

TEST_F(WitnessOnKvm, SixtyFourVcpusRunAndStop) {
    boot(64, {.timer_period_ns = 50'000'000});
    ASSERT_OK(machine_->resume());
    run_for_loops(3);
    ASSERT_OK(machine_->stop());
    const auto reports = witness_reports(machine_->memory(), 64);
    ASSERT_OK(reports);
    for (const witness::Report& report : *reports)
        expect_sane(report);
    EXPECT_EQ(summarise(*reports).worst_backward_tsc, 0u);
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
    const auto msrs = system_->msr_index_list();
    ASSERT_OK(msrs);
    const auto saved = save_state(*machine_, *msrs);
    ASSERT_OK(saved);
    const auto state = decode_state(encode_state(*saved));
    ASSERT_OK(state);
    const auto before = witness_reports(machine_->memory(), 2);
    ASSERT_OK(before);

    auto second = VirtualMachine::create(*system_, machine_->config(), machine_->cpuid());
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
    ASSERT_OK(arm_deadlines(*machine_, *state));

    // What was loaded reads back.
    const auto again = save_state(*machine_, *msrs);
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
