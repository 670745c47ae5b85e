// For tests: L0, an L1 with its kernel, and an L2.
#pragma once

#include "continuo/model/guest_clock.h"
#include "continuo/model/guest_platform.h"
#include "continuo/model/nested.h"
#include "kvm_bed.h"

namespace continuo::model {

inline KernelRules scaling_rules() {
    return KernelRules::linux(6, 12).with_scaling(time::kVmxFracBits);
}

/// With the proposals of thread 000.
inline KernelRules proposed_rules() {
    KernelRules with = scaling_rules();
    with.pvclock_vclock = true;
    with.change_notifier = true;
    return with;
}

inline time::Count<time::HostCounter> host_count(std::uint64_t raw) {
    return time::Count<time::HostCounter>::from_raw(raw);
}

/// L0, an L1 of two vCPUs whose kernel keeps time by `clocksource`, and an L2 of two vCPUs, vCPU i
/// on L1's vCPU i. L1 is made at counter 1000 s, its kernel boots 10 s later, L2 is made 10 s after
/// that.
struct Nest : KvmBed {
    Nest(GuestClocksource clocksource, const KernelRules& with, std::uint32_t khz = 2'000'000,
         std::uint32_t l1_khz = 0, std::uint32_t l2_khz = 0)
        : KvmBed{with, khz, l1_khz} {
        enter_all();
        sleep_s(10);
        kernel.emplace(*vm, with, clocksource);
        sleep_s(10);
        l2.emplace(*kernel, with, 0);
        if (l2_khz != 0) {
            EXPECT_TRUE(l2->set_vm_tsc_khz(l2_khz));
        }
        for (unsigned i = 0; i < 2; ++i) {
            EXPECT_TRUE(l2->create_vcpu());
            l2->vcpu_migrated(i, i);
        }
        enable_pages(*l2);
        kernel->attach(*l2);
        run_l2();
    }
    /// L2 on all of its vCPUs, through every level's entry.
    void run_l2() {
        for (int pass = 0; pass < 3; ++pass)
            for (unsigned i = 0; i < 2; ++i)
                if (!vm->in_guest(i) || !l2->in_guest(i)) kernel->enter(*l2, i);
    }
    bool l2_is_stable() const { return (l2->page(0).flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0; }
    /// What RDTSC in L2 gives: the processor has both maps in one.
    std::uint64_t rdtsc(unsigned vcpu) const {
        return combined_map(vm->tsc_map(vcpu), l2->tsc_map(vcpu), time::kVmxFracBits)
            .at(host_count(host.counter))
            .raw();
    }
    std::optional<GuestPlatform> kernel;
    std::optional<KvmVm> l2;
};

}  // namespace continuo::model
