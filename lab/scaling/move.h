// A move to this host, in this process: a fresh VM, a plan for it, the plan applied, and everything
// read back. The record is one that another host would have made.
#pragma once

#include <memory>

#include "continuo/machine/migration.h"
#include "host.h"
#include "probe_vm.h"

namespace continuo::scaling {

/// A VM at rest and its clocks. vCPUs have their pvclock pages on.
class Guest {
  public:
    static kvm::Result<std::unique_ptr<Guest>> create(const kvm::System& system,
                                                      const kvm::DoctorReport& report,
                                                      std::size_t vcpus);
    kvm::ProbeVm& probe() { return *probe_; }
    kvm::ClockMachine& machine() { return *machine_; }
    /// The page's line of a vCPU; kGuest where there is none.
    kvm::Result<PvclockLine> page(std::size_t vcpu);
    /// Has KVM take a new sample of its masterclock, which leaves the counters as they are.
    kvm::Status resample();

  private:
    std::unique_ptr<kvm::ProbeVm> probe_;
    std::unique_ptr<kvm::ClockMachine> machine_;
};

/// What came of a plan.
struct Outcome {
    state::Plan plan;
    machine::Applied applied;
    state::Certificate certificate;
};

/// And the VM that it was made for.
struct Moved : Outcome {
    std::unique_ptr<Guest> guest;
};

/// Plans `record` for this stopped machine, applies it and verifies. Errors and refusals as one
/// text.
tl::expected<Outcome, std::string> move_to(machine::Machine& machine, const state::Record& record,
                                           state::Policy policy);

/// The same with a fresh VM on this host.
tl::expected<Moved, std::string> move_here(const kvm::System& system,
                                           const kvm::DoctorReport& report,
                                           const state::Record& record, state::Policy policy);

/// The record that a host of `guest`'s frequency would have made of a guest that it ran unscaled
/// for 40 days, `gap_ns` before `here`.
state::Record record_from_elsewhere(Hz guest, const state::Anchor<HostCounter>& here,
                                    std::uint64_t gap_ns, std::size_t vcpus);

/// The same record of a guest whose counter goes on at another frequency from the anchor on, with
/// the kvmclock page that a host of that frequency gives it.
void go_on_at(state::Record& record, Hz guest);

/// Inside [map(before), map(after)], or by how much it is not.
testing::AssertionResult inside(const TscMap& map, const machine::BracketedTsc& read);

}  // namespace continuo::scaling
