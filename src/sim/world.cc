#include "continuo/sim/world.h"

namespace continuo::sim {

namespace {

/// What RDTSC and the code about it take inside the kernel.
constexpr std::int64_t kKernelReadingNs = 15;

}  // namespace

World::World(const Scenario& of, std::uint64_t seed, Bug planted)
    : scenario{of}, bug{planted}, random{seed} {
    clock.epoch_tai_ns = of.epoch_tai_ns;
    clock.reading = span_ns(kKernelReadingNs);
    end_ = TrueTime{span_ns(of.limits.true_time_ns)};
    for (unsigned i = 0; i < of.hosts.size(); ++i)
        hosts[i].begin(clock, of.hosts[i], i, random);
    // The kernel acts in the middle of a call, but for the jitter.
    for (std::size_t i = 0; i < kSites; ++i)
        half_cost_[i] = span_ns(of.vmm.sites[i].cost_ns.from(random)) / 2;
}

void World::preempt(const SiteSpec& spec) {
    if (!spec.preempt.happens(random)) return;
    ++preemptions;
    clock.now += span_ns(spec.preempt_ns.from(random));
}

void World::before(Site site) {
    const SiteSpec& spec = scenario.site(site);
    ++steps;
    preempt(spec);
    clock.now += half_cost_[static_cast<std::size_t>(site)];
    clock.now += span_ns(spec.jitter_ns.from(random));
    look_at_limits();
}

void World::after(Site site) {
    clock.now += half_cost_[static_cast<std::size_t>(site)];
    preempt(scenario.site(site));
}

void World::happen(const EventSpec& event) {
    Host& there = hosts[event.host];
    const bool has_vm = event.host == on_host;
    const std::int64_t size = event.size.from(random);
    switch (event.kind) {
        case EventKind::kNtpStep:
            if (event.phase == Phase::kBlackout) reached(Probe::kNtpStepInGap);
            return there.ntp_step(size);
        case EventKind::kNtpSlew:
            return there.ntp_slew(size);
        case EventKind::kLeapSecond:
            if (event.phase == Phase::kBlackout) reached(Probe::kLeapInGap);
            clock.leap_at = clock.now;
            clock.leap_sec = size;
            return;
        case EventKind::kTscUnstable:
            there.become_unstable(static_cast<std::uint64_t>(size));
            [[fallthrough]];
        case EventKind::kClocksourceLost:
            there.lose_clocksource();
            reached(Probe::kClocksourceLost);
            if (has_vm) vm().clocksource_changed();
            return;
        case EventKind::kSuspend:
            if (has_vm) vm().host_suspended();
            there.sleep(span_ns(size));
            reached(Probe::kHostSuspended);
            slept_in_gap = slept_in_gap || event.phase == Phase::kBlackout;
            if (has_vm) vm().host_resumed();
            return;
    }
}

}  // namespace continuo::sim
