// A VM made for looking at what a control does: vCPUs at EL1 without an MMU that read a counter or
// make a hypercall and come back. Used by doctor and by the tests that need a guest's own eyes.
// Internal to kvm/.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "continuo/kvm/memory.h"
#include "continuo/kvm/vcpu.h"
#include "continuo/machine/machine.h"
#include "run_limit.h"

namespace continuo::kvm {

class ProbeVm {
  public:
    /// A VM without an interrupt controller, 64 KiB, and `vcpus` runnable vCPUs.
    static Result<std::unique_ptr<ProbeVm>> create(const System& system, std::size_t vcpus,
                                                   CounterOwner counter = CounterOwner::kUs);

    Vm& vm() { return *vm_; }
    GuestMemory& memory() { return *memory_; }
    Vcpu& vcpu(std::size_t i) { return vcpus_[i]; }
    /// For ClockMachine.
    std::vector<Vcpu*> vcpu_pointers();

    /// A counter read in the guest between two readings of the host's. kUnsupported where the guest
    /// does not come back as it should; kGuest where the instruction faults in it.
    Result<machine::BracketedTsc> guest_cntvct(std::size_t vcpu);
    Result<machine::BracketedTsc> guest_cntpct(std::size_t vcpu);
    Result<std::uint64_t> guest_cntfrq(std::size_t vcpu);
    /// Ticks that so many reads take in the guest.
    Result<std::uint64_t> cntvct_ticks(std::size_t vcpu, std::uint64_t reads);
    Result<std::uint64_t> cntpct_ticks(std::size_t vcpu, std::uint64_t reads);

    /// A timer armed so many ticks ahead: by how many ticks of its own counter it is late.
    Result<std::uint64_t> vtimer_lateness(std::size_t vcpu, std::uint64_t ahead);
    Result<std::uint64_t> ptimer_lateness(std::size_t vcpu, std::uint64_t ahead);

    struct Hypercall {
        std::array<std::uint64_t, 4> answer{};  ///< x0 to x3
        machine::WriteBracket around;
    };
    /// HVC with x0 and x1 (SMCCC).
    Result<Hypercall> hypercall(std::size_t vcpu, std::uint64_t function, std::uint64_t argument);

  private:
    ProbeVm() = default;
    Status start(Vcpu& vcpu);
    /// Runs the guest from a label of probe_guest.S, with x0 and x1, until it answers.
    Result<std::uint64_t> ask(std::size_t vcpu, const std::byte& question, std::uint64_t x0,
                              std::uint64_t x1, machine::WriteBracket* around = nullptr);
    Result<std::uint64_t> answer_of(Vcpu& vcpu) const;
    Result<machine::BracketedTsc> bracketed(std::size_t vcpu, const std::byte& question);

    std::unique_ptr<RunLimit> limit_;
    std::optional<GuestMemory> memory_;
    std::optional<Vm> vm_;
    std::vector<Vcpu> vcpus_;
};

}  // namespace continuo::kvm
