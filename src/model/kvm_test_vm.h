// A VM on a host of plain integers, for the tests of the model.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "continuo/model/kvm_vm.h"

namespace continuo::model {

inline const KernelRules kLinux61 = KernelRules::linux(6, 1);
inline const KernelRules kLinux612 = KernelRules::linux(6, 12);
inline const KernelRules kLinux72 = KernelRules::linux(7, 2);

/// 2 ticks a ns, so that sums stay readable; kernel clocks of this frequency are exact.
inline constexpr std::uint32_t kBedKhz = 2'000'000;
inline constexpr std::uint64_t kBedSecond = std::uint64_t{kBedKhz} * 1000;
inline constexpr std::uint64_t kBedNs = 2;

struct KvmTestVm {
    explicit KvmTestVm(const KernelRules& rules = kLinux612, unsigned vcpus = 2,
                       std::uint32_t khz = kBedKhz)
        : host{khz}, vm{started(), rules, vcpus} {}

    KvmTestVm(const KvmTestVm&) = delete;
    KvmTestVm& operator=(const KvmTestVm&) = delete;

    /// As a guest does at boot.
    void enable_pages() {
        for (unsigned i = 0; i < vm.vcpu_count(); ++i)
            EXPECT_TRUE(vm.guest_write_msr(i, abi::kMSR_KVM_SYSTEM_TIME_NEW, (64 * i) | 1));
    }
    /// All into guest mode, and back in who was kicked out by another's masterclock update.
    void enter_all() {
        bool kicked = true;
        for (int pass = 0; kicked && pass < 8; ++pass) {
            kicked = false;
            for (unsigned i = 0; i < vm.vcpu_count(); ++i) {
                kicked = kicked || !vm.in_guest(i);
                if (!vm.in_guest(i)) vm.enter(i);
            }
        }
    }
    void exit_all() {
        for (unsigned i = 0; i < vm.vcpu_count(); ++i)
            vm.exit(i);
    }
    void settle_all() {
        for (unsigned i = 0; i < vm.vcpu_count(); ++i)
            vm.settle(i);
    }
    void boot() {
        enable_pages();
        enter_all();
    }
    void write_tsc(unsigned vcpu, std::uint64_t value) {
        EXPECT_TRUE(vm.host_write_msr(vcpu, abi::kMSR_IA32_TSC, value));
    }
    void set_clock(std::uint64_t clock, std::uint32_t flags = 0, std::uint64_t realtime = 0) {
        abi::kvm_clock_data data{};
        data.clock = clock;
        data.flags = flags;
        data.realtime = realtime;
        EXPECT_TRUE(vm.set_clock(data));
    }
    std::uint64_t offset(unsigned vcpu) const { return vm.tsc_map(vcpu).offset(); }
    /// kvmclock as the guest computes it on a vCPU now.
    std::uint64_t guest_clock(unsigned vcpu) {
        const auto line = abi::pvclock_line(vm.page(vcpu));
        return line->at(time::Count<time::GuestCounter>::from_raw(vm.guest_tsc(vcpu))).raw();
    }

    HostPlatform host;
    KvmVm vm;

  private:
    HostPlatform& started() {
        host.counter = 1000 * kBedSecond;
        return host;
    }
};

}  // namespace continuo::model
