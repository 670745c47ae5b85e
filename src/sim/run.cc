#include "continuo/sim/run.h"

#include <xxhash.h>

#include <algorithm>

#include "continuo/sim/sides.h"
#include "judge.h"

namespace continuo::sim {

namespace {

using time::Count;
using time::HostCounter;

/// Where a vCPU's pvclock page is: what Linux does, 64 bytes apart.
std::uint64_t page_address(unsigned vcpu) {
    return (0x1000 + abi::kPvclockLinuxStride * vcpu) | abi::kKVM_MSR_ENABLED;
}
constexpr std::uint64_t kWallClockAddress = 0x3000;
/// From the entry to the first reading that its code can have done.
constexpr Span kFirstInstructions = span_ns(150);

class Run {
  public:
    Run(const Scenario& scenario, const Strategy& strategy, std::uint64_t seed, Bug bug)
        : scenario_{scenario},
          strategy_{strategy},
          world_{scenario, seed, bug},
          judge_{world_, strategy, result_} {
        result_.seed = seed;
    }

    RunResult go() {
        boot();
        for (unsigned i = 0; i < scenario_.moves.size() && result_.ending == Ending::kMoved; ++i)
            move(i);
        if (world_.over()) give_up();
        result_.probes = world_.probes;
        result_.steps = world_.steps;
        result_.ended = world_.clock.now;
        result_.hash = judge_.hash(result_);
        return result_;
    }

  private:
    // -- making VMs --

    model::KvmVm& make_vm(unsigned slot, Host& host) {
        model::KernelRules rules = host.rules();
        strategy_.require(rules);
        model::KvmVm& vm = world_.vms[slot].emplace(host, rules, 0);
        for (unsigned vcpu = 0; vcpu < scenario_.guest.vcpus; ++vcpu) {
            world_.before(Site::kCreateVcpu);
            (void)vm.create_vcpu();
            if (spreads_vcpus()) vm.vcpu_migrated(vcpu, vcpu);
            world_.after(Site::kCreateVcpu);
        }
        return vm;
    }
    bool spreads_vcpus() const {
        return std::any_of(scenario_.hosts.begin(), scenario_.hosts.end(),
                           [](const HostSpec& host) { return host.cpu_skew_ticks != Draw{}; });
    }
    std::uint32_t system_time_msr() const {
        return scenario_.guest.old_msrs ? abi::kMSR_KVM_SYSTEM_TIME : abi::kMSR_KVM_SYSTEM_TIME_NEW;
    }

    void boot() {
        Host& host = world_.host();
        model::KvmVm& vm = make_vm(0, host);
        const std::uint32_t khz =
            scenario_.guest.tsc_khz != 0 ? scenario_.guest.tsc_khz : host.khz();
        const auto uptime =
            static_cast<std::uint64_t>(scenario_.guest.uptime_ns.from(world_.random));
        for (unsigned vcpu = 0; vcpu < vm.vcpu_count(); ++vcpu) {
            if (khz != host.khz()) (void)vm.set_tsc_khz(vcpu, khz);
            if (uptime == 0) continue;
            const auto ticks = static_cast<time::u128>(uptime) * khz / 1'000'000;
            (void)vm.host_write_msr(vcpu, abi::kMSR_IA32_TSC, static_cast<std::uint64_t>(ticks));
        }
        abi::kvm_clock_data clock{};
        clock.clock = uptime;
        (void)vm.set_clock(clock);
        for (unsigned vcpu = 0; vcpu < vm.vcpu_count(); ++vcpu)
            boot_vcpu(vm, vcpu);
        // The masterclock's first update makes the earlier pages stale.
        enter_all();
        enter_all();
        judge_.boot(khz, uptime);
    }

    void boot_vcpu(model::KvmVm& vm, unsigned vcpu) {
        vm.enter(vcpu);
        (void)vm.guest_write_msr(vcpu, system_time_msr(), page_address(vcpu));
        if (vcpu == 0)
            (void)vm.guest_write_msr(vcpu, abi::kMSR_KVM_WALL_CLOCK_NEW, kWallClockAddress);
        if (vcpu != 0 && scenario_.guest.tsc_adjust != Draw{})
            (void)vm.guest_write_msr(
                vcpu, abi::kMSR_IA32_TSC_ADJUST,
                static_cast<std::uint64_t>(scenario_.guest.tsc_adjust.from(world_.random)));
        vm.exit(vcpu);
    }

    /// Whoever was kicked out of guest mode is in again.
    void enter_all() {
        model::KvmVm& vm = world_.vm();
        for (unsigned vcpu = 0; vcpu < vm.vcpu_count(); ++vcpu)
            if (!vm.in_guest(vcpu)) vm.enter(vcpu);
    }

    // -- time that passes --

    /// A phase of a move, with what the scenario has happen in it.
    void pass(Span length, unsigned move, Phase phase) {
        const TrueTime begin = world_.clock.now;
        for (const EventSpec& event : scenario_.events) {
            if (event.move != move || event.phase != phase) continue;
            const auto at = static_cast<std::int64_t>(static_cast<time::i128>(length.count()) *
                                                      event.at_ppm / 1'000'000);
            world_.wait_until(begin + Span{at});
            const bool runs = phase != Phase::kBlackout;
            if (runs) judge_.look_at_all();
            world_.happen(event);
            if (runs) {
                enter_all();
                enter_all();
                judge_.look_at_all();
            }
        }
        world_.wait_until(begin + length);
    }

    void work() {
        model::KvmVm& vm = world_.vm();
        vm.run_work(world_.host().base_now_ns(0));
        enter_all();
    }

    /// Questions of the destination while the guest still runs, and answers.
    void exchange(Host& here) {
        world_.exchange.clear();
        for (unsigned i = 0; i < scenario_.channel.rounds; ++i) {
            state::ExchangeRound round;
            round.asked = Count<HostCounter>::from_raw(here.count_now());
            world_.wait(span_ns(scenario_.channel.there_ns.from(world_.random)));
            round.received = Count<time::SourceCounter>::from_raw(world_.host().count_now());
            world_.before(Site::kReadAnchor);
            world_.after(Site::kReadAnchor);
            round.answered = Count<time::SourceCounter>::from_raw(world_.host().count_now());
            world_.wait(span_ns(scenario_.channel.back_ns.from(world_.random)));
            round.heard = Count<HostCounter>::from_raw(here.count_now());
            world_.exchange.push_back(round);
        }
    }

    // -- one move --

    void move(unsigned index) {
        const MoveSpec& spec = scenario_.moves[index];
        Host& there = world_.hosts[spec.to];
        world_.slept_in_gap = false;
        world_.page_was_damaged = false;
        world_.kernel_lied = false;
        world_.host().discipline();
        pass(span_ns(spec.run_ns.from(world_.random)), index, Phase::kRunning);
        work();
        if (scenario_.channel.rounds != 0 && spec.to != world_.on_host) exchange(there);
        SourceSide source{world_, world_.host(), world_.vm()};
        stop(source, spec.in_place);
        Saved saved;
        saved.in_place = spec.in_place;
        const std::uint32_t interruptions = world_.preemptions;
        if (!ended(strategy_.save(source, saved))) {
            (void)caught();
            return;
        }
        if (world_.preemptions != interruptions) world_.reached(Probe::kPreemptedBetweenReads);
        judge_.saved(source);
        damage(saved);
        arrive(index, spec);
        DestinationSide destination{world_, world_.host(), world_.vm()};
        if (world_.has(Bug::kEntryBeforeApply)) enter_early();
        if (!restore(destination, saved)) return;
        enter(destination);
        judge_.judge_move(destination, damaged_);
        after(index);
    }

    void stop(SourceSide& source, bool in_place) {
        model::KvmVm& vm = world_.vm();
        judge_.last_tick(scenario_.guest.tick_ns);
        if (!in_place && world_.fault(Fault::kGuestPage)) judge_.damage_page();
        if (strategy_.quiesces()) judge_.suspend();
        judge_.begin_stop();
        const auto first = static_cast<unsigned>(below(world_.random, vm.vcpu_count()));
        for (unsigned i = 0; i < vm.vcpu_count(); ++i) {
            const unsigned vcpu = (first + i) % vm.vcpu_count();
            if (i != 0) world_.wait(span_ns(scenario_.vmm.exit_skew_ns.from(world_.random)));
            judge_.last_look(vcpu);
            vm.exit(vcpu);
            source.think(Site::kStopVcpu);
            // Through the port: what was asked for and not published is in no state of KVM's.
            if (scenario_.vmm.ctrl_at_stop) (void)source.machine().signal_guest_stopped(vcpu);
        }
        judge_.stopped();
    }

    /// What happens to the bytes under way.
    void damage(Saved& saved) {
        damaged_ = false;
        if (saved.in_place) return;
        if (world_.fault(Fault::kWireTruncate)) {
            damaged_ = true;
            if (!saved.record.empty())
                saved.record.resize(below(world_.random, saved.record.size()));
            else
                saved.vcpus[saved.vcpu_count - 1] = {};
        }
        if (!world_.fault(Fault::kWireFlip)) return;
        damaged_ = true;
        if (saved.record.empty())
            saved.vcpus[0].tsc ^= std::uint64_t{1} << below(world_.random, 64);
        else
            saved.record[below(world_.random, saved.record.size())] ^=
                static_cast<std::byte>(1U << below(world_.random, 8));
    }

    /// The blackout, and the VM on the other side with its memory and its MSRs but for the clocks.
    void arrive(unsigned index, const MoveSpec& spec) {
        const Span blackout = span_ns(spec.blackout_ns.from(world_.random));
        if (spec.in_place) {
            pass(blackout, index, Phase::kBlackout);
            world_.host().discipline();
            return;
        }
        Host& there = world_.hosts[spec.to];
        const unsigned slot = 1 - world_.on_vm;
        model::KvmVm& vm = make_vm(slot, there);
        pass(blackout, index, Phase::kBlackout);
        there.discipline();
        for (unsigned vcpu = 0; vcpu < vm.vcpu_count(); ++vcpu) {
            world_.before(Site::kWriteMsr);
            (void)vm.host_write_msr(vcpu, system_time_msr(), page_address(vcpu));
            vm.page(vcpu) = world_.vm().page(vcpu);
            world_.after(Site::kWriteMsr);
        }
        world_.on_vm = slot;
        world_.on_host = spec.to;
        if (world_.fault(Fault::kVcpuMoves))
            for (unsigned vcpu = 0; vcpu < vm.vcpu_count(); ++vcpu)
                vm.vcpu_migrated(vcpu, (vcpu + 1) % vm.vcpu_count());
    }

    bool restore(DestinationSide& destination, const Saved& saved) {
        const std::uint32_t interruptions = world_.preemptions;
        if (!ended(strategy_.restore(destination, saved))) return caught();
        if (world_.preemptions != interruptions) world_.reached(Probe::kPreemptedBetweenWrites);
        if (!world_.fault(Fault::kRestoreTwice)) return true;
        world_.reached(Probe::kRestoredTwice);
        const Lines before = judge_.lines();
        world_.wait(span_ns(static_cast<std::int64_t>(below(world_.random, 50'000'000))));
        if (!ended(strategy_.repeat(destination, saved))) return caught();
        judge_.hold_idempotent(before, judge_.lines());
        return true;
    }

    /// A restore that ended with a reason was right to, where something was damaged.
    bool caught() {
        if (damaged_) {
            world_.reached(Probe::kWireDamageCaught);
            result_.verdicts.looked(Invariant::kNothingTrusted);
        }
        if (world_.kernel_lied) {
            world_.reached(Probe::kKernelLieCaught);
            result_.verdicts.looked(Invariant::kNothingTrusted);
        }
        return false;
    }

    bool ended(const Done& done) {
        if (world_.over()) {
            give_up();
            return false;
        }
        if (done.ok()) return true;
        result_.ending = done.kind == Done::Kind::kRefused ? Ending::kRefused : Ending::kFailed;
        result_.reason = done.reason;
        if (result_.ending == Ending::kRefused) world_.reached(Probe::kRefused);
        return false;
    }

    void enter_early() {
        world_.vm().enter(0);
        judge_.look(0);
        world_.vm().exit(0);
    }

    void enter(DestinationSide& destination) {
        model::KvmVm& vm = world_.vm();
        if (const auto at = destination.resume_at()) world_.wait_until(world_.host().time_of(*at));
        const std::uint32_t interruptions = world_.preemptions;
        destination.think(Site::kBeforeEntry);
        if (world_.preemptions != interruptions) world_.reached(Probe::kPreemptedBeforeEntry);
        const auto first = static_cast<unsigned>(below(world_.random, vm.vcpu_count()));
        for (unsigned i = 0; i < vm.vcpu_count(); ++i) {
            const unsigned vcpu = (first + i) % vm.vcpu_count();
            if (i != 0) world_.wait(span_ns(scenario_.vmm.entry_skew_ns.from(world_.random)));
            vm.enter(vcpu);
            world_.wait(kFirstInstructions);
            judge_.first_look(vcpu, destination);
        }
        // A later vCPU's masterclock update kicks the earlier ones out.
        enter_all();
        judge_.look_at_all();
    }

    void after(unsigned index) {
        const bool again = index + 1 < scenario_.moves.size();
        const bool cut_short = again && scenario_.moves[index + 1].before_agent;
        judge_.repair(cut_short);
        if (cut_short || world_.over()) return;
        pass(span_ns(scenario_.observe_ns), index, Phase::kAfter);
        work();
        judge_.look_at_all();
        if (world_.fault(Fault::kPublishRace)) judge_.race();
        if (scenario_.guest.plugs_vcpu) plug();
        if (scenario_.guest.starts_sched_clock) {
            world_.wait(span_ns(300'000'000));
            judge_.start_sched_clock();
        }
    }

    /// vCPU 0 goes offline and comes back (S4.4): INIT, and the guest writes its MSR again.
    void plug() {
        model::KvmVm& vm = world_.vm();
        vm.exit(0);
        vm.reset_vcpu(0);
        world_.wait(span_ns(1'000'000));
        vm.enter(0);
        (void)vm.guest_write_msr(0, system_time_msr(), page_address(0));
        vm.exit(0);
        world_.reached(Probe::kVcpuPlugged);
        enter_all();
        enter_all();
        judge_.look_at_all();
    }

    void give_up() {
        result_.ending = Ending::kLimit;
        result_.verdicts = {};
        result_.reason = world_.steps > scenario_.limits.steps
                             ? "limits.steps of the scenario was reached"
                             : "limits.true_time_ns of the scenario was reached";
    }

    const Scenario& scenario_;
    const Strategy& strategy_;
    RunResult result_;
    World world_;
    Judge judge_;
    bool damaged_ = false;
};

}  // namespace

RunResult run(const Scenario& scenario, const Strategy& strategy, std::uint64_t seed, Bug bug) {
    return Run{scenario, strategy, seed, bug}.go();
}

}  // namespace continuo::sim
