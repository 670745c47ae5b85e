// KVM's timekeeping of one VM on x86-64, written again from arch/x86/kvm/x86.c of Linux 6.1, 6.12
// and 7.2: what every control and guest action does to TSC offsets, generations, masterclock and
// pages, to the bit and in the kernel's order. It is deterministic: time comes from its Platform,
// what differs between kernels from its KernelRules, and the caller says who does what when.
// Deliberately absent: memory, interrupts, device state, Hyper-V's and Xen's pages.
//
// Every ioctl of a vCPU is vcpu_load(), the action, vcpu_put(), as in the kernel. Most leave
// requests for the vCPU's next entry: enter() carries them out. A guest in guest mode whose entry
// another vCPU's masterclock update needs is kicked out: in_guest() says so, and it enters again.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "continuo/abi/clock_pairing.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/abi/pvclock.h"
#include "continuo/model/kernel_rules.h"
#include "continuo/model/platform.h"
#include "continuo/state/error.h"
#include "continuo/time/pvclock_scale.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::model {

using state::Result;
using state::Status;
using time::PvclockScale;
using time::TscMap;

/// What waits for a vCPU's next entry; a set of bits (KVM_REQ_*).
enum Request : std::uint8_t {
    kMasterclockUpdate = 1,
    kGlobalClockUpdate = 2,
    kClockUpdate = 4,
    kTscStateWrite = 8,  ///< by the proposal of S3.1 alone
};
using Requests = std::uint8_t;

/// A publication of one vCPU's page, store by store (kvm_setup_guest_pvclock()): what a reader on
/// another CPU can come between. The order is the program's; between 0 and 1, and between 5 and 6,
/// stands a write barrier, among 2 to 5 none.
class PageUpdate {
  public:
    static constexpr unsigned kSteps = 7;

    /// 0: the version becomes odd. 1: GUEST_STOPPED is looked at, to be kept (no store). 2 to 5:
    /// the page's four 8-byte words, the odd version with them. 6: the version becomes even.
    void carry_out(unsigned step, abi::pvclock_vcpu_time_info& page);
    /// All steps at once.
    void carry_out_all(abi::pvclock_vcpu_time_info& page) const;
    /// What is to be published; version and a GUEST_STOPPED that is kept come with the steps.
    abi::pvclock_vcpu_time_info& fresh() { return fresh_; }
    const abi::pvclock_vcpu_time_info& fresh() const { return fresh_; }

  private:
    abi::pvclock_vcpu_time_info fresh_{};
};

inline constexpr PvclockScale kNoScale = *PvclockScale::make(0, 0);

/// KVM_GET_TSC_STATE and KVM_SET_TSC_STATE, as proposed (S3.1): a vCPU's counter at an instant of
/// the host's REALTIME.
struct TscState {
    static constexpr std::uint32_t kTimestampValid = 1;
    static constexpr std::uint32_t kTscAdjustValid = 2;
    std::uint32_t flags = 0;
    std::uint64_t nsec = 0;  ///< since 1970-01-01 UTC; 64 bits reach to the year 2554
    std::uint64_t tsc = 0;   ///< guest ticks at nsec
    std::uint64_t tsc_adjust = 0;
    friend bool operator==(const TscState&, const TscState&) = default;
};

/// One vCPU's clocks as KVM keeps them. Names are the kernel's where it has one.
struct KvmVcpu {
    TscMap map{0};                        ///< l1_tsc_scaling_ratio and l1_tsc_offset
    bool has_ratio = false;               ///< l1_tsc_scaling_ratio was ever written; else it is 0
    std::uint32_t user_khz = 0;           ///< virtual_tsc_khz
    PvclockScale ns_to_ticks = kNoScale;  ///< virtual_tsc_mult, virtual_tsc_shift
    std::uint64_t generation = 0;         ///< this_tsc_generation
    std::uint64_t this_tsc_nsec = 0;
    std::uint64_t this_tsc_write = 0;
    std::uint64_t last_guest_tsc = 0;
    std::uint64_t last_host_tsc = 0;
    std::uint64_t tsc_offset_adjustment = 0;  ///< host ticks, put in at the next load
    std::uint64_t tsc_adjust = 0;             ///< IA32_TSC_ADJUST
    std::uint64_t system_time_msr = 0;
    abi::pvclock_vcpu_time_info page{};  ///< guest memory at that address
    std::uint32_t hw_khz = 0;            ///< hw_tsc_khz: what page_scale was computed for
    PvclockScale page_scale = kNoScale;
    int cpu = -1;             ///< where it was loaded last; -1: never
    unsigned thread_cpu = 0;  ///< where its thread runs
    int thread = -1;          ///< the thread of its last KVM_RUN; -1: none
    Requests requests = 0;
    bool tsc_catchup = false;
    bool tsc_always_catchup = false;
    bool set_guest_stopped = false;  ///< pvclock_set_guest_stopped_request
    bool in_guest = false;
    bool loaded = false;
    TscState tsc_state;            ///< to be put in force by the next entry
    PageUpdate update;             ///< being published, by step()
    std::uint8_t update_step = 0;  ///< its next step; 0: none is

    /// kvm_scale_tsc(): what KVM itself makes of the host's counter for this vCPU.
    std::uint64_t scaled(std::uint64_t host) const { return has_ratio ? map.wrap_scale(host) : 0; }
    /// kvm_read_l1_tsc(): the vCPU's counter as KVM computes it.
    std::uint64_t l1_tsc(std::uint64_t host) const { return scaled(host) + map.offset(); }
    bool page_active() const { return abi::system_time_enabled(system_time_msr); }
};

/// The VM's own: the masterclock and the generations.
struct KvmArch {
    bool use_master_clock = false;
    bool guest_has_master_clock = false;  ///< kvm_guest_has_master_clock, which is the host's
    bool backwards_tsc_observed = false;
    bool boot_vcpu_runs_old_kvmclock = false;
    bool user_set_tsc = false;
    bool cpuid_tsc_adjust = true;
    bool update_in_progress = false;  ///< a masterclock update between its steps: none may enter
    bool sampled = false;             ///< and it has its sample
    unsigned updater = 0;             ///< the vCPU that carries it out
    std::uint64_t master_cycle_now = 0;
    std::int64_t master_kernel_ns = 0;
    std::int64_t kvmclock_offset = 0;
    std::uint64_t cur_tsc_generation = 0;
    std::uint64_t cur_tsc_nsec = 0;
    std::uint64_t cur_tsc_write = 0;
    std::uint64_t cur_tsc_offset = 0;
    std::uint64_t last_tsc_nsec = 0;
    std::uint64_t last_tsc_write = 0;
    std::uint64_t last_tsc_offset = 0;
    std::uint32_t last_tsc_khz = 0;
    std::uint32_t nr_vcpus_matched_tsc = 0;  ///< without the one that they match
    std::uint32_t default_tsc_khz = 0;
    std::uint64_t wall_clock_msr = 0;
    abi::pvclock_wall_clock wall_clock{};        ///< guest memory at that address
    std::optional<std::int64_t> update_work_ns;  ///< kvmclock_update_work is due, on base_ns' clock
    std::optional<std::int64_t> sync_work_ns;    ///< kvmclock_sync_work
    std::optional<std::int64_t> ratelimit_begin_ns;  ///< kvmclock_update_rs
    std::uint32_t ratelimit_left = 0;
};

/// What step() did.
enum class Step : std::uint8_t {
    kTscState,           ///< set_tsc_state()'s value is in force
    kMasterclockBegin,   ///< every vCPU is out of guest mode, and none gets in
    kMasterclockSample,  ///< pvclock_update_vm_gtod_copy()
    kMasterclockEnd,     ///< the pages' updates are requested, entries are let in again
    kGlobalClockUpdate,
    kPageBegin,  ///< kvm_guest_time_update() has computed the page, and its version is odd
    kPageStep,   ///< one more step of the page's publication
    kEntered,    ///< in guest mode
    kBlocked,    ///< another vCPU's masterclock update is in progress, or there is no kHz
};

/// One VM. Copies are independent but share the Platform until rebind(). No heap. A vCPU's index
/// out of range is the caller's bug (CONTINUO_CHECK).
class KvmVm {
  public:
    static constexpr unsigned kVcpusMax = 8;

    /// Creates the VM and so many vCPUs, one after the other (kvm_arch_init_vm(),
    /// kvm_arch_vcpu_create(), _postcreate()). Lifetime: `platform` outlives the VM, or is replaced
    /// by rebind(). Domain: vcpus <= kVcpusMax.
    KvmVm(Platform& platform, const KernelRules& rules, unsigned vcpus);

    // VM ioctls, on the VMM's CPU.

    /// KVM_CREATE_VCPU: the new one's index. It joins the generation and takes its offset, however
    /// late. kTooLarge beyond kVcpusMax.
    Result<unsigned> create_vcpu();
    /// KVM_GET_CLOCK.
    abi::kvm_clock_data get_clock();
    /// KVM_SET_CLOCK. kKernel, EINVAL: a flag that the kernel does not know.
    Status set_clock(const abi::kvm_clock_data& data);
    /// KVM_SET_TSC_KHZ of the VM: the frequency of vCPUs to come; 0: the host's.
    Status set_vm_tsc_khz(std::uint32_t khz);
    std::uint32_t vm_tsc_khz() const { return arch_.default_tsc_khz; }

    // vCPU ioctls.

    /// KVM_SET_TSC_KHZ; 0: the host's. kKernel, EINVAL where it cannot be had, and then tsc_khz()
    /// has changed all the same (tsc_khz_refused_sticks).
    Status set_tsc_khz(unsigned vcpu, std::uint32_t khz);
    /// KVM_GET_TSC_KHZ.
    std::uint32_t tsc_khz(unsigned vcpu) { return ioctl(vcpu).user_khz; }
    /// KVM_VCPU_TSC_OFFSET. kUnsupported where the kernel has no such attribute.
    Result<std::uint64_t> tsc_offset(unsigned vcpu);
    Status set_tsc_offset(unsigned vcpu, std::uint64_t offset);
    /// KVM_SET_MSRS, KVM_GET_MSRS: TSC, TSC_ADJUST, system time and wall clock, old and new.
    /// kUnsupported for any other.
    Status host_write_msr(unsigned vcpu, std::uint32_t msr, std::uint64_t value);
    Result<std::uint64_t> host_read_msr(unsigned vcpu, std::uint32_t msr);
    /// KVM_KVMCLOCK_CTRL. kKernel, EINVAL: the guest has no page.
    Status kvmclock_ctrl(unsigned vcpu);

    // Proposals (kvm_proposals.cc): kUnsupported unless the rules have them.

    /// KVM_GET_TSC_STATE: REALTIME and the vCPU's counter at one reading of the host's.
    Result<TscState> tsc_state(unsigned vcpu);
    /// KVM_SET_TSC_STATE, taking effect at the vCPU's next entry and not before: there the counter
    /// becomes `tsc` and, with a timestamp, what REALTIME has moved since `nsec`, forwards or
    /// backwards, in guest ticks rounded down. TSC_ADJUST is stored and moves nothing; nothing is
    /// synchronised; this vCPU's page is written with it.
    Status set_tsc_state(unsigned vcpu, const TscState& state);
    /// KVM_GET_CLOCK_GUEST: the line of the vCPU's page, version 0, whether the guest has one or
    /// not. kKernel, EINVAL: no masterclock.
    Result<abi::pvclock_vcpu_time_info> clock_guest(unsigned vcpu);
    /// KVM_SET_CLOCK_GUEST: kvmclock of the whole VM becomes what this page says at this vCPU's
    /// counter, at a new sample. kKernel: EINVAL for a damaged page and without a masterclock,
    /// ERANGE where its frequency is more than 1 kHz off this vCPU's.
    Status set_clock_guest(unsigned vcpu, const abi::pvclock_vcpu_time_info& page);
    /// KVM_VCPU_TSC_SCALE, read-only.
    Result<abi::kvm_vcpu_tsc_scale> tsc_scale(unsigned vcpu);

    // Entry and exit.

    /// KVM_RUN up to guest mode: vcpu_load(), the requests in vcpu_enter_guest()'s order, and in.
    /// False where the CPU has no kHz (it goes offline): the vCPU is not in guest mode then.
    bool enter(unsigned vcpu);
    /// The same without entering, as a KVM_RUN that a signal ends (ClockMachine's settle_vcpu()).
    void settle(unsigned vcpu);
    /// enter() in the kernel's steps, one a call, for who wants to come between them. While one is
    /// in a masterclock update, no other call may start one (the kernel's would wait for
    /// tsc_write_lock): CONTINUO_CHECK.
    Step step(unsigned vcpu);
    /// The next entry is by this thread. True: KVM_RUN waits for an RCU grace period first.
    bool run_on_thread(unsigned vcpu, int thread);
    /// Guest mode ends (any exit), and the vCPU's thread goes back to user space.
    void exit(unsigned vcpu);
    bool in_guest(unsigned vcpu) const { return at(vcpu).in_guest; }

    // The guest. What a guest does it does in guest mode; nobody checks. Writes of MSRs and
    // hypercalls are exits: enter() comes before the guest goes on.

    /// RDTSC in the guest.
    std::uint64_t guest_tsc(unsigned vcpu);
    /// WRMSR: TSC and TSC_ADJUST move the offset and each other, system time and wall clock.
    Status guest_write_msr(unsigned vcpu, std::uint32_t msr, std::uint64_t value);
    Result<std::uint64_t> guest_read_msr(unsigned vcpu, std::uint32_t msr);
    /// The 32 bytes at the address in the system-time MSR. The guest may write them (it clears
    /// GUEST_STOPPED).
    abi::pvclock_vcpu_time_info& page(unsigned vcpu) { return at(vcpu).page; }
    const abi::pvclock_vcpu_time_info& page(unsigned vcpu) const { return at(vcpu).page; }
    abi::pvclock_wall_clock& wall_clock() { return arch_.wall_clock; }
    /// KVM_HC_CLOCK_PAIRING. nullopt: KVM_EOPNOTSUPP, no TSC clocksource or a counter that catches
    /// up.
    std::optional<abi::kvm_clock_pairing> clock_pairing(unsigned vcpu);
    /// INIT (kvm_vcpu_reset()): the page is switched off; the counters go on.
    void reset_vcpu(unsigned vcpu);
    /// Whether the guest's CPUID has TSC_ADJUST; without it writes of the MSR, the host's too, are
    /// taken and dropped. From the start it has.
    void set_cpuid_tsc_adjust(bool has) { arch_.cpuid_tsc_adjust = has; }

    // The host.

    /// The timekeeper's notification (pvclock_gtod_notify()): the masterclock is to go where the
    /// clocksource is no longer TSC-based. Nothing tells KVM that it may come back.
    void clocksource_changed();
    /// The frequency of a CPU changed, and with it Platform::cpu_khz() (no
    /// X86_FEATURE_CONSTANT_TSC, kvmclock_cpufreq_notifier()): the pages of its vCPUs are stale. Of
    /// a faster CPU they leave guest mode, of a slower one they learn it at their next exit.
    void cpu_frequency_changed(unsigned cpu, bool faster);
    /// The vCPU's thread goes on on another CPU; a vCPU in guest mode leaves it and enters again.
    void vcpu_migrated(unsigned vcpu, unsigned cpu);
    /// The thread that makes the VM's ioctls.
    void vmm_migrated(unsigned cpu) { vmm_cpu_ = cpu; }
    unsigned vmm_cpu() const { return vmm_cpu_; }
    /// The host is about to suspend: every guest that has a page is told (GUEST_STOPPED), then all
    /// vCPUs leave their CPUs.
    void host_suspended();
    /// A CPU comes up again (kvm_arch_enable_virtualization_cpu()): a counter that went backwards
    /// is made up for at the next load, and costs the masterclock for good.
    void host_resumed(unsigned cpu = 0);
    /// When a work item of this VM is due, on base_ns()'s clock.
    std::optional<std::int64_t> next_work_ns() const;
    /// Runs what is due: pages' updates are requested, and the vCPUs kicked.
    void run_work(std::int64_t now_ns);

    // Truth and inspection: nothing here takes time or changes anything.

    unsigned vcpu_count() const { return count_; }
    const KernelRules& rules() const { return rules_; }
    const TscMap& tsc_map(unsigned vcpu) const { return at(vcpu).map; }
    const KvmVcpu& vcpu(unsigned vcpu) const { return at(vcpu); }
    const KvmArch& arch() const { return arch_; }
    bool masterclock() const { return arch_.use_master_clock; }
    std::uint64_t generation() const { return arch_.cur_tsc_generation; }
    Requests pending(unsigned vcpu) const { return at(vcpu).requests; }
    Platform& platform() { return *platform_; }
    /// Goes on on this platform: for a copy that has a world of its own.
    void rebind(Platform& platform) { platform_ = &platform; }

  private:
    KvmVcpu& at(unsigned vcpu) {
        CONTINUO_CHECK(vcpu < count_);
        return vcpus_[vcpu];
    }
    const KvmVcpu& at(unsigned vcpu) const {
        CONTINUO_CHECK(vcpu < count_);
        return vcpus_[vcpu];
    }
    /// A vCPU ioctl that reads: load, put.
    KvmVcpu& ioctl(unsigned vcpu);

    // kvm_tsc.cc
    bool set_khz(KvmVcpu& vcpu, std::uint32_t khz);
    std::optional<TscMap> scaled_map(std::uint32_t khz);
    std::uint32_t khz_max();
    void write_offset(KvmVcpu& vcpu, std::uint64_t offset);
    std::uint64_t offset_for(const KvmVcpu& vcpu, std::uint64_t target);
    std::uint64_t read_tsc(const KvmVcpu& vcpu);
    bool synchronizing(const KvmVcpu& vcpu, std::uint64_t value, std::uint64_t elapsed) const;
    void synchronize(KvmVcpu& vcpu, std::optional<std::uint64_t> user_value);
    struct TscWrite {
        std::uint64_t offset;
        std::uint64_t tsc;
        std::uint64_t ns;
        bool matched;
    };
    void join_generation(KvmVcpu& vcpu, const TscWrite& write);
    void track_matching(KvmVcpu& vcpu, bool new_generation);
    bool all_matched() const { return arch_.nr_vcpus_matched_tsc + 1 == count_; }
    void guest_write_tsc(KvmVcpu& vcpu, std::uint64_t value);

    // kvm_vm.cc
    void create();
    void load(KvmVcpu& vcpu);
    void load_elsewhere(KvmVcpu& vcpu);
    void put(KvmVcpu& vcpu);
    bool ratelimit(const KvmVcpu& vcpu);
    bool carry_out_requests(KvmVcpu& vcpu);
    void global_clock_update(KvmVcpu& vcpu);
    void request_all_pages();
    Step begin_page(KvmVcpu& vcpu);
    Step step_page(KvmVcpu& vcpu);
    void leave_guest(KvmVcpu& vcpu);

    // kvm_pvclock.cc
    std::uint32_t cpu_khz(unsigned cpu);
    void sample_masterclock(unsigned cpu);
    void begin_update();
    void end_update();
    void update_masterclock(unsigned cpu);
    bool time_update(KvmVcpu& vcpu);
    std::uint64_t caught_up(KvmVcpu& vcpu, std::int64_t kernel_ns, std::uint64_t timestamp);
    static bool has_page(const KvmVcpu& vcpu);
    static void tell_stopped(KvmVcpu& vcpu);
    bool publish(KvmVcpu& vcpu);
    /// kvmclock when the kernel's base clock says kernel_ns; wraps, as a host may set it anywhere.
    std::uint64_t kvmclock_at(std::int64_t kernel_ns) const {
        return static_cast<std::uint64_t>(kernel_ns) +
               static_cast<std::uint64_t>(arch_.kvmclock_offset);
    }
    std::uint64_t masterclock_at(std::uint64_t tsc, std::uint32_t khz) const;
    abi::kvm_clock_data clock_on(unsigned cpu);
    std::uint64_t wall_clock_epoch(unsigned cpu);
    void write_wall_clock(KvmVcpu& vcpu, std::uint64_t msr);
    void write_system_time(KvmVcpu& vcpu, std::uint64_t msr, bool old_msr, bool by_host);
    static bool set_guest_stopped(KvmVcpu& vcpu);
    // kvm_proposals.cc
    void apply_tsc_state(KvmVcpu& vcpu);
    std::int64_t realtime_at(const KvmVcpu& vcpu, std::uint64_t tsc);
    bool describes(const KvmVcpu& vcpu, const abi::pvclock_vcpu_time_info& page);
    void count_from_zero(const KvmVcpu& vcpu);

    Status write_msr(KvmVcpu& vcpu, std::uint32_t msr, std::uint64_t value, bool by_host);
    Result<std::uint64_t> read_msr(KvmVcpu& vcpu, std::uint32_t msr);
    unsigned index_of(const KvmVcpu& vcpu) const {
        return static_cast<unsigned>(&vcpu - vcpus_.data());
    }

    Platform* platform_;
    KernelRules rules_;
    KvmArch arch_;
    std::array<KvmVcpu, kVcpusMax> vcpus_;
    unsigned count_ = 0;
    unsigned vmm_cpu_ = 0;
};

}  // namespace continuo::model
