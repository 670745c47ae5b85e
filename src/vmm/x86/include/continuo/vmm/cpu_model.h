// The shape of a VM on x86-64 as far as its CPUs go: CPUID and TSC. What a destination must create
// before state can be loaded into it.
#pragma once

#include <cstdint>

#include "continuo/kvm/system.h"
#include "continuo/state/record.h"

namespace continuo::vmm {

inline constexpr state::Architecture kArchitecture = state::Architecture::kX86_64;

struct VmConfig {
    std::uint32_t vcpus = 4;
    std::uint64_t memory_bytes = 64ull << 20;
    bool invariant_tsc = true;  ///< CPUID 0x80000007 EDX[8] passed on where the host has it
    /// The guest's TSC frequency; 0: the host's. Another needs scaling (KVM_CAP_TSC_CONTROL).
    std::uint32_t tsc_khz = 0;

    friend bool operator==(const VmConfig&, const VmConfig&) = default;
};

/// CPUID. One table for all vCPUs; APIC ids are filled in when a vCPU is created.
using CpuModel = kvm::CpuidEntries;

/// CPUID as this host offers it to guests, with what the guest needs switched on (x2APIC, TSC
/// deadline timer where KVM has one, hypervisor bit).
state::Result<CpuModel> host_cpu_model(const kvm::System& system, const VmConfig& config);

/// kUnsupported with leaf, register and bits where a guest that was given `wanted` could use a
/// feature that a host which gives `offered` lacks: KVM_SET_CPUID2 itself takes any promise.
state::Status check_cpu_model(const CpuModel& wanted, const CpuModel& offered);

}  // namespace continuo::vmm
