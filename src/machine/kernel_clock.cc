#include "kernel_clock.h"

#include <fmt/format.h>

namespace continuo::machine {

Result<KernelClock> read_kernel_clock(Machine& machine) {
    const Count<HostCounter> before = machine.now();
    const auto reading = machine.kvmclock();
    if (!reading) return tl::unexpected(reading.error());
    KernelClock clock{*reading, before, machine.now()};
    const bool outside = reading->host && ((*reading->host - before).raw() < 0 ||
                                           (clock.after - *reading->host).raw() < 0);
    if (!outside) return clock;
    return state::fail(
        state::ErrorCode::kKernel, "KVM_GET_CLOCK",
        fmt::format("its host TSC {:#x} is outside the call, which lasted from {:#x} to {:#x}",
                    reading->host->raw(), before.raw(), clock.after.raw()),
        "The host's TSC is unstable, or the kernel's answer is wrong: use another host");
}

}  // namespace continuo::machine
