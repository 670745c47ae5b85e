// One KVM virtual machine on x86-64: in-kernel interrupt controllers, and the VM-wide clock
// controls as the kernel gives them.
#pragma once

#include <linux/kvm.h>

#include <cstdint>

#include "continuo/kvm/system.h"
#include "continuo/kvm/vm_core.h"

namespace continuo::kvm {

class Vm : public VmCore {
  public:
    static Result<Vm> create(const System& system);

    /// KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR: three pages and one page of guest-physical
    /// space outside memory that Intel's VMX wants; nothing where the kernel does not ask.
    Status set_tss_address(std::uint64_t gpa);
    Status set_identity_map_address(std::uint64_t gpa);

    /// In-kernel PIC, IOAPIC and a LAPIC for each vCPU; before any vCPU.
    Status create_irqchip();
    /// With port 0x61, at which guests measure their TSC against the PIT.
    Status create_pit();
    /// chip: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC.
    Result<kvm_irqchip> get_irqchip(std::uint32_t chip) const;
    Status set_irqchip(const kvm_irqchip& chip);
    /// KVM_IRQ_LINE: moves the line of interrupt `irq` of the in-kernel controllers. Any thread.
    Status set_interrupt_line(std::uint32_t irq, bool on);
    Result<kvm_pit_state2> get_pit() const;
    Status set_pit(const kvm_pit_state2& pit);

    /// KVM_GET_CLOCK and KVM_SET_CLOCK, raw. No heap use where they succeed.
    Result<kvm_clock_data> get_clock() const;
    Status set_clock(const kvm_clock_data& clock);

    /// KVM_GET_TSC_KHZ and KVM_SET_TSC_KHZ on the VM (needs KVM_CAP_VM_TSC_CONTROL): the default of
    /// vCPUs created later.
    Result<std::uint32_t> tsc_khz() const;
    Status set_tsc_khz(std::uint32_t khz);

  private:
    Vm() = default;
};

}  // namespace continuo::kvm
