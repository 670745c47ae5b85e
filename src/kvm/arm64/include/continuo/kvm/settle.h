// What KVM on arm64 leaves for the next guest entry after a write of a clock: nothing. The offset
// is read at each entry and each emulated access (timer_restore_state(), kvm_arm_timer_read()), and
// no clock is in guest memory. What is left is whose thread runs the vCPU.
#pragma once

#include "continuo/kvm/vcpu.h"

namespace continuo::kvm {

/// Claims the vCPU for the calling thread (claim_vcpu()): there is nothing to carry out. No guest
/// instruction runs.
inline Status settle_vcpu(Vcpu& vcpu) {
    return claim_vcpu(vcpu);
}

}  // namespace continuo::kvm
