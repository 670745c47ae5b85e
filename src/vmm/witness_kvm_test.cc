// The witness guest on a real /dev/kvm.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "continuo/kvm/counter.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/witness.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

#define ASSERT_OK(expression)                                \
    do {                                                     \
        const auto& outcome_ = (expression);                 \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

class WitnessOnKvm : public testing::TestWithParam<std::uint32_t> {
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

void print(const witness::Report& r) {
    std::printf(
        "vcpu %u loops %llu ticks %llu late %llu retries %llu back %llu/%llu/%llu/%llu fwd tsc "
        "%llu "
        "ns %llu skew %llu n %llu checks %llu pages %llu fault %llu rip %llx\n",
        r.vcpu, (unsigned long long)r.loops, (unsigned long long)r.ticks,
        (unsigned long long)r.tick_late_max, (unsigned long long)r.page_retries,
        (unsigned long long)r.tsc_back_own.count, (unsigned long long)r.tsc_back_cross.count,
        (unsigned long long)r.kvmclock_back_own.count,
        (unsigned long long)r.kvmclock_back_cross.count, (unsigned long long)r.tsc_forward.largest,
        (unsigned long long)r.kvmclock_forward.largest, (unsigned long long)r.cross_skew.largest,
        (unsigned long long)r.cross_skew.count, (unsigned long long)r.cross_checks,
        (unsigned long long)r.pages_written, (unsigned long long)r.fault_vector,
        (unsigned long long)r.fault_rip);
}

TEST_F(WitnessOnKvm, Probe) {
    const char* user = getenv("W_USER");
    const char* timer = getenv("W_TIMER");
    boot(getenv("W_CPUS") ? static_cast<std::uint32_t>(atoi(getenv("W_CPUS"))) : 2,
         {.user_mode = !user || *user == '1',
          .timer = !timer || *timer == '1',
          .dirty_pages_a_second = 1000});
    ASSERT_OK(machine_->resume());
    std::this_thread::sleep_for(2s);
    const auto t0 = kvm::host_counter();
    ASSERT_OK(machine_->stop());
    std::printf("stop took %lld ticks\n", (long long)(kvm::host_counter() - t0).raw());
    std::printf("console: %s\n", machine_->console().c_str());
    auto reports = witness_reports(machine_->memory(), machine_->config().vcpus);
    ASSERT_OK(reports);
    for (auto& r : *reports)
        print(r);
    for (auto& v : machine_->vcpus())
        std::printf("rip %llx cs %x\n", v.regs()->rip, v.sregs()->cs.selector);
    ASSERT_OK(machine_->health());
    auto pages = verify_workload(machine_->memory(), machine_->config().vcpus);
    ASSERT_OK(pages);
}

}  // namespace
}  // namespace continuo::vmm
