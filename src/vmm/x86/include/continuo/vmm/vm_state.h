// The state of a stopped x86-64 VM beside its memory and its clocks: registers, interrupt
// controllers, timers of devices, MSRs. Not in it: IA32_TSC and IA32_TSC_ADJUST, which the clock
// record owns, and kvmclock's value. kvmclock's MSRs (where its pages are) are in it. Saved by
// ioctls, loaded into a VM of the same shape, and serialised as tagged values:
// docs/formats/migration.md.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/serial_state.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/vmclock_device.h"

namespace continuo::vmm {

struct MsrValue {
    std::uint32_t index;
    std::uint64_t data;
    friend bool operator==(const MsrValue&, const MsrValue&) = default;
};

/// One vCPU. Optional parts are those that a kernel may lack.
struct VcpuState {
    kvm_mp_state mp_state{};
    kvm_regs regs{};
    kvm_sregs sregs{};
    kvm_lapic_state lapic{};
    kvm_vcpu_events events{};
    std::optional<kvm_debugregs> debugregs;
    std::optional<kvm_xcrs> xcrs;
    std::vector<std::byte> xsave;
    std::vector<MsrValue> msrs;
    /// A guest of the guest's own (KVM_GET_NESTED_STATE); empty where it virtualises nothing.
    std::vector<std::byte> nested;
};

struct VmState {
    std::array<kvm_irqchip, 3> irqchips{};  ///< by chip id: PIC master, PIC slave, IOAPIC
    kvm_pit_state2 pit{};
    SerialState serial;                            ///< COM1
    std::uint16_t pm1_enable = 0;                  ///< ACPI's PM1 enable register
    std::optional<NoticeState> notice;             ///< none: the VM has no such device
    SerialState wake;                              ///< COM2, of the notice device
    std::optional<VmclockDeviceState> vmclock;     ///< none: the VM has no such device
    std::optional<std::uint64_t> generation_page;  ///< GPA; none: the VM has no generation ID
    std::uint8_t events = 0;                       ///< of the devices' interrupt, not asked for yet
    std::vector<VcpuState> vcpus;
};

/// True for the MSRs that the clock record owns and that are therefore not saved here.
bool owned_by_clock_record(std::uint32_t msr);

/// Reads everything. The VM is stopped.
Result<VmState> save_state(VirtualMachine& machine, const kvm::System& system);

/// Writes everything but what means nothing before the clocks are what they will be: see
/// arm_timers. Only into a stopped VM that has not run. kInvalidArgument where the numbers
/// of vCPUs or the sizes of XSAVE areas differ; kKernel with the MSR's number where the host does
/// not take an MSR's value; kUnsupported for a guest inside the guest where the host lacks
/// KVM_CAP_NESTED_STATE.
Status load_state(VirtualMachine& machine, const VmState& state);

/// Arms the LAPIC's TSC-deadline timers (IA32_TSC_DEADLINE), and has KVM write the guest's wall
/// clock. After the clocks are in force: a deadline is compared with the guest's TSC when it is
/// written, and the wall clock is computed from kvmclock (kvm_write_wall_clock()).
Status arm_timers(VirtualMachine& machine, const VmState& state);

/// The state as bytes, and back. decode_state trusts nothing: kTruncated, kMalformed or kVersion
/// with the byte offset, and it takes no more memory than the input has.
std::vector<std::byte> encode_state(const VmState& state);
Result<VmState> decode_state(std::span<const std::byte> bytes);

}  // namespace continuo::vmm
