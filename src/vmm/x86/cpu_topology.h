// CPUID as one vCPU sees it: its APIC id, and a package of as many cores as the VM has vCPUs, one
// thread each. The host's own topology, which KVM passes on in part, would contradict that.
#pragma once

#include <cstdint>

#include "continuo/kvm/system.h"

namespace continuo::vmm {

/// Rewrites what CPUID says of topology, for vCPU `id` (its APIC id) of `vcpus`.
void set_topology(kvm::CpuidEntries& cpuid, std::uint32_t id, std::uint32_t vcpus);

}  // namespace continuo::vmm
