// Where things are in an arm64 VM: memory from 0, devices in the GiB below 64 GiB, which every
// processor can address that has 36 bits. Fixed-width integers alone: the witness's payload, the
// device tree and the board are separate readers. docs/guests.md.
#pragma once

#include <cstdint>

namespace continuo::vmm::arm64 {

/// Memory ends here at the latest.
inline constexpr std::uint64_t kDevices = 63ull << 30;

inline constexpr std::uint64_t kDistributor = kDevices;  ///< of the GICv3
inline constexpr std::uint64_t kDistributorBytes = 0x1'0000;
inline constexpr std::uint64_t kSerial = kDevices + 0x1'0000;  ///< 16550A, a register a byte
inline constexpr std::uint64_t kSerialBytes = 0x1000;
/// 32 bits: a payload's exit code. Not in the device tree: it is the witness's.
inline constexpr std::uint64_t kExit = kDevices + 0x1'1000;
inline constexpr std::uint64_t kRedistributors = kDevices + 0x100'0000;
inline constexpr std::uint64_t kRedistributorBytes = 0x2'0000;  ///< for each vCPU

// Pages of memory that belong to devices. They lie in the first 2 MiB, between the device tree,
// which is small, and the kernel.
inline constexpr std::uint64_t kDeviceTree = 0x1'0000;
inline constexpr std::uint64_t kNoticePage = 0x3'0000;
inline constexpr std::uint64_t kVmclockPage = 0x3'1000;

/// INTIDs of the GIC: SGIs from 0, PPIs (each vCPU's own) from 16, SPIs from 32.
inline constexpr std::uint32_t kFirstPpi = 16;
inline constexpr std::uint32_t kFirstSpi = 32;
inline constexpr std::uint32_t kInterrupts = 64;  ///< the fewest that a vGICv3 can have
inline constexpr std::uint32_t kSerialInterrupt = kFirstSpi;
inline constexpr std::uint32_t kNoticeInterrupt = kFirstSpi + 1;  ///< edge, as the next
inline constexpr std::uint32_t kVmclockInterrupt = kFirstSpi + 2;
// The timers', as KVM has them where nobody asks otherwise (arch_timer.c, default_ppi).
inline constexpr std::uint32_t kHypervisorTimerInterrupt = 26;
inline constexpr std::uint32_t kVirtualTimerInterrupt = 27;
inline constexpr std::uint32_t kSecureTimerInterrupt = 29;
inline constexpr std::uint32_t kPhysicalTimerInterrupt = 30;

/// MPIDR_EL1's affinity of vCPU `id`, as KVM sets it (reset_mpidr()): 16 vCPUs to each Aff1, so
/// that one SGI can name them all.
constexpr std::uint32_t affinity(std::uint32_t id) {
    return (id & 0xf) | (id >> 4) << 8;
}
static_assert(affinity(15) == 0xf && affinity(16) == 0x100 && affinity(63) == 0x30f);

}  // namespace continuo::vmm::arm64
