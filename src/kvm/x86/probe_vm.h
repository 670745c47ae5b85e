// A VM made for looking at what a control does: real mode, a few bytes of code, vCPUs that read
// their TSC or an MSR and come back. Used by doctor and by the tests that need a guest's own eyes.
// Internal to kvm/.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "continuo/kvm/memory.h"
#include "continuo/kvm/vcpu.h"
#include "continuo/machine/machine.h"
#include "run_limit.h"

namespace continuo::kvm {

class ProbeVm {
  public:
    static constexpr std::uint64_t kPvclockGpa = 0x6000;  ///< of vCPU 0; 64 bytes apart
    static constexpr std::uint32_t kTimerVector = 0x40;   ///< its handler ends wait_for_timer()

    /// A VM with in-kernel interrupt controllers, 256 KiB, and `vcpus` runnable vCPUs that have all
    /// of the host's CPUID. Without the controllers there is no timer, and it is made sooner: the
    /// kernel waits for five grace periods less.
    static Result<std::unique_ptr<ProbeVm>> create(const System& system, std::size_t vcpus,
                                                   bool irqchip = true);

    /// One more, runnable, after those that there are.
    Status add_vcpu();

    Vm& vm() { return *vm_; }
    GuestMemory& memory() { return *memory_; }
    Vcpu& vcpu(std::size_t i) { return vcpus_[i]; }
    /// For ClockMachine.
    std::vector<Vcpu*> vcpu_pointers();

    /// RDTSC in the guest between two readings of the host's counter. kUnsupported where the guest
    /// does not come back as it should.
    Result<machine::BracketedTsc> guest_rdtsc(std::size_t vcpu);
    /// The narrowest of several.
    Result<machine::BracketedTsc> guest_rdtsc_narrow(std::size_t vcpu, int tries = 3);
    /// RDMSR and WRMSR in the guest; kGuest where they fault there.
    Result<std::uint64_t> guest_rdmsr(std::size_t vcpu, std::uint32_t index);
    Status guest_wrmsr(std::size_t vcpu, std::uint32_t index, std::uint64_t value);
    /// A hypercall of KVM's with two arguments of 32 bits; RAX of its answer, 32 bits in real mode.
    Result<std::uint64_t> guest_hypercall(std::size_t vcpu, std::uint32_t number, std::uint32_t a0,
                                          std::uint32_t a1);
    /// Puts the LAPIC's timer into TSC-deadline mode with kTimerVector.
    Status enable_deadline_timer(std::size_t vcpu);
    /// STI and HLT; comes back with the guest's TSC in the handler of kTimerVector.
    Result<std::uint64_t> wait_for_timer(std::size_t vcpu);
    /// Makes vCPU i use its pvclock page (host write of MSR_KVM_SYSTEM_TIME_NEW).
    Status enable_pvclock(std::size_t vcpu);
    std::uint64_t pvclock_gpa(std::size_t vcpu) const { return kPvclockGpa + 64 * vcpu; }

  private:
    ProbeVm() = default;
    Status load_code();
    Status start(Vcpu& vcpu);
    Result<kvm_regs> run_at(std::size_t vcpu, std::uint64_t rip, const kvm_regs& regs,
                            machine::WriteBracket* bracket = nullptr);

    std::unique_ptr<RunLimit> limit_;
    bool has_deadline_ = false;
    CpuidEntries cpuid_;
    std::optional<GuestMemory> memory_;
    std::optional<Vm> vm_;
    std::vector<Vcpu> vcpus_;
};

}  // namespace continuo::kvm
