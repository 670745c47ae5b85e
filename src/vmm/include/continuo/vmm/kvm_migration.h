// The two ends of a migration on real VMs: memory, state and clocks of a VirtualMachine, where the
// clocks are captured, planned, applied and verified by machine/ on kvm::ClockMachine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "continuo/kvm/clock_machine.h"
#include "continuo/machine/migration.h"
#include "continuo/state/certificate.h"
#include "continuo/state/policy.h"
#include "continuo/vmm/generation.h"
#include "continuo/vmm/migration.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/vm_state.h"
#include "continuo/vmm/witness.h"

namespace continuo::vmm {

/// What this host is, as kvm::examine() and kvm::examine_host() found.
struct HostFindings {
    kvm::HostClock host;
    state::Quirks quirks = 0;
};

/// The clocks of a VirtualMachine as a machine::Machine; settling runs on the vCPUs' own threads.
/// `machine` must outlive it.
std::unique_ptr<kvm::ClockMachine> clock_machine_of(VirtualMachine& machine,
                                                    const HostFindings& findings);

/// Has the vmclock of a guest that is about to start tell the time; nothing where it has none. The
/// VM stands still.
Status start_vmclock(VirtualMachine& machine, const HostFindings& findings);

/// What a destination must create.
struct VmShape {
    VmConfig config;
    CpuModel model;
};
/// As bytes, with the architecture's name in them, and back. decode_shape: kMalformed,
/// kInvalidArgument, or kUnsupported with its name for a VM of another architecture.
Bytes encode_shape(const VmShape& shape);
Result<VmShape> decode_shape(std::span<const std::byte> bytes);

class KvmSourceVm final : public SourceVm {
  public:
    /// `system` must outlive it.
    KvmSourceVm(const kvm::System& system, std::unique_ptr<VirtualMachine> machine,
                HostFindings findings);

    /// The VM; null once it has been destroyed.
    VirtualMachine* machine() { return machine_.get(); }
    std::unique_ptr<VirtualMachine> release() { return std::move(machine_); }
    /// The clocks as captured; none before.
    const std::optional<state::Record>& record() const { return record_; }

    Bytes shape() override;
    std::span<const std::byte> memory() override;
    Status fetch_touched_pages(std::vector<std::uint64_t>& bitmap) override;
    Status log_dirty_pages(bool on) override;
    Status fetch_dirty_pages(std::vector<std::uint64_t>& bitmap) override;
    Status stop() override;
    Result<Bytes> capture_clocks() override;
    Result<Bytes> save_state() override;
    Status resume() override;
    void destroy() override;

  private:
    const kvm::System& system_;
    std::unique_ptr<VirtualMachine> machine_;
    HostFindings findings_;
    std::optional<state::Record> record_;
};

struct ArrivalOptions {
    /// Policy and limits of the plan; resume_at is chosen here.
    state::PlanOptions plan;
    machine::ApplyOptions apply;
    /// How far ahead the common instant of entry is set at first. Doubled, and the clocks set
    /// again, where setting them took longer.
    std::chrono::microseconds lead{2'000};
    /// For comparison only: restore as VMMs do today, machine::apply_by_value() and then resume at
    /// once. The certificate says how far that is from what the policy prescribes.
    bool by_value = false;
    /// Of a VM that is made of a snapshot, of which there may be others; none: of the only one,
    /// which has moved.
    std::optional<Generation> generation;
};

class KvmDestinationVm final : public DestinationVm {
  public:
    /// `system` must outlive it.
    KvmDestinationVm(const kvm::System& system, HostFindings findings, ArrivalOptions options);

    /// The VM; null before create() and after discard().
    VirtualMachine* machine() { return machine_.get(); }
    std::unique_ptr<VirtualMachine> release() { return std::move(machine_); }
    const std::optional<state::Record>& record() const { return record_; }
    /// What was planned, done and certified for the entry; none before run().
    const std::optional<state::Plan>& plan() const { return plan_; }
    const std::optional<state::Certificate>& certificate() const { return certificate_; }
    /// The witness's epoch of this entry; none where the guest is no witness.
    std::optional<std::uint64_t> epoch() const { return epoch_; }
    /// Whether the guest has a place where it finds ArrivalOptions::generation; after run().
    bool generation_told() const { return generation_told_; }
    /// How often the clocks had to be set before the instant was met.
    std::uint32_t attempts() const { return attempts_; }

    Status create(std::span<const std::byte> shape) override;
    std::span<std::byte> memory() override;
    Status load(std::span<const std::byte> state, std::span<const std::byte> clocks) override;
    void take_exchange(const state::Exchange& rounds) override;
    bool more_rounds_help() override;
    Status run() override;
    void discard() override;

  private:
    Result<state::Plan> plan_for(HostCount resume_at);
    /// Plans for `resume_at`, writes, reads back.
    Status set_clocks(HostCount resume_at);
    /// Puts the notice where the guest finds it; false where there is no such place.
    Result<bool> tell(const state::Notice& notice, std::uint64_t bound_ns);
    /// Has the guest find its generation, where there is a place for it.
    Status tell_generation();
    /// Has the vmclock tell that the counter was disturbed, and the time on its new line.
    Status disrupt_vmclock();
    /// Their interrupts.
    void announce();
    Status run_by_value();

    const kvm::System& system_;
    HostFindings findings_;
    ArrivalOptions options_;
    std::unique_ptr<VirtualMachine> machine_;
    std::unique_ptr<kvm::ClockMachine> clocks_;
    std::optional<VmState> state_;
    std::optional<witness::Notice> notice_before_;  ///< as it came; none: no witness
    std::optional<state::Record> record_;
    state::Exchange exchange_;
    std::optional<state::Plan> plan_;
    std::optional<state::Certificate> certificate_;
    std::optional<std::uint64_t> epoch_;
    std::uint32_t attempts_ = 0;
    bool generation_told_ = false;
};

/// A plan's refusals as one kRefused error: the first in words, the others counted.
state::Error refusal_error(const state::Refusals& refusals);

/// What the witness saw of an entry, held against the plan: for each vCPU the first reading after
/// the resume, its distance from the prescribed instant, and kvmclock as its own page gave it
/// against the prescribed line at that TSC. vCPUs that have not completed the epoch are left out;
/// wait for them first. The VM is stopped or has completed the epoch.
Result<std::vector<state::GuestObservation>> observe_witness(VirtualMachine& machine,
                                                             const state::Plan& plan,
                                                             std::uint64_t epoch);
/// Waits until every vCPU has completed the epoch; kTimeout.
Status await_epoch(VirtualMachine& machine, std::uint64_t epoch, std::chrono::milliseconds timeout);

}  // namespace continuo::vmm
