#include "arrival.h"

#include <algorithm>

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

}  // namespace continuo::cli
