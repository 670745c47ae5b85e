// One vCPU, as far as all architectures have it: running it, its multiprocessing state, its pending
// events and its device attributes. Each architecture's Vcpu (vcpu.h, of which the build picks one)
// adds its registers. Raw on purpose, like Vm. No call uses the heap where it succeeds, so capture
// and apply can use all of them.
#pragma once

#include <linux/kvm.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "continuo/kvm/vm_core.h"

namespace continuo::kvm {

/// How KVM_RUN came back.
enum class RunEnd : std::uint8_t {
    kExit,         ///< the guest needs user space: see run_page().exit_reason
    kInterrupted,  ///< a signal or immediate_exit; state is complete and can be saved
};

class VcpuCore {
  public:
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

    Result<kvm_vcpu_events> events() const;
    Status set_events(const kvm_vcpu_events& events);
    Result<kvm_mp_state> mp_state() const;
    Status set_mp_state(const kvm_mp_state& mp_state);

    bool has_attribute(std::uint32_t group, std::uint64_t attribute) const;
    Result<std::uint64_t> attribute(std::uint32_t group, std::uint64_t attribute) const;
    Status set_attribute(std::uint32_t group, std::uint64_t attribute, std::uint64_t value);

  protected:
    VcpuCore() = default;
    VcpuCore(VcpuCore&& other) noexcept;
    VcpuCore& operator=(VcpuCore&& other) noexcept;
    ~VcpuCore();

    /// KVM_CREATE_VCPU and the mapping of its kvm_run.
    Status create_vcpu(const VmCore& vm, std::uint32_t id);
    Status call(unsigned long request, void* arg, const char* name) const;
    tl::unexpected<state::Error> refused(const char* name, int sys_errno) const;

  private:
    Fd fd_;
    std::uint32_t id_ = 0;
    kvm_run* run_ = nullptr;
    std::size_t run_size_ = 0;
};

/// Makes the calling thread the one that runs this vCPU, by a KVM_RUN that enters nothing. Up to
/// Linux 6.12 a vCPU's first KVM_RUN on another thread than its last waits for an RCU grace period
/// (20 to 30 ms measured; kvm_vcpu_ioctl(), KVM_RUN): to be called by each vCPU's thread before the
/// instant at which the guest is to go on.
Status claim_vcpu(VcpuCore& vcpu);

}  // namespace continuo::kvm
