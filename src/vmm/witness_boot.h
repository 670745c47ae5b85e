// What the architecture does to boot the witness: tables, registers, its part of the control page.
// witness.cc does the rest.
#pragma once

#include <cstdint>
#include <span>

#include "continuo/vmm/witness.h"
#include "guest_writer.h"

namespace continuo::vmm {

/// Room above the first frame, so that the stack pointer stays inside its own 8 KiB.
inline constexpr std::uint64_t kStackTopGap = 16;

constexpr std::uint64_t stack_top(std::uint32_t vcpu) {
    return witness::kStacks + witness::kStackStride * (vcpu + 1) - kStackTopGap;
}

constexpr std::uint64_t report_gpa(std::uint32_t vcpu) {
    return witness::kReports + witness::kReportStride * vcpu;
}

/// What all vCPUs share; `image` is the payload.
void put_tables(GuestWriter& out, std::span<const std::byte> image);
/// What one vCPU has for itself.
void put_vcpu_tables(GuestWriter& out, std::uint32_t vcpu);
/// Registers, so that the next KVM_RUN begins at `entry`.
Status set_entry(kvm::Vcpu& vcpu, std::uint64_t entry);
/// Flags, timer, and what else of the control page the architecture has.
Status fill_machine_control(VirtualMachine& machine, const WitnessConfig& config,
                            witness::Control& control);

}  // namespace continuo::vmm
