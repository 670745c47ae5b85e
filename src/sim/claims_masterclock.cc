// Thread S3, 2020: what KVM makes of written TSCs, and what its masterclock is worth. Decided on
// the model of KVM itself, call by call.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "claim_guest.h"
#include "claim_trial.h"

namespace continuo::sim {

namespace {

using model::HostPlatform;
using model::KernelRules;
using model::KvmVm;

constexpr const char* kTosatti = "Marcelo Tosatti, 2020";
constexpr const char* kLevitsky = "Maxim Levitsky, 2020";

constexpr std::uint32_t kKhz = 2'000'000;
constexpr unsigned kVcpus = 4;
constexpr std::uint64_t kMicro = 1'000;
constexpr std::uint64_t kSecond = 1'000'000'000;

/// Writes a TSC to each vCPU in turn, `apart_ns` after the one before; `step` ticks more each time.
std::uint64_t skew_after_writes(const KernelRules& rules, std::uint64_t first, std::uint64_t step,
                                std::uint64_t apart_ns) {
    HostPlatform host{kKhz};
    host.counter = 500 * kSecond;
    KvmVm vm{host, rules, kVcpus};
    host.sleep_ns(10 * kSecond);
    for (unsigned v = 0; v < kVcpus; ++v) {
        (void)vm.host_write_msr(v, abi::kMSR_IA32_TSC, first + v * step);
        host.sleep_ns(apart_ns);
    }
    return skew_ticks(vm);
}

std::string ticks_text(std::uint64_t ticks) {
    return in_units(ticks / (kKhz / 1'000'000));
}

Ruling zeroes_are_synchronised(const Comparison&) {
    const std::uint64_t old_rules = skew_after_writes(KernelRules::linux(6, 1), 0, 0, 100 * kMicro);
    const std::uint64_t new_rules =
        skew_after_writes(KernelRules::linux(6, 12), 0, 0, 100 * kMicro);
    return ruling(
        old_rules == 0 && new_rules == 0,
        fmt::format("0 written to four vCPUs 100 us apart: they are {} apart on 6.1, {} on "
                    "6.12; as written they would be {}",
                    ticks_text(old_rules), ticks_text(new_rules), in_units(300 * kMicro)),
        "the vCPUs kept the distance of the writes");
}

Ruling values_are_guessed_at(const Comparison&) {
    // A guest whose vCPUs really are 50 us apart, restored value by value.
    constexpr std::uint64_t first = 100 * kSecond;
    constexpr std::uint64_t apart = 100'000;
    const KernelRules rules = KernelRules::linux(6, 12);
    const std::uint64_t near = skew_after_writes(rules, first, apart, kMicro);
    const std::uint64_t far = skew_after_writes(rules, first, 4 * kSecond, kMicro);
    return ruling(
        near == 0 && far >= 3 * 4 * kSecond - 4 * 2 * kMicro,
        fmt::format("values that are 50 us apart are made equal ({} apart after the "
                    "restore); values that are 2 s apart are taken as they are ({} apart)",
                    ticks_text(near), ticks_text(far)),
        "KVM took each value as it was written");
}

Ruling guest_writes_are_not_looked_at(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    boot(vm);
    const bool before = vm.masterclock();
    const std::uint64_t generation = vm.generation();
    (void)vm.guest_write_msr(1, abi::kMSR_IA32_TSC, vm.guest_tsc(1) + 2 * kSecond);
    enter_all(vm);
    const bool still = vm.masterclock();
    // The guest puts it back, 100 us late, as a guest that synchronises by values would.
    const std::uint64_t wanted = vm.guest_tsc(0);
    host.sleep_ns(100 * kMicro);
    (void)vm.guest_write_msr(1, abi::kMSR_IA32_TSC, wanted);
    enter_all(vm);
    const std::uint64_t left = skew_ticks(vm);
    return ruling(
        before && still && vm.generation() == generation && left != 0,
        fmt::format("a guest moves one TSC by 1 s: masterclock {}; it writes it back 100 us "
                    "late: {} apart, the generation is the same",
                    still ? "stays" : "is lost", ticks_text(left)),
        "KVM tracked what the guest wrote");
}

Ruling adjust_is_not_looked_at(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    boot(vm);
    const std::uint64_t generation = vm.generation();
    (void)vm.guest_write_msr(1, abi::kMSR_IA32_TSC_ADJUST, 200'000);
    enter_all(vm);
    const std::uint64_t skew = skew_ticks(vm);
    return ruling(
        skew == 200'000 && vm.masterclock() && vm.generation() == generation,
        fmt::format("TSC_ADJUST of one vCPU + 200000 ticks: {} apart, masterclock {}, no new "
                    "generation",
                    ticks_text(skew), vm.masterclock() ? "stays" : "is lost"),
        "a write of TSC_ADJUST took part in KVM's synchronisation");
}

Ruling stable_while_untouched(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    boot(vm);
    const std::uint64_t before = page_spread_ns(vm);
    (void)vm.guest_write_msr(1, abi::kMSR_IA32_TSC, vm.guest_tsc(1) + 2 * kSecond);
    enter_all(vm);
    const bool stable = (vm.page(1).flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0 &&
                        (vm.get_clock().flags & abi::kKVM_CLOCK_TSC_STABLE) != 0;
    const std::uint64_t after = page_spread_ns(vm);
    return ruling(
        before == 0 && stable && after > kSecond / 2,
        fmt::format("one page read on every vCPU: {} apart; after a guest moved one TSC by "
                    "1 s: {} apart, and both stable bits {}",
                    in_units(before), in_units(after), stable ? "stand" : "are gone"),
        "the stable bit went, or the page stayed right on every vCPU");
}

Ruling masterclock_when_all_match(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    boot(vm);
    const bool at_boot = vm.masterclock();
    (void)vm.host_write_msr(1, abi::kMSR_IA32_TSC, 1'000 * kSecond);
    enter_all(vm);
    const bool apart = vm.masterclock();
    for (unsigned v = 0; v < kVcpus; ++v)
        (void)vm.host_write_msr(v, abi::kMSR_IA32_TSC, 5'000 * kSecond);
    enter_all(vm);
    const bool again = vm.masterclock();
    const auto text = [](bool on) { return on ? "on" : "off"; };
    return ruling(
        at_boot && !apart && again,
        fmt::format("masterclock {} at boot, {} after one vCPU's TSC was set 1000 s away, {} "
                    "once all were set alike",
                    text(at_boot), text(apart), text(again)),
        "the masterclock does not follow whether the TSCs match");
}

/// Reads kvmclock on the vCPUs in turn, a tick apart: how often a read was below the one before.
struct ReadInTurn {
    unsigned reads = 0;
    unsigned backwards = 0;
    std::uint64_t worst_ns = 0;
};
ReadInTurn read_in_turn(KvmVm& vm, HostPlatform& host, model::KvmclockReader::Fallback fallback) {
    model::KvmclockReader reader{vm, fallback};
    ReadInTurn out;
    std::uint64_t last = 0;
    for (unsigned i = 0; i < 4'000; ++i) {
        host.counter += 2;
        const auto now = reader.read(i % kVcpus);
        if (!now) continue;
        ++out.reads;
        if (*now < last) {
            ++out.backwards;
            out.worst_ns = std::max(out.worst_ns, last - *now);
        }
        last = *now;
    }
    return out;
}

/// A guest on a host whose clocksource went from tsc to hpet: each vCPU's page was computed apart.
struct WithoutMasterclock {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    model::Random random{1};

    WithoutMasterclock() {
        boot(vm);
        host.sleep_ns(kSecond);
        host.is_tsc_clocksource = false;
        vm.clocksource_changed();
        // hpet is read through a bus: what the kernel's two readings are apart differs each time.
        host.take_time(&random, 2'000);
        enter_all(vm);
        host.take_time(nullptr, 0);
    }
};

Ruling one_pair_for_all(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
    boot(vm);
    const std::uint64_t with = own_page_spread_ns(vm);
    WithoutMasterclock without;
    const std::uint64_t apart = own_page_spread_ns(without.vm);
    return ruling(
        with == 0 && apart > 0 && !without.vm.masterclock(),
        fmt::format("kvmclock of four vCPUs at one instant: {} apart with the masterclock, "
                    "{} apart without",
                    in_units(with), in_units(apart)),
        "the pages' errors do not depend on the masterclock");
}

Ruling buggy_without(const Comparison&) {
    WithoutMasterclock plain;
    const ReadInTurn raw =
        read_in_turn(plain.vm, plain.host, model::KvmclockReader::Fallback::kNone);
    WithoutMasterclock guarded;
    const ReadInTurn kept =
        read_in_turn(guarded.vm, guarded.host, model::KvmclockReader::Fallback::kGlobalMaximum);
    return ruling(
        raw.backwards > 0 && kept.backwards == 0,
        fmt::format("reads in turn on four vCPUs without a masterclock: {} of {} below the "
                    "one before, by up to {}; with the compare-and-exchange {} of {}",
                    raw.backwards, raw.reads, in_units(raw.worst_ns), kept.backwards, kept.reads),
        "the pages alone were monotonic, or the workaround was not");
}

Ruling tuple_spares_adjust(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), 1};
    host.sleep_ns(10 * kSecond);
    constexpr std::uint64_t value = 1'000 * kSecond;
    (void)vm.host_write_msr(0, abi::kMSR_IA32_TSC, value);
    const std::uint64_t offset = vm.tsc_map(0).offset();
    host.sleep_ns(kSecond);
    (void)vm.host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, 12'345);
    const std::uint64_t moved = vm.tsc_map(0).offset() - offset;
    return ruling(moved != 0,
                  fmt::format("TSC_ADJUST written by the host 1 s after the TSC moves the guest's "
                              "counter by {} ticks",
                              moved),
                  "a host's write of TSC_ADJUST is only stored: time between the two writes costs "
                  "nothing, so one call for both spares nothing here");
}

/// Two vCPUs of equal counters look for warps as Linux does at hotplug: each takes a lock, compares
/// its counter with the last one seen, stores it. Between any two steps it may lose its processor.
Ruling starved_guest_warps(const Comparison&) {
    HostPlatform host{kKhz};
    KvmVm vm{host, KernelRules::linux(6, 12), 2};
    boot(vm);
    model::Random random{7};
    std::uint64_t last = 0;
    unsigned checks = 0;
    unsigned warps = 0;
    for (; checks < 20'000; ++checks) {
        const auto vcpu = static_cast<unsigned>(random.next() % 2);
        if (random.one_in(3))
            host.sleep_ns(static_cast<std::uint64_t>(random.of_any_size(100'000'000)));
        const std::uint64_t now = vm.guest_tsc(vcpu);
        if (random.one_in(3))
            host.sleep_ns(static_cast<std::uint64_t>(random.of_any_size(100'000'000)));
        if (now < last) ++warps;
        last = now;
        host.counter += 10;
    }
    return ruling(
        warps > 0,
        fmt::format("{} warps in {} checks under the lock, a third of them preempted for up "
                    "to 100 ms",
                    warps, checks),
        "the lock orders the reads, so preemption alone makes no warp of counters that "
        "agree; what a starved guest trips over must be another thing");
}

Ruling years(const Comparison&) {
    constexpr std::uint64_t mean_year_s = 31'556'952;  // 365.2425 days
    const std::uint64_t years = UINT64_MAX / kSecond / mean_year_s;
    return ruling(years >= 575 && years <= 590,
                  fmt::format("2^64 ns are {} years: to {}; signed, to {}", years, 1970 + years,
                              1970 + (UINT64_MAX >> 1) / kSecond / mean_year_s),
                  "64 bits do not hold that long");
}

constexpr std::array kClaims{
    Claim{
        "s3-zeroes-are-synchronised", "S3.3", kTosatti,
        "KVM's heuristics are there because TSCs are loaded one after the other, all with 0: every "
        "vCPU is to read the same value at all times.",
        "the model of 6.1 and of 6.12: 0 written to four vCPUs 100 us apart; no distance is left",
        &zeroes_are_synchronised},
    Claim{"s3-values-are-guessed-at", "S3.3", "Oliver Upton, quoted by Marcelo Tosatti, 2020",
          "Restoring by value leaves KVM to guess whether a write is an attempt to synchronise.",
          "the model of 6.12: values 50 us apart end up equal, values 2 s apart do not",
          &values_are_guessed_at},
    Claim{
        "s3-guest-writes-are-not-tracked", "S3.4", kLevitsky,
        "Since the guest's own TSC writes are not looked at any more, a guest that desynchronises "
        "its TSC keeps the masterclock, and one that writes similar values is not synchronised.",
        "the model: the masterclock stays, a write-back that is late leaves a distance, and no "
        "generation begins",
        &guest_writes_are_not_looked_at},
    Claim{"s3-adjust-does-not-synchronise", "S3.6", kLevitsky,
          "A write of TSC_ADJUST does not take part in KVM's synchronisation.",
          "the model: the counter moves by what was written; generation and masterclock stay",
          &adjust_is_not_looked_at},
    Claim{
        "s3-stable-while-untouched", "S3.4", kLevitsky,
        "KVM_CLOCK_TSC_STABLE promises that kvmclock is the same on all vCPUs only as long as the "
        "guest does not touch its TSC.",
        "the model: one page read on all vCPUs agrees before the guest moves a TSC, disagrees "
        "after, and both stable bits stand",
        &stable_while_untouched},
    Claim{"s3-masterclock-when-all-match", "S3.4", kLevitsky,
          "The masterclock is on only while roughly the same TSC was written to all vCPUs.",
          "the model: on at boot, off after one vCPU is set far away, on again once all are set "
          "alike",
          &masterclock_when_all_match},
    Claim{"s3-one-pair-for-all", "S3.4", kLevitsky,
          "One pair of host time and host TSC makes the random error of kvmclock the same on every "
          "vCPU.",
          "the model: what the vCPUs' pages say at one instant is equal with the masterclock, and "
          "not on a host that has lost it",
          &one_pair_for_all},
    Claim{
        "s3-buggy-without-it", "S3.5", kTosatti,
        "Without synchronised host TSCs and the masterclock, kvmclock goes backwards across vCPUs; "
        "the compare-and-exchange on every read is the workaround.",
        "the model without a masterclock: reads on vCPUs in turn go backwards with the pages "
        "alone, "
        "and never with the global value",
        &buggy_without},
    Claim{
        "s3-one-call-for-tsc-and-adjust", "S3.1", kTosatti,
        "TSC and TSC_ADJUST must be set by one call, or the time between the two writes pushes the "
        "TSC away from what is wanted.",
        "the model of 6.12: a host's write of TSC_ADJUST 1 s after that of the TSC moves the "
        "guest's counter",
        &tuple_spares_adjust},
    Claim{"s3-a-starved-guest-sees-warps", "S3.6", "Maxim Levitsky and Marcelo Tosatti, 2020",
          "A guest that can be interrupted anywhere sometimes fails its own check of TSC "
          "synchronisation at CPU hotplug.",
          "the model: two vCPUs of equal counters check for warps 20000 times with preemption "
          "between any two steps",
          &starved_guest_warps},
    Claim{"s3-64-bits-of-nanoseconds", "S3.10", kLevitsky,
          "64 bits of nanoseconds since 1970 hold about 580 years.", "arithmetic, in whole years",
          &years},
};

}  // namespace

std::span<const Claim> masterclock_claims() {
    return kClaims;
}

}  // namespace continuo::sim
