// The state of a stopped arm64 VM beside its memory and its clocks, as values and as bytes: tagged,
// docs/formats/migration.md. Every register is a value with its id, so nothing here depends on the
// architecture that it is built for: it is tested and fuzzed everywhere. arm64's vm_state.h saves
// and loads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "continuo/state/error.h"
#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/serial_state.h"
#include "continuo/vmm/vmclock_device.h"

namespace continuo::vmm::arm64 {

/// Bytes of a register, as its id says (KVM_REG_SIZE_MASK): a power of two from 1 to 2^15.
constexpr std::size_t register_bytes(std::uint64_t id) {
    return std::size_t{1} << ((id >> 52) & 0xf);
}
/// The widest register there is: an SVE vector.
inline constexpr std::size_t kRegisterBytesMax = 256;

/// True for the registers that the clock record owns: the values of both counters.
bool owned_by_clock_record(std::uint64_t id);
/// True for what is compared with the counters, and is loaded after their offset: CVAL and CTL of
/// both timers.
bool belongs_to_timer(std::uint64_t id);

struct Register {
    std::uint64_t id = 0;          ///< of KVM_GET_ONE_REG
    std::vector<std::byte> value;  ///< register_bytes(id) of them, little-endian
    friend bool operator==(const Register&, const Register&) = default;
};

/// struct kvm_vcpu_events of arm64.
struct VcpuEvents {
    std::uint8_t serror_pending;
    std::uint8_t serror_has_esr;
    std::uint8_t ext_dabt_pending;
    std::uint8_t pad[5];
    std::uint64_t serror_esr;
    std::uint32_t reserved[12];
    friend bool operator==(const VcpuEvents&, const VcpuEvents&) = default;
};
static_assert(sizeof(VcpuEvents) == 64);

struct VcpuState {
    std::uint32_t mp_state = 0;  ///< KVM_MP_STATE_*
    VcpuEvents events{};
    std::vector<Register> registers;  ///< in the kernel's order, in which they are loaded again
    friend bool operator==(const VcpuState&, const VcpuState&) = default;
};

/// Of the vGICv3, all that a guest or a device can change, in words of 32 bits as KVM's device
/// attributes have them (Documentation/virt/kvm/devices/arm-vgic-v3.rst). There is no ITS, so there
/// are no LPIs and nothing of theirs. `pending` is the latch and `level` the line: an interrupt
/// that is triggered by level is pending where one of them is set.
struct GicDistributor {
    std::uint32_t implementer;  ///< GICD_IIDR: what this kernel does, its revision
    std::uint32_t control;      ///< GICD_CTLR
    // Of the SPIs.
    std::uint32_t group;        ///< GICD_IGROUPR1
    std::uint32_t enabled;      ///< GICD_ISENABLER1
    std::uint32_t pending;      ///< GICD_ISPENDR1
    std::uint32_t active;       ///< GICD_ISACTIVER1
    std::uint32_t level;        ///< VGIC_LEVEL_INFO_LINE_LEVEL
    std::uint32_t config[2];    ///< GICD_ICFGR2, 3
    std::uint32_t priority[8];  ///< GICD_IPRIORITYR8 to 15
    std::uint32_t route[32];    ///< GICD_IROUTER32 to 63, whose upper halves are zero in KVM
    friend bool operator==(const GicDistributor&, const GicDistributor&) = default;
};
static_assert(sizeof(GicDistributor) == 196);

/// Of one vCPU's SGIs and PPIs.
struct GicRedistributor {
    std::uint32_t group;        ///< GICR_IGROUPR0
    std::uint32_t enabled;      ///< GICR_ISENABLER0
    std::uint32_t pending;      ///< GICR_ISPENDR0
    std::uint32_t active;       ///< GICR_ISACTIVER0
    std::uint32_t level;        ///< VGIC_LEVEL_INFO_LINE_LEVEL
    std::uint32_t config[2];    ///< GICR_ICFGR0, 1
    std::uint32_t priority[8];  ///< GICR_IPRIORITYR0 to 7
    friend bool operator==(const GicRedistributor&, const GicRedistributor&) = default;
};
static_assert(sizeof(GicRedistributor) == 60);

/// One vCPU's CPU interface.
struct GicCpuInterface {
    std::uint64_t control;          ///< ICC_CTLR_EL1
    std::uint64_t sre;              ///< ICC_SRE_EL1
    std::uint64_t group_enable[2];  ///< ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1
    std::uint64_t priority_mask;    ///< ICC_PMR_EL1
    std::uint64_t binary_point[2];  ///< ICC_BPR0_EL1, ICC_BPR1_EL1
    /// ICC_AP0Rn_EL1, ICC_AP1Rn_EL1, of which there are active_priority_words(control); others are
    /// zero.
    std::uint64_t active_priorities[2][4];
    friend bool operator==(const GicCpuInterface&, const GicCpuInterface&) = default;
};
static_assert(sizeof(GicCpuInterface) == 120);

/// 1, 2 or 4 for 5, 6 or 7 bits of priority, as ICC_CTLR_EL1.PRIbits states; 0 for what no vGICv3
/// has.
constexpr std::uint32_t active_priority_words(std::uint64_t control) {
    const std::uint64_t bits = (control >> 8 & 7) + 1;
    return bits >= 5 && bits <= 7 ? 1u << (bits - 5) : 0;
}
static_assert(active_priority_words(4u << 8) == 1 && active_priority_words(6u << 8) == 4 &&
              active_priority_words(3u << 8) == 0 && active_priority_words(7u << 8) == 0);

struct GicVcpuState {
    GicRedistributor redistributor{};
    GicCpuInterface cpu_interface{};
    friend bool operator==(const GicVcpuState&, const GicVcpuState&) = default;
};

struct GicState {
    GicDistributor distributor{};
    std::vector<GicVcpuState> vcpus;  ///< as many as the VM has
    friend bool operator==(const GicState&, const GicState&) = default;
};

struct VmState {
    std::vector<VcpuState> vcpus;
    std::optional<GicState> gic;  ///< where the VM has an interrupt controller
    SerialState serial;
    std::optional<NoticeState> notice;          ///< where the VM has the device
    std::optional<VmclockDeviceState> vmclock;  ///< where the VM has the device
    friend bool operator==(const VmState&, const VmState&) = default;
};

/// The state as bytes, and back. decode_state trusts nothing: kTruncated, kMalformed or kVersion
/// with the byte offset, and it takes no more memory than a small multiple of the input.
std::vector<std::byte> encode_state(const VmState& state);
state::Result<VmState> decode_state(std::span<const std::byte> bytes);

}  // namespace continuo::vmm::arm64
