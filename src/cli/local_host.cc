#include "local_host.h"

#include <cstdlib>
#include <utility>

namespace continuo::cli {

state::Result<LocalHost> examine_local_host() {
    auto system = kvm::System::open();
    if (!system) return tl::unexpected(std::move(system.error()));
    auto report = kvm::examine(*system);
    if (!report) return tl::unexpected(std::move(report.error()));
    if (!report->host)
        return state::fail(state::ErrorCode::kUnsupported, "/dev/kvm", report->reason,
                           "Use an emulated host: continuo-lab run -- continuo ...");
    vmm::HostFindings findings{*report->host, report->quirks};
    return LocalHost{std::move(*system), std::move(*report), std::move(findings)};
}

bool is_emulated_host() {
    return std::getenv("CONTINUO_LAB_HOST") != nullptr;
}

}  // namespace continuo::cli
