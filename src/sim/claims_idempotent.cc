// Thread S2, 2021: restoring counters by value, and the controls that may be used twice and at any
// time.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "claim_guest.h"
#include "claim_trial.h"
#include "continuo/abi/arm64.h"
#include "continuo/model/kvm_arm.h"

namespace continuo::sim {

namespace {

constexpr const char* kUpton = "Oliver Upton, 2021";

constexpr std::int64_t kMilli = 1'000'000;

/// The destination's thread loses its processor between any two steps, always, for so long.
Scenario preempted(std::int64_t ns) {
    Scenario scenario = plain_scenario();
    for (const Site site : {Site::kCreateVcpu, Site::kSetTscAdjust, Site::kSetTscOffset,
                            Site::kWriteTsc, Site::kSetClock, Site::kBeforeEntry}) {
        SiteSpec& spec = scenario.vmm.sites[static_cast<std::size_t>(site)];
        spec.preempt = Ppm{1'000'000};
        spec.preempt_ns = Draw::of(ns);
    }
    return scenario;
}

Ruling by_value_is_brittle(const Comparison&) {
    const Spread calm = trial(plain_scenario(), kByValue).of(Quantity::kTscError);
    const Spread late = trial(preempted(50 * kMilli), kByValue).of(Quantity::kTscError);
    return ruling(
        late.min() > calm.max() + 50 * kMilli,
        fmt::format("against the value at the stop: {} where nothing interrupts the restore; {} "
                    "where each step of it loses 50 ms",
                    spread_text(calm), spread_text(late)),
        "the delay does not show in the counter");
}

Ruling twice_is_not_once(const Comparison&) {
    Scenario scenario = plain_scenario();
    scenario.faults[static_cast<std::size_t>(Fault::kRestoreTwice)] = Ppm{1'000'000};
    const InvariantTally value = trial(scenario, kByValue).of(Invariant::kIdempotent);
    const InvariantTally advanced = trial(scenario, kAdvance).of(Invariant::kIdempotent);
    const InvariantTally frozen = trial(scenario, kFreeze).of(Invariant::kIdempotent);
    // What kvmclock's closed loop may leave; an offset that is written twice moves nothing.
    constexpr std::uint64_t trimmed_ns = 1'000;
    const bool kept = advanced.checked > 0 && advanced.worst.value < trimmed_ns &&
                      frozen.checked > 0 && frozen.worst.value < trimmed_ns;
    return ruling(
        always_broken(value) && value.worst.value > kMilli && kept,
        fmt::format("a second restore, up to 50 ms later, changes nothing: by value {}; by "
                    "offsets, advancing {}, frozen {}",
                    tally_text(value), tally_text(advanced), tally_text(frozen)),
        "by value did not change with the second restore, or by offsets did");
}

/// Counters that keep the rate that their kernels state: what is left is what the restore does.
Scenario steady(Scenario scenario) {
    for (HostSpec& host : scenario.hosts) {
        host.drift_ppb = Draw{};
        host.tsc_sub_khz_hz = Draw{};
    }
    return scenario;
}

Ruling any_delay(const Comparison&) {
    const Spread calm = trial(steady(plain_scenario()), kAdvance).of(Quantity::kTscError);
    const Spread late = trial(steady(preempted(50 * kMilli)), kAdvance).of(Quantity::kTscError);
    return ruling(
        calm.count() > 0 && late.count() > 0 && late.max() <= calm.max() + 1'000,
        fmt::format("against never having stopped: {} undisturbed; {} where each step loses "
                    "50 ms",
                    spread_text(calm), spread_text(late)),
        "the delay shows in the counter");
}

Ruling preempted_between(const Comparison&) {
    // The time that passes between the last calculation and the write, alone.
    Scenario scenario = plain_scenario();
    SiteSpec& write = scenario.vmm.sites[static_cast<std::size_t>(Site::kWriteTsc)];
    write.preempt = Ppm{1'000'000};
    write.preempt_ns = Draw{0, 500 * kMilli, true};
    const Tally value = trial(scenario, kByValue);
    const Tally offset = trial(scenario, kFreeze);
    const Spread& by_value = value.of(Quantity::kTscError);
    const Spread& by_offset = offset.of(Quantity::kTscError);
    return ruling(
        by_value.max() > 10 * kMilli && by_offset.max() < kMilli,
        fmt::format("a thread that is preempted for up to 500 ms before it writes a TSC: by "
                    "value {}; by offset {}",
                    spread_text(by_value), spread_text(by_offset)),
        "preemption before the write is not in the counter");
}

Ruling one_instant(const Comparison&) {
    Scenario scenario = plain_scenario();
    SiteSpec& read = scenario.vmm.sites[static_cast<std::size_t>(Site::kReadAnchor)];
    read.preempt = Ppm{1'000'000};
    read.preempt_ns = Draw{kMilli, 100 * kMilli, false};
    const InvariantTally together = trial(scenario, kAdvance).of(Invariant::kInsideBound);
    const InvariantTally apart =
        trial(scenario, kAdvance, Bug::kAnchorNotBracketed).of(Invariant::kInsideBound);
    return ruling(
        always_kept(together) && apart.broken > 0,
        fmt::format("the true error inside its bound: counter and time of one instant {}; "
                    "read apart, with up to 100 ms between them, {}",
                    tally_text(together), tally_text(apart)),
        "two readings apart were as good as one instant");
}

Ruling fits_the_heuristics(const Comparison&) {
    const Tally offset = trial(plain_scenario(), kOffset);
    const bool lost = (offset.probes & bit(Probe::kMasterclockOff)) != 0;
    const Spread& skew = offset.of(Quantity::kTscSkew);
    return ruling(
        offset.moved == offset.runs && !lost && skew.max() == 0,
        fmt::format("offsets written to four vCPUs in turn: the guest {} the masterclock, "
                    "vCPUs {} apart at most",
                    lost ? "lost" : "kept", in_units(skew.max())),
        "the attribute does not get on with the synchronisation heuristics");
}

Ruling elapsed_needs_recipe(const Comparison&) {
    Scenario scaled = plain_scenario();
    scaled.hosts[1].tsc_khz = Draw::of(3'000'000);
    scaled.hosts[1].scaling_bits = 48;
    const Spread same = trial(plain_scenario(), kOffset).of(Quantity::kTscError);
    const Spread other = trial(scaled, kOffset).of(Quantity::kTscError);
    return ruling(
        same.count() > 0 && same.max() < kMilli && other.count() > 0 && other.max() < kMilli,
        fmt::format("by the documented recipe against never having stopped: {} between "
                    "hosts of one frequency; {} where the destination scales",
                    spread_text(same), spread_text(other)),
        "the recipe adds differences of host ticks to guest ticks, which is right only "
        "where the two are one");
}

/// The worst distance between two vCPUs' virtual counters after a restore of each by register.
std::uint64_t arm_skew(const model::ArmRules& rules, bool by_offset) {
    model::ArmHost host;
    model::KvmArm vm{host, rules};
    for (int i = 0; i < 4; ++i)
        (void)vm.create_vcpu();
    host.counter += 1'000'000;
    constexpr std::uint64_t value = 5'000'000'000;
    if (by_offset) {
        abi::kvm_arm_counter_offset offset{};
        offset.counter_offset = host.counter - value;
        (void)vm.set_counter_offset(offset);
    }
    for (unsigned v = 0; v < 4; ++v) {
        host.counter += 6'250;  // 100 us at 62.5 MHz
        if (!by_offset) (void)vm.set_one_reg(v, abi::kKVM_REG_ARM_TIMER_CNT, value);
    }
    std::uint64_t low = UINT64_MAX;
    std::uint64_t high = 0;
    for (unsigned v = 0; v < 4; ++v) {
        vm.enter(v, v);
        low = std::min(low, vm.guest_cntvct(v));
        high = std::max(high, vm.guest_cntvct(v));
    }
    return high - low;
}

Ruling arm_is_broadcast(const Comparison&) {
    const std::uint64_t by_register = arm_skew(model::ArmRules::linux(6, 1), false);
    const std::uint64_t by_offset = arm_skew(model::ArmRules::linux(6, 12), true);
    return ruling(
        by_register == 0 && by_offset == 0,
        fmt::format("four vCPUs' virtual counters: {} ticks apart after each was written 100 us "
                    "after the one before, {} after one offset for all",
                    by_register, by_offset),
        "a VM's vCPUs have counters of their own");
}

Ruling trap_cost(const Comparison&) {
    return undecided(
        "a simulator has no processor to measure; `continuo bench counter` measures it on "
        "this host and in the lab (docs/counter-bench.md)");
}

constexpr std::array kClaims{
    Claim{"s2-by-value-is-brittle", "S2.2", kUpton,
          "Restoring by value is brittle: the host's counter goes on between save and restore.",
          "by-value, undisturbed and with every step of the restore losing 50 ms: the error of the "
          "counter grows by more than that in every run",
          &by_value_is_brittle},
    Claim{"s2-offsets-are-idempotent", "S2.2", kUpton, "Values are not idempotent, offsets are.",
          "a restore that is carried out again, up to 50 ms later: by-value is broken in every "
          "run, by more "
          "than 1 ms; Continuo's offsets move no clock by 1 us in any",
          &twice_is_not_once},
    Claim{"s2-any-delay-will-do", "S2.2", kUpton,
          "With offsets, whatever time passes between save and restore does no harm.",
          "continuo-advance with every step of the restore losing 50 ms: the error stays within 1 "
          "us of "
          "the undisturbed one",
          &any_delay},
    Claim{"s2-preempted-before-the-write", "S2.2", kUpton,
          "The VMM's thread may be preempted between calculating a counter's value and writing it, "
          "and "
          "that time is lost.",
          "by-value with preemption before the writes alone: an error above 10 ms; continuo-freeze "
          "below 1 ms",
          &preempted_between},
    Claim{"s2-one-instant-is-essential", "S2.1", kUpton,
          "Counter and real time of one instant are essential for a precise migration.",
          "continuo-advance: the true error is inside its bound in every run, and outside in some "
          "where "
          "the two are read apart and taken for one instant",
          &one_instant},
    Claim{"s2-fits-the-heuristics", "S2.3", kUpton,
          "The offset control can be put into the existing synchronisation heuristics.",
          "offset-attribute: the masterclock stays and the vCPUs are at one value, in every run",
          &fits_the_heuristics},
    Claim{
        "s2-transparent-by-recipe", "S2.2", kUpton,
        "By the offsets a VMM can move a guest transparently, with the elapsed time in its "
        "counter.",
        "offset-attribute, between equal hosts and to one that scales: an error below 1 ms in both",
        &elapsed_needs_recipe},
    Claim{
        "s2-arm-one-value-for-all", "S2.4", kUpton,
        "On arm64 a counter's value goes to all vCPUs of the guest, as the architecture expects of "
        "its counters.",
        "the model of 6.1 (registers) and 6.12 (offset): no two vCPUs' counters differ",
        &arm_is_broadcast},
    Claim{"s2-trapping-costs-a-hundred-ns", "S2.7", kUpton,
          "Emulating the physical counter by a trap takes 148 to 152 ns instead of 53 to 54 ns.",
          "no simulation", &trap_cost},
};

}  // namespace

std::span<const Claim> idempotent_claims() {
    return kClaims;
}

}  // namespace continuo::sim
