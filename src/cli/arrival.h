// A VM that came in live: what is known of its clocks, for people and machines.
#pragma once

#include <optional>

#include "continuo/state/certificate.h"
#include "continuo/state/json.h"
#include "continuo/vmm/kvm_migration.h"
#include "continuo/vmm/migration.h"

namespace continuo::cli {

struct Arrival {
    state::Certificate certificate;  ///< with what the witness observed
    state::Record record;
    vmm::MigrationStats stats;
    std::uint32_t attempts = 0;  ///< how often the clocks were set before the instant was met
    bool taken_over = false;
    time::Hz guest_frequency = *time::Hz::from_hz(time::kNanosPerSecond);
};

/// Of a VM that has arrived and runs; waits until every vCPU of a witness has looked at its clocks.
state::Result<Arrival> describe_arrival(vmm::KvmDestinationVm& vm, const vmm::Arrived& arrived);

/// The first guest read that came latest; none where nobody looked.
std::optional<std::int64_t> worst_first_read_ns(const state::Certificate& certificate);

}  // namespace continuo::cli
