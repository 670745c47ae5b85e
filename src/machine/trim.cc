#include "trim.h"

#include "continuo/time/tsc_scale.h"

namespace continuo::machine {

namespace {

using time::Nanos;

Count<HostCounter> middle(Count<HostCounter> before, Count<HostCounter> after) {
    return before + time::Ticks<HostCounter>::from_raw((after - before).raw() / 2);
}

}  // namespace

Result<Nanos<Kvmclock>> kvmclock_seam(Machine& machine, const KvmclockTarget& target) {
    const Count<HostCounter> before = machine.now();
    const auto reading = machine.kvmclock();
    if (!reading) return tl::unexpected(reading.error());
    const Count<HostCounter> at = reading->host ? *reading->host : middle(before, machine.now());
    return reading->clock - target.at(at);
}

Result<state::TrimReport> trim_kvmclock(Machine& machine, const KvmclockTarget& target,
                                        const ApplyOptions& options) {
    state::TrimReport report;
    const auto look = [&]() -> Status {
        const auto seam = kvmclock_seam(machine, target);
        if (!seam) return tl::unexpected(seam.error());
        report.residual_ns = seam->raw();
        report.converged = seam->magnitude() <= options.trim_target_ns;
        return {};
    };
    // What is on its line already is left there: a second apply() changes nothing.
    if (Status looked = look(); !looked) return tl::unexpected(looked.error());
    // Between reading the counter here and the kernel's own reading inside KVM_SET_CLOCK some time
    // passes, nearly the same each round: its last value is the correction of the next. What is
    // left is the jitter, and the loop waits for a round in which it is small enough.
    Nanos<Kvmclock> latency;
    // Two lines of one slope that agree in a reading are less than 1 ns apart, and no later reading
    // differs by more than 1 ns; a reading of 1 ns could be followed by one of 2. So zero is what
    // the loop waits for, and only in its second half it takes the target.
    const auto good_enough = [&] {
        const bool patient = report.rounds < options.trim_rounds_max / 2;
        return report.residual_ns == 0 || (report.converged && !patient);
    };
    for (bool done = report.converged; !done && report.rounds < options.trim_rounds_max;
         done = good_enough()) {
        ++report.rounds;
        const auto set = machine.set_kvmclock(target.at(machine.now()) + latency);
        if (!set) return tl::unexpected(set.error());
        if (Status looked = look(); !looked) return tl::unexpected(looked.error());
        latency = latency - Nanos<Kvmclock>::from_raw(report.residual_ns);
    }
    return report;
}

}  // namespace continuo::machine
