// One KVM virtual machine: memory slots, in-kernel interrupt controllers, and the VM-wide clock
// controls as the kernel gives them. Raw on purpose: what a value means, and whether a control has
// any effect, is decided above (ClockMachine, doctor).
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "continuo/kvm/memory.h"
#include "continuo/kvm/system.h"

namespace continuo::kvm {

class Vm {
  public:
    static Result<Vm> create(const System& system);

    int fd() const { return fd_.get(); }
    std::size_t vcpu_mmap_size() const { return vcpu_mmap_size_; }

    /// KVM_CHECK_EXTENSION on the VM.
    Result<int> check_extension(int capability) const;
    /// KVM_ENABLE_CAP on the VM with up to one argument.
    Status enable_capability(std::uint32_t capability, std::uint64_t arg0 = 0);

    /// Maps `memory` as slot `slot`; with `log_dirty`, its writes are logged from here on. The
    /// memory must outlive the VM. Called again with another `log_dirty`, it switches the log.
    Status set_memory(std::uint32_t slot, const GuestMemory& memory, bool log_dirty);
    /// Fetches and clears the slot's dirty log: one bit for each page, bit 0 of word 0 first.
    /// `bitmap` holds at least one bit a page, in whole words.
    Status get_dirty_log(std::uint32_t slot, std::span<std::uint64_t> bitmap) const;

    /// KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR: three pages and one page of guest-physical
    /// space outside memory that Intel's VMX wants; nothing where the kernel does not ask.
    Status set_tss_address(std::uint64_t gpa);
    Status set_identity_map_address(std::uint64_t gpa);

    /// In-kernel PIC, IOAPIC and a LAPIC for each vCPU; before any vCPU.
    Status create_irqchip();
    Status create_pit();
    /// chip: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC.
    Result<kvm_irqchip> get_irqchip(std::uint32_t chip) const;
    Status set_irqchip(const kvm_irqchip& chip);
    Result<kvm_pit_state2> get_pit() const;
    Status set_pit(const kvm_pit_state2& pit);

    /// KVM_GET_CLOCK and KVM_SET_CLOCK, raw. No heap use where they succeed.
    Result<kvm_clock_data> get_clock() const;
    Status set_clock(const kvm_clock_data& clock);

    /// KVM_GET_TSC_KHZ and KVM_SET_TSC_KHZ on the VM (needs KVM_CAP_VM_TSC_CONTROL): the default of
    /// vCPUs created later.
    Result<std::uint32_t> tsc_khz() const;
    Status set_tsc_khz(std::uint32_t khz);

    /// Device attributes of the VM.
    bool has_attribute(std::uint32_t group, std::uint64_t attribute) const;

  private:
    Vm() = default;

    Fd fd_;
    std::size_t vcpu_mmap_size_ = 0;
};

}  // namespace continuo::kvm
