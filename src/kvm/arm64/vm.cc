#include "continuo/kvm/vm.h"

#include <cerrno>

#include "continuo/abi/arm64.h"
#include "continuo/kvm/counter.h"

namespace continuo::kvm {

namespace {

/// Type 0 means 40 bits, which is more than some processors have.
Result<unsigned> ipa_bits(const System& system, unsigned wanted) {
    constexpr unsigned kDefault = 40;
    if (wanted != 0) return wanted;
    return system.ipa_bits_max().map([](unsigned most) { return most < kDefault ? most : 0U; });
}

}  // namespace

Result<Vm> Vm::create(const System& system, VmOptions options) {
    const auto bits = ipa_bits(system, options.ipa_bits);
    if (!bits) return tl::unexpected(bits.error());
    Vm vm;
    if (auto created = vm.create_vm(system, KVM_VM_TYPE_ARM_IPA_SIZE(*bits)); !created)
        return tl::unexpected(created.error());
    if (options.counter == CounterOwner::kUs) vm.own_counter();
    return vm;
}

void Vm::own_counter() {
    const auto set = set_counter_offset(host_counter().raw());
    if (!set) why_no_offset_ = set.error();
}

Result<kvm_vcpu_init> Vm::preferred_target() const {
    kvm_vcpu_init target{};
    return call(KVM_ARM_PREFERRED_TARGET, &target, "KVM_ARM_PREFERRED_TARGET").map([&] {
        return target;
    });
}

Status Vm::set_interrupt_line(std::uint32_t intid, bool on) {
    kvm_irq_level line{};
    line.irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | intid;
    line.level = on ? 1 : 0;
    return call(KVM_IRQ_LINE, &line, "KVM_IRQ_LINE");
}

Status Vm::set_counter_offset(std::uint64_t offset) {
    abi::kvm_arm_counter_offset request{offset, 0};
    auto set = call(abi::kKVM_ARM_SET_COUNTER_OFFSET, &request, "KVM_ARM_SET_COUNTER_OFFSET");
    if (set) {
        counter_offset_ = offset;
        return {};
    }
    state::Error& error = set.error();
    if (error.sys_errno == EBUSY) {
        error.code = state::ErrorCode::kBusy;
        error.what = "a vCPU is running or being created";
        error.advice = "stop all vCPUs before the counter is moved";
        return set;
    }
    error.code = state::ErrorCode::kUnsupported;
    const auto offered = check_extension(abi::kKVM_CAP_COUNTER_OFFSET);
    if (offered && *offered != 0) {
        error.what = "the kernel has the call and refuses it, as a protected hypervisor does";
        error.advice = "boot the host without kvm-arm.mode=protected, or go by value";
        return set;
    }
    error.what = "this kernel does not have the call (Linux 6.4 has it)";
    error.advice = "go by value";
    return set;
}

}  // namespace continuo::kvm
