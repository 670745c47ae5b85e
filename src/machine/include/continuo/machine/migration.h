// The three verbs on a machine: capture its clocks, apply a plan to it, verify what came of it. All
// arithmetic and order of a restore is here, once, for every machine.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "continuo/machine/machine.h"
#include "continuo/state/certificate.h"
#include "continuo/state/plan.h"
#include "continuo/state/record.h"

namespace continuo::machine {

/// Reads every clock of a stopped VM at ONE host counter value. One allocation in all, none per
/// vCPU. Failure: the machine's; a guest's damaged pvclock page is no failure but falls back to the
/// kernel's line (KvmclockOrigin::kKernel).
Result<state::Record> capture(Machine& machine);

/// This machine as a destination for `record`: same_boot only where both boot identities are known
/// and equal.
Result<state::Destination> destination_for(Machine& machine, const state::Record& record);

/// What the writes of a plan did.
struct Applied {
    /// The realised map of each vCPU: read back, or derived from the bracket of a read by value.
    std::vector<TscMap> maps;
    /// How far each realised map may be from the true one, in ticks: 0 with the attribute.
    std::vector<std::uint64_t> map_bound_ticks;
    state::TrimReport trim;
    /// For the VMM to set once it has published plan.notice: no machine does, and a certificate
    /// that holds a notice says that the guest was told.
    bool notice_published = false;
};

struct ApplyOptions {
    /// A line that reads within this of the prescribed one is left alone. One that does not is set
    /// until it reads exactly 0, which keeps every later reading within 1 ns; in the second half
    /// of the rounds until it reads within this.
    std::uint64_t trim_target_ns = 1;
    /// Rounds of set and read back, at most.
    std::uint32_t trim_rounds_max = 256;
};

/// Carries out plan.writes in order, reads every control back, and trims kvmclock in a closed loop.
/// Idempotent: a second apply, at any later time, leaves the same counters, and kvmclock within the
/// trim target of the same line. A counter written by value is brought onto its line in a closed
/// loop too, past KVM's synchronisation of writes, and is within map_bound_ticks of the line told;
/// vCPUs of one line get one offset. kKernel where a control reads back other than written.
/// Precondition: `plan` was made for this machine's host.
Result<Applied> apply(Machine& machine, const state::Plan& plan, const ApplyOptions& options = {});

/// Holds the realised lines against the prescribed ones, exactly, at the resume instant.
Result<state::Certificate> verify(Machine& machine, const state::Plan& plan,
                                  const Applied& applied);

/// The restore that VMMs do today, to be measured beside apply(): IA32_TSC by value on each vCPU in
/// turn, then KVM_SET_CLOCK, with the values of the record as they stand and no account of the time
/// that passes meanwhile.
Result<Applied> apply_by_value(Machine& machine, const state::Record& record,
                               const state::Plan& plan);

}  // namespace continuo::machine
