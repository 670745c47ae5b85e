// The contract of every machine, held by ClockMachine on this host's /dev/kvm. What doctor finds
// not to work here is handed in as quirks, and its tests skip by that name.
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

Made make(std::size_t vcpus, bool with_pages) {
    static const tl::expected<Host, std::string> host = look_at_host();
    if (!host) return tl::unexpected(host.error());
    auto probe = ProbeVm::create(host->system, vcpus);
    if (!probe) return tl::unexpected(probe.error().message());
    for (std::size_t i = 0; with_pages && i < vcpus; ++i)
        if (auto on = (*probe)->enable_pvclock(i); !on) return tl::unexpected(on.error().message());
    auto subject = std::make_unique<KvmSubject>(std::move(*probe), host->report);
    // A VM has no masterclock before its first update, and a guest that was stopped has run.
    if (auto settled = subject->machine().settle(); !settled)
        return tl::unexpected(settled.error().message());
    return subject;
}

using machine::MachineContract;

INSTANTIATE_TEST_SUITE_P(
    Kvm, MachineContract,
    testing::Values(machine::ContractFactory{"kvm",
                                             [](std::size_t vcpus) { return make(vcpus, false); }},
                    machine::ContractFactory{"kvm_with_pages",
                                             [](std::size_t vcpus) { return make(vcpus, true); }}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace continuo::kvm
