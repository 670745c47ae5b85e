#include "trim.h"

#include "continuo/time/tsc_scale.h"
#include "guest_page.h"
#include "kernel_clock.h"

namespace continuo::machine {

namespace {

using time::Nanos;

/// KVM_GET_CLOCK's answer, and the host counter that it is of.
struct Reading {
    Instant<Kvmclock> clock;
    Count<HostCounter> at;
    Nanos<Kvmclock> above(const KvmclockTarget& target) const { return clock - target.at(at); }
};

Result<Reading> read_kernel(Machine& machine) {
    const auto answer = read_kernel_clock(machine);
    if (!answer) return tl::unexpected(answer.error());
    return Reading{answer->reading.clock, answer->at()};
}

/// The line that a scaled guest reads; nullopt where it has no page, or one that it damaged.
Result<std::optional<PvclockLine>> scaled_page(Machine& machine, const KvmclockTarget& target,
                                               const Reading& kernel) {
    if (!target.map.scales()) return std::optional<PvclockLine>{};
    const auto facts = machine.host_facts();
    if (!facts) return tl::unexpected(facts.error());
    const Hz effective = effective_frequency(target.map, *facts);
    const PvclockLine line{target.map.at(kernel.at), kernel.clock,
                           time::PvclockScale::from_hz(effective)};
    return believable_page(machine, line, target.map, effective);
}

}  // namespace

Result<Nanos<Kvmclock>> kvmclock_seam(Machine& machine, const KvmclockTarget& target) {
    const auto kernel = read_kernel(machine);
    if (!kernel) return tl::unexpected(kernel.error());
    const auto page = scaled_page(machine, target, *kernel);
    if (!page) return tl::unexpected(page.error());
    if (!*page) return kernel->above(target);
    if (const auto apart = (*page)->minus(target.line)) return *apart;
    const Count<GuestCounter> tsc = target.map.at(kernel->at);
    return (*page)->at(tsc) - target.line.at(tsc);
}

Result<state::TrimReport> trim_kvmclock(Machine& machine, const KvmclockTarget& target,
                                        const ApplyOptions& options) {
    state::TrimReport report;
    const auto found = [&](Nanos<Kvmclock> seam) {
        report.residual_ns = seam.raw();
        report.converged = seam.magnitude() <= options.trim_target_ns;
    };
    // What is on its line already is left there: a second apply() changes nothing.
    const auto before = kvmclock_seam(machine, target);
    if (!before) return tl::unexpected(before.error());
    found(*before);
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
        const auto after = read_kernel(machine);
        if (!after) return tl::unexpected(after.error());
        found(after->above(target));
        latency = latency - Nanos<Kvmclock>::from_raw(report.residual_ns);
    }
    return report;
}

}  // namespace continuo::machine
