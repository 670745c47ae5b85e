#include "continuo/kvm/host.h"

namespace continuo::kvm {

namespace {

std::uint64_t cntfrq() {
    std::uint64_t hz = 0;
    asm volatile("mrs %0, cntfrq_el0" : "=r"(hz));
    return hz;
}

}  // namespace

Result<HostClock> examine_host(const System&) {
    HostClock host;
    host.identity = host_identity();
    host.clocksource = host_clocksource();
    const auto frequency = time::Hz::from_hz(cntfrq());
    if (!frequency)
        return state::fail(state::ErrorCode::kKernel, "CNTFRQ_EL0",
                           "the firmware left the counter's frequency at 0",
                           "have the firmware set CNTFRQ_EL0 on every CPU");
    host.counter_frequency = *frequency;
    return host;
}

}  // namespace continuo::kvm
