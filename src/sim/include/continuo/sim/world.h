// The world of one run: true time, the hosts, the VM and its guest, the scheduler that takes the
// processor away from the VMM's threads, and the one generator that everything is drawn from.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "continuo/model/kvm_vm.h"
#include "continuo/sim/bug.h"
#include "continuo/sim/guest.h"
#include "continuo/sim/host.h"
#include "continuo/sim/scenario.h"
#include "continuo/sim/site.h"
#include "continuo/state/exchange.h"

namespace continuo::sim {

struct World {
    /// Hosts as the scenario and the seed have them, at true time 0. Lifetime: scenario outlives
    /// the world.
    World(const Scenario& of, std::uint64_t seed, Bug planted);
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    Host& host() { return hosts[on_host]; }
    model::KvmVm& vm() { return *vms[on_vm]; }
    bool has(Bug which) const { return bug == which; }
    bool fault(Fault which) { return scenario.fault(which).happens(random); }
    void reached(Probe probe) { probes |= bit(probe); }

    // The scheduler.

    /// A step of a VMM thread begins: its way there, and whether the thread loses its processor.
    void before(Site site);
    /// And ends.
    void after(Site site);
    /// Nothing more is done: a limit of the scenario was reached.
    bool over() const { return over_; }
    /// The thread waits until then; no step where that is past.
    void wait_until(TrueTime t) {
        if (t > clock.now) clock.now = t;
        look_at_limits();
    }
    void wait(Span length) { wait_until(clock.now + length); }
    /// An event of the scenario happens now.
    void happen(const EventSpec& event);

    const Scenario& scenario;
    const Bug bug;
    Random random;
    WorldClock clock;
    std::array<Host, kHostsMax> hosts;
    std::array<std::optional<model::KvmVm>, 2> vms;
    unsigned on_host = 0;  ///< where the guest is
    unsigned on_vm = 0;
    Guest guest;
    state::Exchange exchange;       ///< of the move that is going on
    bool slept_in_gap = false;      ///< a host slept in the blackout of this move
    bool page_was_damaged = false;  ///< by the guest, before the stop of this move
    bool kernel_lied = false;       ///< an answer of this move's was false
    ProbeSet probes = 0;
    std::uint32_t steps = 0;
    std::uint32_t preemptions = 0;

  private:
    void preempt(const SiteSpec& spec);
    void look_at_limits() {
        if (steps > scenario.limits.steps || clock.now > end_) over_ = true;
    }

    TrueTime end_{};
    std::array<Span, kSites> half_cost_;
    bool over_ = false;
};

}  // namespace continuo::sim
