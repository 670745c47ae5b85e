// Something whose clocks can be acted upon and looked at: a VM on real KVM, or one of the model's
// in its place. What it did is a trace: numbers only, so that the judge needs neither again.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "continuo/abi/clock_pairing.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/pvclock.h"
#include "continuo/state/error.h"
#include "sequence.h"

namespace continuo::differential {

using state::Result;
using state::Status;

/// Host counter values around something that happened.
struct Bracket {
    std::uint64_t before = 0;
    std::uint64_t after = 0;
    bool has(std::uint64_t tsc) const { return before <= tsc && tsc <= after; }
    std::uint64_t width() const { return after - before; }
};

/// CLOCK_REALTIME, ns since 1970, as user space reads it.
struct RealtimeAnchor {
    Bracket at;
    std::int64_t ns = 0;
};

struct VcpuView {
    std::uint64_t offset = 0;
    std::uint32_t khz = 0;
    std::uint64_t adjust = 0;
    std::uint64_t system_time = 0;  ///< the MSR
    /// Guest memory at page_gpa(vcpu, false) and (vcpu, true), in use or not.
    std::array<abi::pvclock_vcpu_time_info, 2> pages{};
};

/// All that a VMM and its guest can see of the clocks, without disturbing them.
struct View {
    unsigned vcpus = 0;
    std::uint32_t vm_khz = 0;  ///< KVM_GET_TSC_KHZ of the VM
    std::array<VcpuView, kVcpusMax> vcpu{};
    abi::kvm_clock_data clock{};
    Bracket clock_at;  ///< around KVM_GET_CLOCK
    abi::pvclock_wall_clock wall{};
};

/// One act, its answer, and what was seen after it.
struct Step {
    Act act;
    Bracket at;
    int error = 0;             ///< errno of the control, 0 where it was taken
    std::uint64_t answer = 0;  ///< of a read or a hypercall
    abi::kvm_clock_pairing pairing{};
    View after;
};

/// The first step is the creation of the VM, without vCPUs; each vCPU is a step of its own.
struct Trace {
    RealtimeAnchor realtime;
    Bracket created;
    View first;
    std::vector<Step> steps;
};

/// Where guest memory holds what the clocks write. Two pages for each vCPU, so that it can move.
inline constexpr std::uint64_t kPageGpa = 0x6000;
inline constexpr std::uint64_t kOtherPageGpa = 0x7000;
inline constexpr std::uint64_t kWallGpa = 0x8000;
inline constexpr std::uint64_t kPairingGpa = 0x9000;
constexpr std::uint64_t page_gpa(unsigned vcpu, bool other) {
    return (other ? kOtherPageGpa : kPageGpa) + 64 * vcpu;
}

class Subject {
  public:
    virtual ~Subject() = default;
    /// A new VM without vCPUs, in place of the one before.
    virtual Result<Bracket> create() = 0;
    /// The host's counter.
    virtual std::uint64_t now() = 0;
    virtual std::uint32_t host_khz() const = 0;
    virtual RealtimeAnchor realtime() = 0;
    /// Does it and looks. Fails where the host did not play along (no memory, a guest that does not
    /// come back); a control that is refused is a Step with its errno.
    virtual Result<Step> perform(const Act& act) = 0;
    virtual Result<View> look() = 0;
};

/// Runs a sequence: creates the VM and its vCPUs, gives each operation its numbers by what is seen
/// at that moment, performs it.
Result<Trace> run(Subject& subject, const Sequence& sequence);

}  // namespace continuo::differential
