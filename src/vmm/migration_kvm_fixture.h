// Live migrations of the witness guest on a real /dev/kvm: what the tests of all architectures
// begin with.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "continuo/kvm/doctor.h"
#include "continuo/vmm/kvm_migration.h"

namespace continuo::vmm {

#define ASSERT_OK(expression)                                \
    do {                                                     \
        const auto& outcome_ = (expression);                 \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

inline constexpr bool kX86 = kArchitecture == state::Architecture::kX86_64;

/// What doctor says of this host; asked once.
struct Host {
    kvm::System system;
    HostFindings findings;
};

inline Result<Host> examine_this_host() {
    auto system = kvm::System::open();
    if (!system) return tl::unexpected(std::move(system.error()));
    auto report = kvm::examine(*system);
    if (!report) return tl::unexpected(std::move(report.error()));
    if (!report->host) return state::fail(state::ErrorCode::kUnsupported, "doctor", report->reason);
    HostFindings findings{*report->host, report->quirks};
    return Host{std::move(*system), std::move(findings)};
}

inline Status run_loops(VirtualMachine& machine, std::uint64_t loops) {
    const auto until = after(std::chrono::seconds{30});
    for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
        const std::uint64_t gpa =
            witness::kReports + witness::kReportStride * vcpu + offsetof(witness::Report, loops);
        const std::uint64_t from = *machine.memory().load<std::uint64_t>(gpa);
        while (*machine.memory().load<std::uint64_t>(gpa) < from + loops) {
            if (auto well = machine.health(); !well) return well;
            if (std::chrono::steady_clock::now() > until)
                return state::fail(state::ErrorCode::kTimeout, "witness", "it stands still");
            std::this_thread::sleep_for(std::chrono::milliseconds{1});
        }
    }
    return {};
}

inline Result<std::unique_ptr<VirtualMachine>> boot(const Host& host, std::uint32_t vcpus) {
    auto machine = VirtualMachine::create(host.system, {.vcpus = vcpus, .memory_bytes = 32 << 20});
    if (!machine) return machine;
    const WitnessConfig config{.dirty_pages_a_second = 2000, .workload_pages_a_vcpu = 256};
    if (auto done = load_witness(**machine, config); !done)
        return tl::unexpected(std::move(done.error()));
    if (auto done = (*machine)->resume(); !done) return tl::unexpected(std::move(done.error()));
    if (auto done = run_loops(**machine, 200); !done)
        return tl::unexpected(std::move(done.error()));
    return machine;
}

class MigrationOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto host = examine_this_host();
        if (!host) GTEST_SKIP() << "no usable /dev/kvm: " << host.error().message();
        host_.emplace(std::move(*host));
    }
    Address address() const {
        return *parse_address("unix:/tmp/continuo-kvm-" + std::to_string(::getpid()));
    }

    struct Ends {
        std::optional<SourceOutcome> source;
        std::optional<DestinationOutcome> destination;
    };
    Ends migrate(KvmSourceVm& source, KvmDestinationVm& destination, const Address& at) {
        Ends ends;
        auto receiver = Receiver::open(at);
        EXPECT_TRUE(receiver) << receiver.error().message();
        const MigrationOptions options;
        std::thread other{[&] {
            auto outcome = (*receiver)->receive(destination, options, std::chrono::seconds{10});
            EXPECT_TRUE(outcome) << outcome.error().message();
            if (outcome) ends.destination = std::move(*outcome);
        }};
        const Address to = (*receiver)->address();
        auto connection = connect_to(to, std::chrono::seconds{2});
        EXPECT_TRUE(connection);
        ends.source = send_vm(
            std::move(*connection), source, [&] { return connect_to(to, std::chrono::seconds{1}); },
            options);
        other.join();
        return ends;
    }

    std::optional<Host> host_;
};

/// Sends the vCPU to where it must fault.
Status lead_astray(kvm::Vcpu& vcpu);

inline void expect_whole(VirtualMachine& machine) {
    const auto reports = witness_reports(machine.memory(), machine.config().vcpus);
    ASSERT_OK(reports);
    for (const witness::Report& report : *reports) {
        EXPECT_EQ(report.fault_vector, 0u);
        EXPECT_EQ(report.counter_back_own.count + report.counter_back_cross.count, 0u);
        EXPECT_EQ(report.clock_back_own.count, 0u)
            << report.clock_back_own.before << " -> " << report.clock_back_own.after;
        if (kX86) {
            EXPECT_GT(report.ticks, 0u);
        }
    }
    ASSERT_OK(verify_workload(machine.memory(), machine.config().vcpus));
}

}  // namespace continuo::vmm
