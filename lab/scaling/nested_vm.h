// A VM whose guest is a hypervisor of ours (L1), whose guest (L2) reads its TSC: both scale. Made
// to be stopped in either level, saved there, and loaded into a fresh VM.
#pragma once

#include <memory>
#include <vector>

#include "host.h"
#include "probe_vm.h"
#include "run_limit.h"

namespace continuo::scaling {

/// The multiplier and offset that L1 gives L2: VMCS fields TSC_MULTIPLIER and TSC_OFFSET.
struct L2Tsc {
    std::uint64_t multiplier = std::uint64_t{1} << 48;
    std::uint64_t offset = 0;
    /// L1's counter to L2's, as the processor would do it alone.
    std::uint64_t at(Count<GuestCounter> l1) const;
};

enum class Level : std::uint8_t { kL1 = 1, kL2 = 2 };

/// A reading that the payload made of its own TSC, and what was around the KVM_RUN.
struct Stop {
    Level level{};
    machine::BracketedTsc read;
};

/// All of the VM but its clocks.
struct NestedState {
    std::vector<std::byte> memory;
    kvm_regs regs{};
    kvm_sregs sregs{};
    std::vector<std::byte> nested;  ///< KVM_GET_NESTED_STATE: L1's VMX and the VMCS of L2
};

class NestedVm {
  public:
    /// kUnsupported where KVM gives its guests no VMX, or no TSC scaling in it.
    static kvm::Result<std::unique_ptr<NestedVm>> create(const kvm::System& system,
                                                         const kvm::DoctorReport& report,
                                                         const L2Tsc& l2);
    /// A fresh VM in that state; its clocks are as KVM has made them.
    static kvm::Result<std::unique_ptr<NestedVm>> create(const kvm::System& system,
                                                         const kvm::DoctorReport& report,
                                                         const NestedState& state);

    /// Runs until the payload stops in one of its levels: L2, L1, L2, ...
    kvm::Result<Stop> run();
    kvm::Result<NestedState> save();
    kvm::ClockMachine& machine() { return *machine_; }
    /// Of the level in which it is stopped.
    kvm::Result<InForce> now_in_force() const { return in_force(*vm_, 0); }

  private:
    NestedVm() = default;
    static kvm::Result<std::unique_ptr<NestedVm>> empty(const kvm::System& system,
                                                        const kvm::DoctorReport& report);
    kvm::Status load_payload(const L2Tsc& l2);
    kvm::Status load(const NestedState& state);

    std::unique_ptr<kvm::RunLimit> limit_;
    std::optional<kvm::GuestMemory> memory_;
    std::optional<kvm::Vm> vm_;
    std::optional<kvm::Vcpu> vcpu_;
    std::size_t nested_state_bytes_ = 0;
    std::unique_ptr<kvm::ClockMachine> machine_;
};

}  // namespace continuo::scaling
