// What is done to a VM's clocks, twice: by the real kernel and by the model. A sequence is drawn
// from a seed. Its operations are relative ("near the line of vCPU 1"), because a host's counter is
// what it is; each becomes an Act with plain numbers at the moment at which it is done.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/abi/kvm_clock.h"

namespace continuo::differential {

inline constexpr unsigned kVcpusMax = 4;

/// How a control's value is chosen. `amount` is in ticks, ns or kHz, as the operation has it.
enum class Value : std::uint8_t {
    kAbsolute,    ///< the amount itself
    kOwn,         ///< what the vCPU (or the VM's clock) has now, plus the amount
    kOther,       ///< what the next vCPU has now, plus the amount
    kWindowHigh,  ///< a second of the vCPU's cycles ahead of its counter, plus the amount
    kWindowLow,   ///< a second behind it, plus the amount
};

enum class OpKind : std::uint8_t {
    kCreateVcpu,     ///< one more; nothing where there are kVcpusMax
    kSetOffset,      ///< KVM_VCPU_TSC_OFFSET
    kWriteTsc,       ///< host write of IA32_TSC
    kReadTsc,        ///< host read of it
    kWriteAdjust,    ///< host write of IA32_TSC_ADJUST
    kSetKhz,         ///< KVM_SET_TSC_KHZ; kOwn: of the host, plus the amount
    kSetClock,       ///< KVM_SET_CLOCK; kOwn: KVM_GET_CLOCK's value plus the amount
    kHandBack,       ///< KVM_SET_CLOCK of KVM_GET_CLOCK's struct as it is
    kSetClockReal,   ///< KVM_SET_CLOCK with KVM_CLOCK_REALTIME; amount: how old the struct is, ns
    kSetClockBad,    ///< KVM_SET_CLOCK with a flag that there is not
    kSystemTime,     ///< host write of MSR_KVM_SYSTEM_TIME(_NEW)
    kWallClock,      ///< host write of MSR_KVM_WALL_CLOCK(_NEW)
    kStopped,        ///< KVM_KVMCLOCK_CTRL
    kClearStopped,   ///< what a guest does once it has seen GUEST_STOPPED
    kSettle,         ///< KVM_RUN that is cancelled after the requests were carried out
    kGuestReadTsc,   ///< RDTSC in the guest
    kGuestWriteTsc,  ///< WRMSR in the guest
    kGuestWriteAdjust,
    kGuestSystemTime,
    kGuestWallClock,
    kClockPairing,  ///< KVM_HC_CLOCK_PAIRING by the guest
    kSetVmKhz,      ///< KVM_SET_TSC_KHZ of the VM: of vCPUs to come
    kMoveToCpu,     ///< the thread of the VMM and all vCPUs goes on on another CPU; amount: which
    kWait,          ///< amount: us
};
inline constexpr unsigned kOpKinds = static_cast<unsigned>(OpKind::kWait) + 1;
std::string_view name(OpKind kind);

/// A guest's act of which the kernel takes care by itself: the guest is entered once more.
bool enters_again(OpKind kind);
/// A guest's act of any kind.
bool enters_guest(OpKind kind);

struct Op {
    OpKind kind = OpKind::kSettle;
    std::uint8_t vcpu = 0;
    Value value = Value::kAbsolute;
    bool old_msr = false;  ///< the deprecated number, where an MSR has two
    bool off = false;      ///< system time: without the enable bit
    std::int64_t amount = 0;
    friend bool operator==(const Op&, const Op&) = default;
};
std::string text(const Op& op);

struct Sequence {
    std::uint64_t seed = 0;
    unsigned vcpus = 1;  ///< created at the start
    std::vector<Op> ops;
};

/// What works on a host: operations that have no effect there are not drawn.
struct Abilities {
    bool moves_tsc = true;   ///< offsets and writes of IA32_TSC, by host and guest
    bool guest_runs = true;  ///< real guest entries come back
    bool guest_msrs = true;  ///< WRMSR in the guest
    bool hypercalls = true;  ///< KVM_HC_CLOCK_PAIRING
    bool catches_up = true;  ///< KVM_SET_TSC_KHZ above the host's is taken (no scaling)
    unsigned cpus = 1;       ///< that the thread may use
    std::uint32_t host_khz = 0;
};

/// The same seed, abilities and length give the same sequence.
Sequence draw(std::uint64_t seed, const Abilities& abilities, unsigned ops_max);

/// An operation with numbers: what the kernel and the model are given.
struct Act {
    OpKind kind = OpKind::kSettle;
    std::uint8_t vcpu = 0;
    std::uint32_t msr = 0;
    std::uint64_t value = 0;
    abi::kvm_clock_data clock{};
};
std::string text(const Act& act);

}  // namespace continuo::differential
