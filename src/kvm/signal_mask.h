// KVM_SET_SIGNAL_MASK: which signals end KVM_RUN without being delivered before it. Internal to
// kvm/.
#pragma once

#include <csignal>

#include "continuo/kvm/vcpu_core.h"

namespace continuo::kvm {

/// The set of this one signal.
sigset_t signal_set(int signal);
/// Inside KVM_RUN only `signal` (and what cannot be blocked) interrupts.
Status let_in_only(VcpuCore& vcpu, int signal);
/// Inside KVM_RUN the thread's own mask holds, as before any KVM_SET_SIGNAL_MASK.
Status let_in_as_outside(VcpuCore& vcpu);

}  // namespace continuo::kvm
