// A VM that came in, live or from a file: what is known of its clocks, for people and machines, and
// how it goes on.
#pragma once

#include <optional>

#include "command.h"
#include "continuo/state/certificate.h"
#include "continuo/state/json.h"
#include "continuo/vmm/kvm_migration.h"
#include "continuo/vmm/migration.h"
#include "running_vm.h"

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

/// Prints the certificate: a table, or one JSON document with `more` beside it. kDoesNotHold where
/// it does not hold.
Result<ExitCode> print_arrival(const Arrival& arrival, bool as_json, const Json& more);

/// Runs the VM here until something ends it. `code` is what the certificate has earned;
/// kDoesNotHold where a witness has seen a clock go backwards.
Result<ExitCode> run_arrived(const LocalHost& host, vmm::KvmDestinationVm& vm, RunOptions options,
                             ExitCode code);

/// The first guest read that came latest; none where nobody looked.
std::optional<std::int64_t> worst_first_read_ns(const state::Certificate& certificate);

}  // namespace continuo::cli
