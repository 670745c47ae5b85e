// MSR_KVM_STEAL_TIME's page: how long a vCPU was ready and did not run. Source:
// arch/x86/include/uapi/asm/kvm_para.h of Linux 6.12.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::abi {

struct kvm_steal_time {
    std::uint64_t steal;    ///< ns
    std::uint32_t version;  ///< odd while the host writes
    std::uint32_t flags;    ///< zero
    std::uint8_t preempted;
    std::uint8_t u8_pad[3];
    std::uint32_t pad[11];
    friend bool operator==(const kvm_steal_time&, const kvm_steal_time&) = default;
};
static_assert(sizeof(kvm_steal_time) == 64);
static_assert(offsetof(kvm_steal_time, steal) == 0);
static_assert(offsetof(kvm_steal_time, version) == 8);
static_assert(offsetof(kvm_steal_time, flags) == 12);
static_assert(offsetof(kvm_steal_time, preempted) == 16);
static_assert(offsetof(kvm_steal_time, u8_pad) == 17);
static_assert(offsetof(kvm_steal_time, pad) == 20);

}  // namespace continuo::abi
