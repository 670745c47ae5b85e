// KVM_GET_CLOCK between two readings of the host's counter, and its answer held against them.
// Internal to machine/.
#pragma once

#include "continuo/machine/machine.h"

namespace continuo::machine {

struct KernelClock {
    KvmclockReading reading;
    Count<HostCounter> before;
    Count<HostCounter> after;
    /// The host counter that the answer is of: the kernel's word, or the middle of the bracket.
    Count<HostCounter> at() const {
        const auto half = time::Ticks<HostCounter>::from_raw((after - before).raw() / 2);
        return reading.host.value_or(before + half);
    }
};

/// Fails with kKernel where the kernel's host counter is none of the call's: a line through it
/// would be anywhere.
Result<KernelClock> read_kernel_clock(Machine& machine);

}  // namespace continuo::machine
