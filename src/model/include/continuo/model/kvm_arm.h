// KVM on arm64 and a guest's counters, as arch/arm64/kvm/arch_timer.c keeps them: one offset for
// the virtual and one for the physical counter of all vCPUs, moved by the creation of vCPUs, by
// writes of the counter registers and by KVM_ARM_SET_COUNTER_OFFSET; how a guest reads its physical
// counter (the register itself, FEAT_ECV's CNTPOFF_EL2, or a trap); the timers' conditions; the PTP
// call. Time is the host object's and stands still during a call. Nested virtualisation and
// protected guests' own timers are not here. The facts are docs/kernel-facts.md, section arm64.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "continuo/abi/arm64.h"
#include "continuo/state/error.h"
#include "continuo/state/record.h"
#include "continuo/time/rate.h"

namespace continuo::model {

using state::Result;
using state::Status;

/// What differs between kernels.
struct ArmRules {
    /// KVM_ARM_SET_COUNTER_OFFSET, and the physical counter's register with it: from Linux 6.4 on.
    bool counter_offset = true;

    /// The rules of a release.
    static ArmRules linux(unsigned major, unsigned minor);
};

/// Where KVM runs: at EL2 itself, with a stub there, or with a stub that does not trust it (pKVM).
enum class ArmMode : std::uint8_t { kVhe, kNvhe, kProtected };

/// A host: one system counter, and what its CPUs and kernel make of it.
struct ArmHost {
    static constexpr unsigned kCpus = 8;

    std::uint64_t counter = 1'000'000;                    ///< CNTPCT_EL0
    time::Hz frequency = *time::Hz::from_hz(62'500'000);  ///< that it runs at
    /// CNTFRQ_EL0 of each CPU in Hz, as firmware wrote it; 0: the true one. Linux goes by CPU 0's.
    std::array<std::uint32_t, kCpus> cntfrq{};
    std::uint64_t boot_realtime_ns = 1'700'000'000'000'000'000;  ///< REALTIME at counter 0
    ArmMode mode = ArmMode::kVhe;
    bool ecv_cntpoff = false;  ///< FEAT_ECV with CNTPOFF_EL2
    /// CNTPOFF_EL2 takes values and subtracts nothing, as in QEMU 10 without EL3.
    bool cntpoff_without_effect = false;
    /// The clocksource is the architected counter; else the PTP call has no answer.
    bool arch_counter_clocksource = true;
    /// The host's user space reads CNTVCT_EL0 = CNTPCT_EL0 - this: not 0 only on a host that is a
    /// guest itself, and then KVM's counter is not the one that user space sees.
    std::uint64_t user_offset = 0;
    state::HostIdentity identity{{1}, "arm64 model"};

    std::uint32_t cntfrq_of(unsigned cpu) const;
    /// REALTIME at a counter value, rounded down.
    std::uint64_t realtime_ns(std::uint64_t at) const;
};

/// How a guest's read of CNTPCT_EL0 is answered.
enum class PhysicalAccess : std::uint8_t {
    kNative,   ///< the register: the host's counter
    kCntpoff,  ///< the register less CNTPOFF_EL2: no exit
    kTrapped,  ///< an exit, and KVM subtracts
};

enum class ArmTimer : std::uint8_t { kVirtual, kPhysical };

/// One VM. Deterministic, no heap after construction but for the text of errors. The host outlives
/// it. Offsets are modulo 2^64: guest counter = host counter - offset.
class KvmArm {
  public:
    static constexpr unsigned kVcpusMax = 8;

    /// guest_is_protected: a guest that pKVM hides from its host (mode kProtected only).
    KvmArm(ArmHost& host, ArmRules rules, bool guest_is_protected = false);

    /// KVM_CREATE_VCPU; answers the vCPU's number. Until an offset was set by call, virtual offset
    /// and counter become equal for the whole VM: its virtual counter begins again at 0
    /// (kvm_timer_vcpu_init). kInvalidArgument above kVcpusMax.
    Result<unsigned> create_vcpu();
    unsigned vcpus() const { return vcpus_; }

    /// KVM_ARM_SET_COUNTER_OFFSET. kUnsupported before Linux 6.4 (ENOTTY); kInvalidArgument where
    /// reserved is not 0 or the guest is protected (EINVAL); kBusy while a vCPU is in KVM_RUN.
    Status set_counter_offset(const abi::kvm_arm_counter_offset& offset);

    /// KVM_SET_ONE_REG of a timer register. A counter's moves the whole VM's offset, so that it
    /// reads `value` now; after set_counter_offset() it answers 0 and does nothing. kUnsupported
    /// for a register that the kernel does not have (ENOENT). A vCPU in KVM_RUN goes on with what
    /// it was entered with (see enter()).
    Status set_one_reg(unsigned vcpu, std::uint64_t id, std::uint64_t value);
    /// KVM_GET_ONE_REG: a counter's is the host's counter now less the offset, whatever a guest
    /// would read (kvm_arm_timer_read).
    Result<std::uint64_t> one_reg(unsigned vcpu, std::uint64_t id) const;

    /// KVM_RUN on a CPU: the virtual offset, and how the physical counter is read, are loaded
    /// (timer_restore_state, timer_set_traps) and stay until the next entry.
    void enter(unsigned vcpu, unsigned cpu);
    void exit(unsigned vcpu);

    /// CNTVCT_EL0 in the guest, now; of a stopped vCPU, as if it were entered now.
    std::uint64_t guest_cntvct(unsigned vcpu) const;
    /// CNTPCT_EL0 in the guest. A trap subtracts the VM's offset of now, hardware the loaded one.
    std::uint64_t guest_cntpct(unsigned vcpu) const;
    PhysicalAccess physical_access(unsigned vcpu) const;
    /// CNTFRQ_EL0 in the guest, Hz: that of the CPU it runs on; nothing virtualises it.
    std::uint32_t guest_cntfrq(unsigned vcpu) const;

    /// The condition of a timer as KVM computes it: enabled, not masked, CVAL reached
    /// (kvm_timer_should_fire). Unsigned, as the architecture has it.
    bool timer_due(unsigned vcpu, ArmTimer timer) const;

    /// The guest's PTP call: REALTIME ns and the chosen counter at this instant, as the four 32-bit
    /// words of x0 to x3, high before low. nullopt: SMCCC NOT_SUPPORTED (another clocksource, or
    /// neither counter asked for). Before Linux 6.4 the physical counter is the host's.
    std::optional<std::array<std::uint64_t, 4>> ptp(std::uint32_t which) const;

    std::uint64_t voffset() const { return voffset_; }
    std::uint64_t poffset() const { return poffset_; }
    bool offset_was_set() const { return offset_was_set_; }

  private:
    struct Timer {
        std::uint64_t cval = 0;
        std::uint32_t ctl = 0;
    };
    struct Loaded {
        std::uint64_t voffset = 0;
        std::uint64_t poffset = 0;
        PhysicalAccess access = PhysicalAccess::kNative;
    };
    struct Vcpu {
        bool running = false;
        unsigned cpu = 0;
        Loaded loaded;
        std::array<Timer, 2> timers;
    };

    Status known(unsigned vcpu) const;
    bool any_running() const;
    Loaded load() const;
    Loaded seen_by(const Vcpu& vcpu) const { return vcpu.running ? vcpu.loaded : load(); }
    const std::uint64_t& offset_of(ArmTimer timer) const;

    ArmHost& host_;
    ArmRules rules_;
    bool guest_is_protected_;
    unsigned vcpus_ = 0;
    std::uint64_t voffset_ = 0;
    std::uint64_t poffset_ = 0;
    bool offset_was_set_ = false;
    std::array<Vcpu, kVcpusMax> vcpu_;
};

}  // namespace continuo::model
