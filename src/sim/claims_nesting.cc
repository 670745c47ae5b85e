// Thread S0, 2017: the clocks of an L2 whose hypervisor is a guest itself, and what migration asks
// of the kernel. Decided on the model of KVM, one VM on another's clocks.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "claim_guest.h"
#include "claim_trial.h"
#include "continuo/model/guest_platform.h"

namespace continuo::sim {

namespace {

using model::GuestClocksource;
using model::GuestPlatform;
using model::HostPlatform;
using model::KernelRules;
using model::KvmVm;

constexpr const char* kBonzini = "Paolo Bonzini, 2017";
constexpr const char* kGleixner = "Thomas Gleixner, 2017";

constexpr std::uint32_t kKhz = 2'095'078;
constexpr unsigned kVcpus = 2;
constexpr std::uint64_t kSecond = 1'000'000'000;

KernelRules l1_rules(bool by_proposal) {
    KernelRules rules = KernelRules::linux(6, 12);
    rules.pvclock_vclock = by_proposal;
    return rules;
}

/// L0, an L1 that keeps its time by kvmclock, and an L2 in it. `l1_khz`: 0 is the host's.
struct Nest {
    HostPlatform host;
    KvmVm l1;
    GuestPlatform l1_kernel;
    KvmVm l2;

    explicit Nest(bool by_proposal, std::uint32_t host_khz = kKhz, std::uint32_t l1_khz = 0)
        : host{host_khz},
          l1{started(host, l1_khz)},
          l1_kernel{l1, l1_rules(by_proposal), GuestClocksource::kKvmclock},
          l2{l1_kernel, l1_rules(by_proposal), kVcpus} {
        l1_kernel.attach(l2);
        enter_l2();
        boot(l2);
        enter_l2();
    }
    /// An L2 elsewhere holds this object's members by reference.
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;

    void enter_l2() {
        for (int round = 0; round < 3; ++round)
            for (unsigned v = 0; v < kVcpus; ++v) {
                l2.exit(v);
                l1_kernel.enter(l2, v);
            }
    }

  private:
    static KvmVm started(HostPlatform& host, std::uint32_t khz) {
        host.sleep_ns(kSecond);
        KvmVm vm{host, KernelRules::linux(6, 12).with_scaling(48), kVcpus};
        if (khz != 0)
            for (unsigned v = 0; v < kVcpus; ++v)
                (void)vm.set_tsc_khz(v, khz);
        boot(vm);
        return vm;
    }
};

Ruling update_before_entry(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    boot(vm);
    for (unsigned v = 0; v < kVcpus; ++v)
        vm.exit(v);
    abi::kvm_clock_data data{};
    data.clock = 1'000 * kSecond;
    (void)vm.set_clock(data);
    const std::uint64_t before = own_page_ns(vm, 0);
    unsigned stale = 0;
    for (unsigned v = 0; v < kVcpus; ++v) {
        vm.enter(v);
        stale += own_page_ns(vm, v) < data.clock ? 1U : 0U;
    }
    return ruling(
        before < data.clock && stale == 0,
        fmt::format("after KVM_SET_CLOCK to 1000 s the page says {}; at their entries {} of {} "
                    "vCPUs read less than 1000 s",
                    in_units(before), stale, kVcpus),
        "a vCPU entered with the page of before");
}

Ruling ioctls_suffice(const Comparison& comparison) {
    std::uint64_t broken = 0;
    const Tally all = everywhere(comparison, kAdvance);
    for (const Invariant which : {Invariant::kCounterPerVcpu, Invariant::kCounterAcrossVcpus,
                                  Invariant::kKvmclockMonotonic, Invariant::kMonotonicNoStep})
        broken += all.of(which).broken;
    if (all.moved == 0) return undecided("no run of continuo-advance moved a VM");
    return ruling(
        broken == 0,
        fmt::format("{} moves by ioctls on a stopped VM alone: a counter, kvmclock or MONOTONIC "
                    "ran backwards in {}",
                    all.moved, broken),
        "some move broke a clock that nothing but more orchestration could save");
}

Ruling needs_the_pvclock_source(const Comparison&) {
    Nest today{false};
    Nest proposed{true};
    const auto text = [](const Nest& nest) {
        return nest.l2.masterclock() ? "has a masterclock" : "has no masterclock";
    };
    return ruling(!today.l2.masterclock() && proposed.l2.masterclock(),
                  fmt::format("L1 on kvmclock: L2 {} with today's rules, and {} where "
                              "cycles go to ns by the page",
                              text(today), text(proposed)),
                  "the source that L1 keeps its time by makes no difference to L2");
}

Ruling needs_a_notifier(const Comparison&) {
    Nest nest{true};
    const bool before = model::has_stale_page(nest.l2);
    nest.host.is_tsc_clocksource = false;
    nest.l1.clocksource_changed();
    enter_all(nest.l1);
    const bool unheard = model::has_stale_page(nest.l2);
    (void)nest.l1_kernel.look();
    nest.enter_l2();
    const bool heard = model::has_stale_page(nest.l2);
    const auto text = [](bool stale) { return stale ? "stale" : "not stale"; };
    return ruling(
        !before && unheard && !heard,
        fmt::format("L0 goes from tsc to hpet: L2's page is {} before, {} until L1 hears of "
                    "it, {} once the change is passed on",
                    text(before), text(unheard), text(heard)),
        "L2 heard of the change without a notifier, or not with one");
}

Ruling same_frequency(const Comparison&) {
    Nest plain{true};
    Nest scaled{true, kKhz, 1'500'000};
    const std::uint32_t l1 = scaled.l1.tsc_khz(0);
    const std::uint32_t l2 = scaled.l2.tsc_khz(0);
    const std::uint32_t same = plain.l2.tsc_khz(0);
    constexpr std::uint32_t truncated_khz = 1;
    const auto near = [](std::uint32_t a, std::uint32_t b) {
        return std::max(a, b) - std::min(a, b) <= truncated_khz;
    };
    return ruling(
        near(same, kKhz) && near(l1, l2),
        fmt::format("on a host of {} kHz: L2 has {} kHz; under an L1 of {} kHz it has {} kHz", kKhz,
                    same, l1, l2),
        "L2's frequency is not L1's, to the kHz that Linux truncates");
}

/// What every move does: offsets and kvmclock at one instant, on whatever is beneath.
struct Carried {
    std::uint64_t tsc_off_ticks = 0;
    std::uint64_t kvmclock_off_ns = 0;
};
Carried carry(KvmVm& from, model::Platform& platform_from, KvmVm& to,
              model::Platform& platform_to) {
    Carried out;
    std::array<std::uint64_t, kVcpus> tsc{};
    for (unsigned v = 0; v < kVcpus; ++v) {
        tsc[v] = from.guest_tsc(v);
        from.exit(v);
    }
    const abi::kvm_clock_data clock = from.get_clock();
    (void)platform_from;
    boot(to);
    for (unsigned v = 0; v < kVcpus; ++v)
        to.exit(v);
    for (unsigned v = 0; v < kVcpus; ++v)
        (void)to.set_tsc_offset(v, tsc[v] - platform_to.tsc(v));
    abi::kvm_clock_data set{};
    set.clock = clock.clock;
    (void)to.set_clock(set);
    enter_all(to);
    for (unsigned v = 0; v < kVcpus; ++v) {
        const std::uint64_t off = to.guest_tsc(v) - tsc[v];
        out.tsc_off_ticks = std::max(out.tsc_off_ticks, std::min(off, 0 - off));
        const std::uint64_t ns = own_page_ns(to, v) - clock.clock;
        out.kvmclock_off_ns = std::max(out.kvmclock_off_ns, std::min(ns, 0 - ns));
    }
    return out;
}

bool carried_well(const Carried& carried) {
    return carried.tsc_off_ticks == 0 && carried.kvmclock_off_ns <= 1'000;
}

std::string carried_text(const Carried& carried) {
    return fmt::format("its counters go on {} ticks off, kvmclock {}", carried.tsc_off_ticks,
                       in_units(carried.kvmclock_off_ns));
}

Ruling to_another_l1(const Comparison&) {
    Nest here{true};
    Nest there{true};
    here.host.sleep_ns(50 * kSecond);
    KvmVm moved{there.l1_kernel, l1_rules(true), kVcpus};
    there.l1_kernel.attach(moved);
    const Carried carried = carry(here.l2, here.l1_kernel, moved, there.l1_kernel);
    return ruling(carried_well(carried),
                  "L2 to another L1 by the same calls: " + carried_text(carried),
                  "the calls that carry a guest of a host do not carry an L2");
}

Ruling to_a_host(const Comparison&) {
    Nest here{true};
    here.host.sleep_ns(50 * kSecond);
    HostPlatform metal{kKhz};
    KvmVm moved{metal, KernelRules::linux(6, 12), kVcpus};
    const Carried carried = carry(here.l2, here.l1_kernel, moved, metal);
    return ruling(carried_well(carried),
                  "L2 to a physical host by the same calls: " + carried_text(carried),
                  "the calls that carry a guest of a host do not carry an L2 to one");
}

/// L1 with a live L2 inside goes to a host of another frequency, which scales; L2 is not touched.
Ruling l1_with_a_live_l2(const Comparison&) {
    Nest nest{true};
    nest.host.sleep_ns(50 * kSecond);
    std::array<std::uint64_t, kVcpus> before{};
    for (unsigned v = 0; v < kVcpus; ++v)
        before[v] = nest.l2.guest_tsc(v);
    const std::uint64_t clock = own_page_ns(nest.l2, 0);
    constexpr std::uint32_t faster_khz = 2'593'907;
    HostPlatform faster{faster_khz};
    faster.sleep_ns(7 * kSecond);
    KvmVm l1{faster, KernelRules::linux(6, 12).with_scaling(48), kVcpus};
    for (unsigned v = 0; v < kVcpus; ++v) {
        (void)l1.set_tsc_khz(v, kKhz);
        const std::uint64_t value = nest.l1.guest_tsc(v);
        (void)l1.set_tsc_offset(v, value - l1.tsc_map(v).wrap_scale(faster.tsc(v)));
    }
    const std::uint64_t l1_clock = nest.l1.get_clock().clock;
    boot(l1);
    abi::kvm_clock_data set{};
    set.clock = l1_clock;
    (void)l1.set_clock(set);
    enter_all(l1);
    nest.l1_kernel.rebind(l1);
    (void)nest.l1_kernel.look();
    nest.enter_l2();
    std::uint64_t off = 0;
    for (unsigned v = 0; v < kVcpus; ++v) {
        const std::uint64_t by = nest.l2.guest_tsc(v) - before[v];
        off = std::max(off, std::min(by, 0 - by));
    }
    const std::uint64_t moved = own_page_ns(nest.l2, 0) - clock;
    const std::uint64_t clock_off = std::min(moved, 0 - moved);
    // And a second later it has gone on for a second.
    const std::uint64_t then = own_page_ns(nest.l2, 0);
    faster.sleep_ns(kSecond);
    const std::uint64_t a_second = own_page_ns(nest.l2, 0) - then;
    const std::uint64_t rate_off = std::max(a_second, kSecond) - std::min(a_second, kSecond);
    return ruling(
        off <= 1 && clock_off <= 2'000 && rate_off <= 2'000,
        fmt::format("L1 moves from 2.1 to 2.6 GHz with a live L2: L2's counters are {} ticks "
                    "off, its kvmclock {}, and {} a second later",
                    off, in_units(clock_off), in_units(rate_off)),
        "L2's clocks did not come along with L1's");
}

constexpr std::array kClaims{
    Claim{"s0-updated-before-the-entry", "S0.1", kBonzini,
          "KVM_SET_CLOCK triggers an update of kvmclock that is processed before the guest is "
          "entered.",
          "the model: the page is old after the call, and no vCPU reads less than the value at its "
          "entry",
          &update_before_entry},
    Claim{
        "s0-ioctls-suffice", "S0.1", kBonzini,
        "Live migration needs no orchestration with the host kernel: stop, get, write, read, set, "
        "resume.",
        "continuo-advance in every scenario of the comparison: no counter, no kvmclock and no "
        "MONOTONIC runs backwards",
        &ioctls_suffice},
    Claim{"s0-l2-needs-the-pvclock-source", "S0.3", kBonzini,
          "A hypervisor that runs on kvmclock itself can give its guest a stable kvmclock once it "
          "reads "
          "its own cycles by the pvclock page and not only by the TSC.",
          "the model, L2 on L1 on L0: no masterclock with today's rules, one with the proposal's",
          &needs_the_pvclock_source},
    Claim{"s0-needs-a-notifier", "S0.4", kBonzini,
          "Nested virtualisation needs a notifier for changes of the clocksource on top.",
          "the model: after L0 has lost its TSC clocksource L2's page is stale until L1 is told",
          &needs_a_notifier},
    Claim{"s0-l2-has-l1s-frequency", "S0.6", kGleixner,
          "The TSC frequency simply goes down to L2: it is L1's.",
          "the model, with and without scaling beneath L1: equal to 1 kHz", &same_frequency},
    Claim{"s0-l2-to-another-l1", "S0.6", kGleixner, "An L2 goes to another L1 by the same scheme.",
          "the model: offsets and KVM_SET_CLOCK as for any guest; counters exact, kvmclock within "
          "1 us",
          &to_another_l1},
    Claim{"s0-l2-to-a-host", "S0.6", kGleixner, "An L2 goes to a physical host by the same scheme.",
          "the model: the same, on a host", &to_a_host},
    Claim{"s0-l1-with-a-live-l2", "S0.6", kGleixner,
          "An L1 with an L2 inside can move too: the freeze and the new frequency are passed on to "
          "L2.",
          "the model: L1 moves to a host of another frequency that scales, L2 is not touched; its "
          "counters within a tick, kvmclock within 2 us, then and a second later",
          &l1_with_a_live_l2},
};

}  // namespace

std::span<const Claim> nesting_claims() {
    return kClaims;
}

}  // namespace continuo::sim
