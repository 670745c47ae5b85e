#include "arrival.h"

#include <algorithm>

#include "certificate_table.h"
#include "progress.h"

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

Result<ExitCode> print_arrival(const Arrival& arrival, bool as_json, const Json& more) {
    const ExitCode code = arrival.certificate.holds() ? ExitCode::kDone : ExitCode::kDoesNotHold;
    if (as_json) {
        Json json;
        json["certificate"] = state::certificate_to_json(arrival.certificate);
        json["attempts"] = arrival.attempts;
        json.update(more);
        return print_json(json, code);
    }
    return print_text(certificate_table(arrival.certificate) + "\n" +
                          observed_table(arrival.certificate) + "\n" +
                          seam_plot(arrival.certificate, std::nullopt, arrival.guest_frequency),
                      code);
}

Result<ExitCode> run_arrived(const LocalHost& host, vmm::KvmDestinationVm& vm, RunOptions options,
                             ExitCode code) {
    end_vms_by_signals();
    const bool starts_again = static_cast<bool>(options.start_again);
    auto ended = run_vm(host, vm.release(), std::move(options));
    if (!ended) return tl::unexpected(std::move(ended.error()));
    progress("the VM ended here: {}", name(ended->end));
    if (ended->end == VmEnd::kReset && !starts_again)
        progress("its guest wanted to start again, and its kernel is not here: give --kernel");
    if (ended->vm->machine() == nullptr) return code;
    const Json witness = witness_json(*ended->vm->machine());
    if (!witness.is_object()) return code;
    const auto backward = witness.at("backward_steps").get<std::uint64_t>();
    progress("the witness saw {} backward steps in {} loops", backward,
             witness.at("loops").get<std::uint64_t>());
    return backward != 0 ? ExitCode::kDoesNotHold : code;
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
