// The model under the same acts as the kernel: KvmVm, the guest memory that its pages lie in, and
// the order of entry, act and exit that a KVM_RUN has.
#pragma once

#include <array>
#include <functional>

#include "continuo/model/kvm_vm.h"
#include "subject.h"

namespace continuo::differential {

/// What an act is made of; each has an instant of its own.
enum class Phase : std::uint8_t {
    kEnter,        ///< pending requests are carried out
    kDetour,       ///< once more, after an interrupt and before the guest's act
    kAct,          ///< the control itself, or what the guest does
    kEnterAgain,   ///< after an exit that the act itself caused
    kDetourAfter,  ///< once more, after an interrupt
};
/// Told before each phase: whoever keeps the time may set it.
using Moment = std::function<void(Phase)>;

/// Exits for interrupts, each with a new entry.
struct Detours {
    unsigned before = 0;  ///< the guest's act
    unsigned after = 0;
};

struct Answer {
    int error = 0;
    std::uint64_t value = 0;
    abi::kvm_clock_pairing pairing{};
};

class ModelVm {
  public:
    /// `system_time_write_stores`: HostFacts'.
    ModelVm(model::Platform& platform, const model::KernelRules& rules,
            bool system_time_write_stores = false)
        : kvm_{platform, rules, 0}, system_time_write_stores_{system_time_write_stores} {}

    Answer perform(const Act& act, const Moment& moment, const Detours& detours = {});
    /// Without KVM_GET_CLOCK, which takes time.
    View look();
    /// The guest's memory at page_gpa(vcpu, other).
    abi::pvclock_vcpu_time_info& page(unsigned vcpu, bool other);
    model::KvmVm& kvm() { return kvm_; }
    const model::KvmVm& kvm() const { return kvm_; }

  private:
    Answer guest_acts(const Act& act, const Moment& moment, const Detours& detours);
    void move_to_cpu(unsigned cpu);
    void leave_and_enter(unsigned vcpu, const Moment& moment, Phase phase);
    /// A write of an MSR; guest memory keeps what it had at both addresses of a moved page.
    int write_msr(const Act& act, bool by_host);
    /// nullptr: at neither of the vCPU's addresses.
    abi::pvclock_vcpu_time_info* memory_at(unsigned vcpu, std::uint64_t msr);

    model::KvmVm kvm_;
    bool system_time_write_stores_;
    /// What lies where no page is in use now; each vCPU's two addresses.
    std::array<std::array<abi::pvclock_vcpu_time_info, 2>, kVcpusMax> memory_{};
};

}  // namespace continuo::differential
