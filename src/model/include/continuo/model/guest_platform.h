// What KVM's timekeeping sees where it runs in a guest: the Platform of an L1. Its counter is L1's
// vCPUs' TSC; its kernel's clocks are lines of that counter, or of kvmclock as L1's pages have it,
// or of an emulated device. A KvmVm on it is an L2, and its platform may be a guest's again: L2 on
// L1 on L0. What happens beneath reaches L1's kernel only through what L1 can see, its pages; from
// there this class carries it to every VM that is built on it (S0.4).
#pragma once

#include <array>
#include <cstdint>

#include "continuo/model/guest_clock.h"
#include "continuo/model/kvm_vm.h"
#include "continuo/model/platform.h"

namespace continuo::model {

/// What L1's kernel keeps its time by.
enum class GuestClocksource : std::uint8_t {
    kTsc,       ///< its TSC: vclock mode TSC
    kKvmclock,  ///< its pages: vclock mode pvclock, a stable source for an L2 only by proposal
                ///< (S0.3)
    kOther,     ///< an emulated device that counts the host's raw clock in ns
};

/// The kHz of a counter that a Linux guest computes from its page's scale (pvclock_tsc_khz()): what
/// is cut off is multiplied with 2^-shift, so above 2 GHz it is a multiple of 2. Domain: mul != 0.
///
/// Example: mul 2^31, shift 1 is 1 000 000 kHz: (10^6 * 2^32 / 2^31) >> 1. Of 2 399 999 kHz, mul
/// 3579140904, shift -1, is left 2 399 998: floor(10^6 * 2^32 / mul) = 1 199 999, times 2.
std::uint32_t pvclock_tsc_khz(const time::PvclockScale& scale);

/// Every clock of a kernel at one reading of its counter, and how often its clocksource has
/// changed: what a hypervisor needs of the timekeeper, in one call (S0.2). Two snapshots with
/// different `changes` are of different lines and must not be combined.
struct ClockSnapshot {
    std::uint64_t counter = 0;  ///< TSC
    std::int64_t realtime_ns = 0;
    std::int64_t monotonic_ns = 0;  ///< raw, without the time slept
    std::int64_t boot_ns = 0;       ///< raw, with it
    GuestClocksource clocksource = GuestClocksource::kTsc;
    std::uint32_t changes = 0;
    friend bool operator==(const ClockSnapshot&, const ClockSnapshot&) = default;
};

/// L1's kernel. CPU numbers of this platform are L1's vCPUs. Lifetime: L1's VM outlives it, or is
/// replaced by rebind().
class GuestPlatform final : public Platform {
  public:
    static constexpr unsigned kVmsMax = 4;

    /// L1 boots now: its raw clock is 0 and its REALTIME `boot_realtime_ns`. Its tsc_khz is that of
    /// vCPU 0's page, or of KVM_GET_TSC_KHZ where it has none (CPUID 0x40000010). rules are those
    /// of L1's kernel: only pvclock_vclock and change_notifier matter here.
    GuestPlatform(KvmVm& l1, const KernelRules& rules, GuestClocksource clocksource,
                  std::int64_t boot_realtime_ns = 1'700'000'000'000'000'000);

    std::uint64_t tsc(unsigned cpu) override { return l1_->guest_tsc(cpu); }
    std::int64_t base_ns(std::uint64_t tsc) override { return raw_.at(cycles_at(tsc)) + slept_ns; }
    std::int64_t realtime_ns(std::uint64_t tsc) override { return real_.at(cycles_at(tsc)); }
    /// With kKvmclock: by the proposal, while vCPU 0's page has the stable bit.
    bool tsc_clocksource() override;
    std::uint32_t tsc_khz() override { return tsc_khz_; }
    bool tsc_unstable() override { return tsc_unstable_; }
    void mark_tsc_unstable() override { tsc_unstable_ = true; }
    std::int64_t base_now_ns(unsigned cpu) override { return raw_.at(cycles_now(cpu)) + slept_ns; }
    std::int64_t realtime_now_ns(unsigned cpu) override { return real_.at(cycles_now(cpu)); }

    GuestClocksource clocksource() const { return clocksource_; }
    /// All of L1's clocks at one instant, read on one of its CPUs.
    ClockSnapshot snapshot(unsigned cpu);
    KvmVm& l1() { return *l1_; }

    /// A VM that is built on this platform: it is told of every change. Domain: at most kVmsMax.
    void attach(KvmVm& l2);
    /// L1's kernel switches its clocksource: its clocks go on where they are, at the new one's
    /// rate, and the VMs are told.
    void set_clocksource(GuestClocksource clocksource);
    /// L1's kernel looks at vCPU 0's page, as at each of its ticks. A lost or regained stable bit,
    /// and another frequency where it keeps time by the page, are told to the VMs. True: something
    /// was.
    bool look();
    /// L2's vCPU is entered on the L1 vCPU that its thread is on: L0's entry for that one, then, by
    /// the rule change_notifier, L1's look, then L2's own. Without it L0 goes back into L2, and L1
    /// hears nothing before its own next tick.
    bool enter(KvmVm& l2, unsigned vcpu);

    /// L1 goes on as this VM: it was moved, with its memory and all that is built on it.
    void rebind(KvmVm& l1);

    std::int64_t slept_ns = 0;  ///< offs_boot: what L1's suspends have added

  private:
    /// The clocksource's reading at a TSC value. Domain: not kOther, whose reading no TSC gives.
    std::uint64_t cycles_at(std::uint64_t tsc);
    std::uint64_t cycles_now(unsigned cpu);
    const abi::pvclock_vcpu_time_info& page() const { return l1_->page(0); }
    bool page_stable() const { return (page().flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0; }
    std::uint32_t khz_of_page() const;
    /// Both clocks go on from `cycles` on, at this clocksource's and frequency's rate.
    void restart_lines(std::uint64_t cycles, std::int64_t raw_ns, std::int64_t real_ns);
    void tell();

    KvmVm* l1_;
    KvmclockReader reader_;
    bool pvclock_vclock_;
    bool change_notifier_;
    GuestClocksource clocksource_;
    std::uint32_t tsc_khz_;
    bool tsc_unstable_ = false;
    bool was_stable_;
    std::uint32_t changes_ = 0;
    KernelLine raw_;
    KernelLine real_;
    std::array<KvmVm*, kVmsMax> vms_{};
    unsigned vm_count_ = 0;
};

/// Whether a page that a vCPU in guest mode has says that it is of the masterclock while what it
/// was computed from no longer is one: what a reader of such a page gets is stale (S0.4).
bool has_stale_page(KvmVm& vm);

}  // namespace continuo::model
