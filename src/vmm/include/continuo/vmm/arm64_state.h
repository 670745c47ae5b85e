// The state of a stopped arm64 VM beside its memory and its clocks, as values and as bytes: tagged,
// docs/formats/migration.md. Every register is a value with its id, so nothing here depends on the
// architecture that it is built for: it is tested and fuzzed everywhere. arm64's vm_state.h saves
// and loads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "continuo/state/error.h"

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

struct VmState {
    std::vector<VcpuState> vcpus;
    friend bool operator==(const VmState&, const VmState&) = default;
};

/// The state as bytes, and back. decode_state trusts nothing: kTruncated, kMalformed or kVersion
/// with the byte offset, and it takes no more memory than a small multiple of the input.
std::vector<std::byte> encode_state(const VmState& state);
state::Result<VmState> decode_state(std::span<const std::byte> bytes);

}  // namespace continuo::vmm::arm64
