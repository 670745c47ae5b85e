// The shape of a VM on arm64 as far as its CPUs go: what KVM_ARM_VCPU_INIT is given, the frequency
// of the counters, and the interrupt controller. What a destination must create before state can be
// loaded into it.
#pragma once

#include <array>
#include <cstdint>

#include "continuo/kvm/system.h"
#include "continuo/state/record.h"

namespace continuo::vmm {

inline constexpr state::Architecture kArchitecture = state::Architecture::kArm64;

struct VmConfig {
    std::uint32_t vcpus = 4;
    std::uint64_t memory_bytes = 64ull << 20;

    friend bool operator==(const VmConfig&, const VmConfig&) = default;
};

enum class InterruptController : std::uint32_t {
    kNone = 0,  ///< a host that has only a GICv2: the witness, which takes no interrupts, runs all
                ///< the same
    kGicV3 = 3,
};

/// What every vCPU of a VM is, and what it is connected to. The ID registers are not in it: they
/// are state, and a kernel that cannot give a guest the ones that it had refuses them by number
/// when the state is loaded.
struct CpuModel {
    std::uint32_t target = 0;                 ///< KVM_ARM_PREFERRED_TARGET
    std::array<std::uint32_t, 7> features{};  ///< of kvm_vcpu_init
    std::uint64_t counter_hz = 0;             ///< CNTFRQ_EL0; arm64 has no scaling
    InterruptController interrupts = InterruptController::kNone;

    friend bool operator==(const CpuModel&, const CpuModel&) = default;
};

/// The preferred target of this host with PSCI 0.2, its counter's frequency, and a GICv3 where the
/// host can give one.
state::Result<CpuModel> host_cpu_model(const kvm::System& system, const VmConfig& config);

/// kUnsupported with what differs where a host that gives `offered` cannot run a guest that was
/// given `wanted`: another target, a feature, another frequency, or an interrupt controller that it
/// has not.
state::Status check_cpu_model(const CpuModel& wanted, const CpuModel& offered);

}  // namespace continuo::vmm
