// For tests: a host and a VM of two vCPUs on it, whose guest uses kvmclock.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "continuo/model/kvm_vm.h"

namespace continuo::model {

inline constexpr std::uint64_t kNs = 1'000'000'000;
inline constexpr std::uint64_t k2Ghz = 2 * kNs;  ///< ticks of a second

/// Lets each vCPU in that is out, until all are.
inline void enter_all(KvmVm& vm) {
    for (int pass = 0; pass < 3; ++pass)
        for (unsigned i = 0; i < vm.vcpu_count(); ++i)
            if (!vm.in_guest(i)) vm.enter(i);
}

/// The guest switches kvmclock on, on each vCPU.
inline void enable_pages(KvmVm& vm) {
    for (unsigned i = 0; i < vm.vcpu_count(); ++i)
        EXPECT_TRUE(vm.guest_write_msr(i, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x1000 + 64 * i + 1));
}

/// A host, 2 GHz unless told otherwise (mult and shift of its clocks are then exactly half a ns a
/// tick), and a VM of two vCPUs that was made at counter 1000 s; guest: its kHz, 0 for the host's.
struct KvmBed {
    explicit KvmBed(const KernelRules& with, std::uint32_t khz = 2'000'000, std::uint32_t guest = 0)
        : host{khz} {
        host.counter = 1000 * std::uint64_t{khz} * 1000;
        vm.emplace(host, with, 0);
        if (guest != 0) {
            EXPECT_TRUE(vm->set_vm_tsc_khz(guest));
        }
        for (unsigned i = 0; i < 2; ++i)
            EXPECT_TRUE(vm->create_vcpu());
        enable_pages(*vm);
    }
    KvmBed(const KvmBed&) = delete;
    KvmBed& operator=(const KvmBed&) = delete;

    void enter_all() { model::enter_all(*vm); }
    void exit_all() {
        for (unsigned i = 0; i < vm->vcpu_count(); ++i)
            vm->exit(i);
    }
    void sleep_s(std::uint64_t seconds) { host.counter += seconds * host.khz * 1000; }
    /// kvmclock by a vCPU's page at a counter value of its guest.
    std::uint64_t clock_at(unsigned vcpu, std::uint64_t tsc) const {
        const auto line = abi::pvclock_line(vm->page(vcpu));
        return line->at(time::Count<time::GuestCounter>::from_raw(tsc)).raw();
    }
    /// vCPU 1's offset less vCPU 0's.
    std::int64_t apart() const {
        return static_cast<std::int64_t>(vm->tsc_map(1).offset() - vm->tsc_map(0).offset());
    }

    HostPlatform host;
    std::optional<KvmVm> vm;
};

}  // namespace continuo::model
