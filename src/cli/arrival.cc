#include "arrival.h"

#include <algorithm>

#include "continuo/kvm/counter.h"
#include "continuo/machine/migration.h"

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Result;

Result<Arrival> describe_arrival(vmm::KvmDestinationVm& vm, const vmm::Arrived& arrived) {
    if (!vm.certificate() || !vm.plan() || !vm.record() || vm.machine() == nullptr)
        return fail(ErrorCode::kPeer, "migration", "the VM arrived without its clocks");
    Arrival out{*vm.certificate(), *vm.record(),       arrived.stats,
                vm.attempts(),     arrived.taken_over, vm.plan()->guest_frequency};
    if (!vm.epoch()) return out;
    if (auto seen = vmm::await_epoch(*vm.machine(), *vm.epoch(), std::chrono::seconds{30}); !seen)
        return tl::unexpected(std::move(seen.error()));
    auto observed = vmm::observe_witness(*vm.machine(), *vm.plan(), *vm.epoch());
    if (!observed) return tl::unexpected(std::move(observed.error()));
    out.certificate.observed = std::move(*observed);
    return out;
}

std::optional<std::int64_t> worst_first_read_ns(const state::Certificate& certificate) {
    const auto& seen = certificate.observed;
    const auto worst = std::max_element(seen.begin(), seen.end(), [](const auto& a, const auto& b) {
        return a.after_resume_ns < b.after_resume_ns;
    });
    if (worst == seen.end()) return std::nullopt;
    return worst->after_resume_ns;
}

Result<state::Certificate> restore_by_value(const LocalHost& host, vmm::VirtualMachine& stopped,
                                            state::Policy policy) {
    // The VM first, so that nothing but the restore lies between the capture and the writes.
    auto beside = vmm::VirtualMachine::create(host.system, stopped.config(), stopped.cpuid());
    if (!beside) return tl::unexpected(std::move(beside.error()));
    const auto to = vmm::clock_machine_of(**beside, host.findings);
    if (auto settled = to->settle(); !settled) return tl::unexpected(std::move(settled.error()));
    const auto record = machine::capture(*vmm::clock_machine_of(stopped, host.findings));
    if (!record) return tl::unexpected(record.error());
    const auto destination = machine::destination_for(*to, *record);
    if (!destination) return tl::unexpected(destination.error());
    state::PlanOptions options;
    options.policy = policy;
    const auto plan = state::plan(*record, *destination, options);
    if (!plan) return tl::unexpected(vmm::refusal_error(plan.error()));
    const auto applied = machine::apply_by_value(*to, *record, *plan);
    if (!applied) return tl::unexpected(applied.error());
    return machine::verify(*to, *plan, *applied);
}

}  // namespace continuo::cli
