// Makes KVM carry out a vCPU's pending requests without running guest code. Writes to the TSC
// leave KVM_REQ_MASTERCLOCK_UPDATE and KVM_REQ_CLOCK_UPDATE behind, which only vcpu_enter_guest()
// carries out: at the first entry, and then the masterclock takes a new sample and moves kvmclock.
// With immediate_exit KVM_RUN comes back before that. With a signal that is blocked outside and
// unblocked inside (KVM_SET_SIGNAL_MASK) vcpu_enter_guest() carries out the requests, then finds
// the signal and cancels the entry (kvm_vcpu_exit_request()). docs/kernel-facts.md has the proof.
#pragma once

#include <csignal>
#include <optional>

#include "continuo/kvm/vcpu.h"

namespace continuo::kvm {

/// Holds a real-time signal pending and blocked for the calling thread, for as long as it lives;
/// takes it back and restores the thread's mask at the end. A signal of the same number that
/// somebody else sent stays pending.
class PendingSignal {
  public:
    /// Fails with kKernel where the signal cannot be queued (RLIMIT_SIGPENDING).
    static Result<PendingSignal> raise();
    PendingSignal(PendingSignal&& other) noexcept;
    PendingSignal& operator=(PendingSignal&&) = delete;
    ~PendingSignal();

  private:
    explicit PendingSignal(const sigset_t& mask) : mask_before_{mask} {}
    sigset_t mask_before_;
    bool active_ = true;
};

/// Carries out the pending requests of a stopped vCPU: its pvclock page is written, masterclock
/// updates are done. No guest instruction runs. A vCPU that waits (halted, or not yet started) is
/// made runnable for the call and put back, unless an interrupt arrived in it meanwhile: then it
/// has been woken, as it would have been. Replaces a signal mask set with KVM_SET_SIGNAL_MASK by
/// none. kBusy where the vCPU has an unfinished exit to user space. Call it on the thread that
/// runs the vCPU: up to Linux 6.12 a change of thread costs an RCU grace period (20 ms) at the
/// next KVM_RUN.
Status settle_vcpu(Vcpu& vcpu);
/// The same under a signal that is pending already, for many vCPUs on one thread.
Status settle_vcpu(Vcpu& vcpu, const PendingSignal& pending);

}  // namespace continuo::kvm
