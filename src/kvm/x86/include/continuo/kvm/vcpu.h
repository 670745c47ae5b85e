// One vCPU on x86-64: every piece of its state as the kernel gives it.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "continuo/abi/kvm_x86.h"
#include "continuo/kvm/vcpu_core.h"
#include "continuo/kvm/vm.h"

namespace continuo::kvm {

/// Up to 64 MSRs for one KVM_GET_MSRS or KVM_SET_MSRS, on the stack; laid out as the kernel reads
/// it.
class MsrBatch {
  public:
    static constexpr std::uint32_t kCapacity = 64;

    /// False where the batch is full.
    bool add(std::uint32_t index, std::uint64_t data = 0);
    void clear() { msrs_.head.nmsrs = 0; }
    std::uint32_t size() const { return msrs_.head.nmsrs; }
    bool full() const { return size() == kCapacity; }
    std::uint32_t index(std::uint32_t i) const { return msrs_.entries[i].index; }
    std::uint64_t data(std::uint32_t i) const { return msrs_.entries[i].data; }
    /// What ioctl gets.
    void* raw() { return &msrs_; }

  private:
    abi::KvmMsrs<kCapacity> msrs_{{}, {}};
};

class Vcpu : public VcpuCore {
  public:
    /// vCPU `id` (also its APIC ID) of `vm`.
    static Result<Vcpu> create(const Vm& vm, std::uint32_t id);

    Result<kvm_regs> regs() const;
    Status set_regs(const kvm_regs& regs);
    Result<kvm_sregs> sregs() const;
    Status set_sregs(const kvm_sregs& sregs);
    Result<kvm_lapic_state> lapic() const;
    Status set_lapic(const kvm_lapic_state& lapic);
    Result<kvm_xcrs> xcrs() const;
    Status set_xcrs(const kvm_xcrs& xcrs);
    Result<kvm_debugregs> debugregs() const;
    Status set_debugregs(const kvm_debugregs& debugregs);
    /// The XSAVE area. `area` is 4096 bytes (KVM_GET_XSAVE), or as many as
    /// check_extension(KVM_CAP_XSAVE2) said where that is more (KVM_GET_XSAVE2).
    Status get_xsave(std::span<std::byte> area) const;
    Status set_xsave(std::span<const std::byte> area);

    /// What the guest has of a guest of its own (KVM_GET_NESTED_STATE), of at most `bytes_max`
    /// bytes, as check_extension(KVM_CAP_NESTED_STATE) says; empty where it virtualises nothing.
    Result<std::vector<std::byte>> nested_state(std::size_t bytes_max) const;
    /// After set_sregs(), whose EFER must allow it. `state` is one that nested_state() gave.
    Status set_nested_state(std::span<const std::byte> state);

    Status set_cpuid(const CpuidEntries& entries);
    Result<CpuidEntries> cpuid() const;

    /// Reads or writes the batch's MSRs in order. Fails with kKernel and the number of the first
    /// MSR that the kernel does not take; those before it are done.
    Status get_msrs(MsrBatch& batch) const;
    Status set_msrs(MsrBatch& batch);
    /// The same, but answers how many MSRs were done before the first refusal.
    Result<std::uint32_t> try_get_msrs(MsrBatch& batch) const;
    Result<std::uint32_t> try_set_msrs(MsrBatch& batch);
    Result<std::uint64_t> msr(std::uint32_t index) const;
    Status set_msr(std::uint32_t index, std::uint64_t data);

    /// The TSC offset (group KVM_VCPU_TSC_CTRL): guest TSC = host TSC x ratio + offset, modulo
    /// 2^64.
    bool has_tsc_offset() const { return has_attribute(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET); }
    Result<std::uint64_t> tsc_offset() const {
        return attribute(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET);
    }
    Status set_tsc_offset(std::uint64_t offset) {
        return set_attribute(KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, offset);
    }

    Result<std::uint32_t> tsc_khz() const;
    Status set_tsc_khz(std::uint32_t khz);
    /// Tells the guest, by GUEST_STOPPED in its clock page, that it was stopped. kKernel with
    /// EINVAL where the guest has no kvmclock page.
    Status kvmclock_ctrl();

  private:
    Vcpu() = default;
    Result<std::uint32_t> msrs_call(unsigned long request, MsrBatch& batch, const char* name) const;
};

}  // namespace continuo::kvm
