// The witness guest on a real /dev/kvm, whatever the architecture.
#include <mutex>

#include "continuo/kvm/counter.h"
#include "witness_kvm_fixture.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

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
            const std::uint64_t gap = record->after.counter - record->before.counter;
            EXPECT_GE(gap, resumed - stopped);
            EXPECT_GT(record->next.counter, record->after.counter);
            EXPECT_GT(record->after.clock, record->before.clock);
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
    EXPECT_EQ(summarise(*reports).worst_backward_counter, 0u);
}

}  // namespace
}  // namespace continuo::vmm
