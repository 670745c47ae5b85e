// One vCPU: running it, and every piece of its state as the kernel gives it. Raw on purpose, like
// Vm. No call uses the heap where it succeeds, so capture and apply can use all of them.
#pragma once

#include <linux/kvm.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "continuo/abi/kvm_x86.h"
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

/// How KVM_RUN came back.
enum class RunEnd : std::uint8_t {
    kExit,         ///< the guest needs user space: see run_page().exit_reason
    kInterrupted,  ///< a signal or immediate_exit; state is complete and can be saved
};

class Vcpu {
  public:
    /// vCPU `id` (also its APIC ID) of `vm`.
    static Result<Vcpu> create(const Vm& vm, std::uint32_t id);

    Vcpu(Vcpu&& other) noexcept;
    Vcpu& operator=(Vcpu&& other) noexcept;
    ~Vcpu();

    int fd() const { return fd_.get(); }
    std::uint32_t id() const { return id_; }

    /// KVM_RUN. Blocks until an exit or a signal.
    Result<RunEnd> run();
    /// Valid between two runs.
    kvm_run& run_page() const { return *run_; }
    /// With true, the next or current KVM_RUN comes back at once with kInterrupted (the current one
    /// needs a signal too). Callable from any thread and from a signal handler.
    void set_immediate_exit(bool on) const {
        std::atomic_ref<std::uint8_t>{run_->immediate_exit}.store(on ? 1 : 0,
                                                                  std::memory_order_seq_cst);
    }

    Result<kvm_regs> regs() const;
    Status set_regs(const kvm_regs& regs);
    Result<kvm_sregs> sregs() const;
    Status set_sregs(const kvm_sregs& sregs);
    Result<kvm_lapic_state> lapic() const;
    Status set_lapic(const kvm_lapic_state& lapic);
    Result<kvm_xcrs> xcrs() const;
    Status set_xcrs(const kvm_xcrs& xcrs);
    Result<kvm_vcpu_events> events() const;
    Status set_events(const kvm_vcpu_events& events);
    Result<kvm_debugregs> debugregs() const;
    Status set_debugregs(const kvm_debugregs& debugregs);
    Result<kvm_mp_state> mp_state() const;
    Status set_mp_state(const kvm_mp_state& mp_state);
    /// The XSAVE area. `area` is 4096 bytes (KVM_GET_XSAVE), or as many as
    /// check_extension(KVM_CAP_XSAVE2) said where that is more (KVM_GET_XSAVE2).
    Status get_xsave(std::span<std::byte> area) const;
    Status set_xsave(std::span<const std::byte> area);

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

    bool has_attribute(std::uint32_t group, std::uint64_t attribute) const;
    Result<std::uint64_t> attribute(std::uint32_t group, std::uint64_t attribute) const;
    Status set_attribute(std::uint32_t group, std::uint64_t attribute, std::uint64_t value);

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
    Status call(unsigned long request, void* arg, const char* name) const;
    Result<std::uint32_t> msrs_call(unsigned long request, MsrBatch& batch, const char* name) const;
    tl::unexpected<state::Error> refused(const char* name, int sys_errno) const;

    Fd fd_;
    std::uint32_t id_ = 0;
    kvm_run* run_ = nullptr;
    std::size_t run_size_ = 0;
};

}  // namespace continuo::kvm
