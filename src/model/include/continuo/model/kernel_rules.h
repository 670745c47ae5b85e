// What differs between kernels, and between the processors that they run on, as switches. Nothing
// else in the model asks for a version: KvmVm does what its rules say. Releases are those of
// docs/kernel-facts.md and of the sources named there; where a change is known to lie between two
// kernels that were read, and not where, the comment says so.
#pragma once

#include <cstdint>
#include <optional>

#include "continuo/time/tsc_scale.h"

namespace continuo::model {

struct KernelRules {
    // Synchronisation of the vCPUs' TSCs (kvm_synchronize_tsc(), kvm_track_tsc_matching()).

    /// From 6.7: a host write within a second of the expected value counts as one that
    /// synchronises only once user space has written a TSC (user_set_tsc). Before, any does.
    bool user_write_arms_sync = true;
    /// From 6.7: a write that starts no new generation and toggles no masterclock leaves no
    /// request. Before, every one does while there is a masterclock to be had.
    bool same_offset_is_noop = true;
    /// From 5.16: KVM_VCPU_TSC_OFFSET.
    bool has_offset_attribute = true;

    // kvmclock.

    /// From 5.16: KVM_GET_CLOCK gives host_tsc and realtime, KVM_SET_CLOCK takes flags.
    bool has_clock_triple = true;
    /// Up to 6.1 KVM computes with the kHz that the CPU had when it was loaded (cpu_tsc_khz);
    /// since (between 6.1 and 6.12) with tsc_khz itself where the TSC is constant.
    bool cpu_khz_at_load = false;
    /// Wall clock and kvmclock of the wall-clock page come from one reading of the TSC
    /// (kvm_get_wall_clock_epoch(); between 6.1 and 6.12). Before, from two.
    bool wall_clock_by_one_read = true;
    /// KVM_REQ_GLOBAL_CLOCK_UPDATE has the other vCPUs' pages written 100 ms later by a work item,
    /// which also runs every 300 s (up to 6.18, as seen). Since (by 7.2), at their next entry,
    /// rate-limited in vcpu_load() to 10 a second, and there is no periodic one.
    bool global_update_by_work = true;
    /// An effective frequency that is truncated to 0 kHz counts as 1 (by 7.2).
    bool at_least_one_khz = false;

    // Controls.

    /// From 3.8: IA32_TSC_ADJUST.
    bool has_tsc_adjust = true;
    /// From 3.4: KVM_KVMCLOCK_CTRL.
    bool has_kvmclock_ctrl = true;
    /// KVM_SET_TSC_KHZ of a VM that has vCPUs is taken for those to come (up to 6.12 at least); by
    /// 7.2 it is refused.
    bool vm_khz_after_vcpus = true;
    /// Before 6.13 a KVM_RUN on another thread than the vCPU's last waits for an RCU grace period.
    bool thread_change_waits = false;
    /// No release: a KVM that is not Linux's own, which takes TSC offsets and values and leaves the
    /// guest's TSC the host's (kvm-pvm).
    bool offset_stays_zero = false;

    // Processor and module parameters.

    std::uint32_t tolerance_ppm = time::kTscTolerancePpm;  ///< tsc_tolerance_ppm
    /// 48 (VMX), 32 (SVM), or none: the processor does not scale.
    std::optional<int> scaling_frac_bits;

    // Proposals, in no kernel: off.

    bool precise_tuple = false;         ///< S3.1: nanoseconds, TSC, TSC_ADJUST of one instant
    bool host_access_quirk = false;     ///< S3.2: host writes mean what they say
    bool clock_guest_handover = false;  ///< KVM_GET_CLOCK_GUEST, KVM_SET_CLOCK_GUEST
    bool tsc_scale_attribute = false;   ///< KVM_VCPU_TSC_SCALE
    bool pvclock_vclock = false;        ///< S0.3: an L1 on kvmclock is a stable source for its L2
    /// S0.4: a change of the clocksource, either way, has every vCPU leave guest mode and the
    /// masterclock sampled before it is back in.
    bool change_notifier = false;
    bool counts_from_zero = false;  ///< S4.2: kPVCLOCK_COUNTS_FROM_ZERO

    /// A release of Linux on a processor that does not scale. Of a release between two that were
    /// read the newer one's rule is taken where the change's release is not known.
    static KernelRules linux(unsigned major, unsigned minor);
    /// The same on a processor that scales.
    KernelRules with_scaling(int frac_bits) const {
        KernelRules rules = *this;
        rules.scaling_frac_bits = frac_bits;
        return rules;
    }

    friend bool operator==(const KernelRules&, const KernelRules&) = default;
};

}  // namespace continuo::model
