// One KVM virtual machine on arm64, and the counter that all of its vCPUs share. Kernel API:
// Documentation/virt/kvm/api.rst; what each call does to the counter is in docs/kernel-facts.md.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <optional>

#include "continuo/kvm/device.h"
#include "continuo/kvm/system.h"
#include "continuo/kvm/vm_core.h"

namespace continuo::kvm {

/// Whose the counter's offset is.
enum class CounterOwner : std::uint8_t {
    /// Set and remembered from before the first vCPU on: there is no call that reads it.
    kUs,
    /// The kernel's, which takes a new one at each vCPU's creation and at each write of a counter
    /// register: for looking at what it does then.
    kKernel,
};

struct VmOptions {
    /// Bits of guest-physical address; 0: 40, or what the host has where that is less.
    unsigned ipa_bits = 0;
    CounterOwner counter = CounterOwner::kUs;
};

class Vm : public VmCore {
  public:
    /// With CounterOwner::kUs the guest's counters, virtual and physical, begin at 0, as the
    /// virtual one does where the kernel owns it. A kernel that has no offset to be set, or refuses
    /// to set it, gives a VM whose counter is the kernel's: counter_offset() is none then, and
    /// why_no_offset() says why.
    static Result<Vm> create(const System& system, VmOptions options = {});

    /// KVM_ARM_PREFERRED_TARGET: what Vcpu::init() is called with, its features cleared.
    Result<kvm_vcpu_init> preferred_target() const;

    /// KVM_IRQ_LINE of an SPI, of an interrupt controller in the kernel: `intid` is 32 or more.
    Status set_interrupt_line(std::uint32_t intid, bool on);

    /// KVM_ARM_SET_COUNTER_OFFSET: from here on guest CNTVCT and CNTPCT = host CNTPCT - offset,
    /// modulo 2^64, on every vCPU. kUnsupported before Linux 6.4 and under pKVM; kBusy while a vCPU
    /// runs.
    Status set_counter_offset(std::uint64_t offset);
    /// The offset that was set last; none where none ever was.
    std::optional<std::uint64_t> counter_offset() const { return counter_offset_; }
    /// Why create() could not take the counter.
    const std::optional<state::Error>& why_no_offset() const { return why_no_offset_; }

  private:
    Vm() = default;
    void own_counter();

    std::optional<std::uint64_t> counter_offset_;
    std::optional<state::Error> why_no_offset_;
};

}  // namespace continuo::kvm
