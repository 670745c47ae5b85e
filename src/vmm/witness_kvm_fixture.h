// The witness guest on a real /dev/kvm: what the tests of all architectures begin with.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/vm_state.h"
#include "continuo/vmm/witness.h"

namespace continuo::vmm {

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
        const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{30};
        for (std::uint32_t i = 0; i < from.size();) {
            ASSERT_OK(machine_->health());
            ASSERT_LT(std::chrono::steady_clock::now(), until) << "vCPU " << i << " stands still";
            if (loops_of(i) >= from[i] + loops) {
                ++i;
            } else {
                std::this_thread::sleep_for(std::chrono::milliseconds{2});
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

inline void expect_sane(const witness::Report& report) {
    EXPECT_EQ(report.fault_vector, 0u) << "at " << std::hex << report.fault_rip;
    EXPECT_EQ(report.counter_back_own.count, 0u);
    EXPECT_EQ(report.clock_back_own.count, 0u);
    EXPECT_GT(report.loops, 0u);
    EXPECT_GT(report.last.clock, 0u);
}

}  // namespace continuo::vmm
