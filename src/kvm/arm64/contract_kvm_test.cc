// The contract of every machine, held by ClockMachine on this host's /dev/kvm, with the counter
// owned from the VM's creation on, and by value, as on kernels that have no offset to be set. What
// doctor finds not to work here is handed in as quirks, and its tests skip by that name.
#include <chrono>
#include <thread>

#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/doctor.h"
#include "contract_tests.h"
#include "probe_vm.h"

namespace continuo::kvm {
namespace {

using Made = tl::expected<std::unique_ptr<machine::ContractSubject>, std::string>;

/// What holds for every machine of this process.
struct Host {
    System system;
    DoctorReport report;
};

tl::expected<Host, std::string> look_at_host() {
    auto system = System::open();
    if (!system) return tl::unexpected("no usable /dev/kvm: " + system.error().message());
    auto report = examine(*system);
    if (!report) return tl::unexpected("doctor: " + report.error().message());
    return Host{std::move(*system), std::move(*report)};
}

class KvmSubject final : public machine::ContractSubject {
  public:
    KvmSubject(std::unique_ptr<ProbeVm> probe, const DoctorReport& report)
        : probe_{std::move(probe)},
          machine_{probe_->vm(), probe_->vcpu_pointers(), probe_->memory(), *report.host,
                   ClockMachineOptions{report.quirks, {}}} {}

    machine::Machine& machine() override { return machine_; }
    void sleep_ns(std::uint64_t ns) override {
        std::this_thread::sleep_for(std::chrono::nanoseconds{ns});
    }

  private:
    std::unique_ptr<ProbeVm> probe_;
    ClockMachine machine_;
};

Made make(std::size_t vcpus, CounterOwner counter) {
    static const tl::expected<Host, std::string> host = look_at_host();
    if (!host) return tl::unexpected(host.error());
    auto probe = ProbeVm::create(host->system, vcpus, counter);
    if (!probe) return tl::unexpected(probe.error().message());
    return std::make_unique<KvmSubject>(std::move(*probe), host->report);
}

using machine::ContractFactory;
using machine::MachineContract;

INSTANTIATE_TEST_SUITE_P(
    Kvm, MachineContract,
    testing::Values(
        ContractFactory{"kvm", [](std::size_t vcpus) { return make(vcpus, CounterOwner::kUs); }},
        ContractFactory{"kvm_by_value",
                        [](std::size_t vcpus) { return make(vcpus, CounterOwner::kKernel); }}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace continuo::kvm
