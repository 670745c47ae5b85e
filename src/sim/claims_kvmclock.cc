// Thread S4, 2015: what a guest may rely on of MSR_KVM_SYSTEM_TIME, what counting from zero broke,
// and the scheduler's clock that a guest makes instead.
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

constexpr const char* kKrcmar = "Radim Krcmar, 2015";
constexpr const char* kTosatti = "Marcelo Tosatti, 2015";

constexpr std::uint32_t kKhz = 2'000'000;
constexpr unsigned kVcpus = 4;
constexpr std::uint64_t kSecond = 1'000'000'000;

KernelRules rules(bool counts_from_zero) {
    KernelRules out = KernelRules::linux(6, 12);
    out.counts_from_zero = counts_from_zero;
    return out;
}

/// vCPU 0's guest writes the MSR again and again, 1 s apart: how far kvmclock fell back, at worst.
std::uint64_t fell_back_ns(bool counts_from_zero, std::uint32_t msr) {
    HostPlatform host{kKhz};
    KvmVm vm{host, rules(counts_from_zero), kVcpus};
    boot(vm, msr);
    std::uint64_t worst = 0;
    for (int i = 0; i < 10; ++i) {
        host.sleep_ns(kSecond);
        const std::uint64_t before = own_page_ns(vm, 0);
        (void)vm.guest_write_msr(0, msr, 0x1000 | abi::kKVM_MSR_ENABLED);
        enter_all(vm);
        const std::uint64_t after = own_page_ns(vm, 0);
        if (after < before) worst = std::max(worst, before - after);
    }
    return worst;
}

Ruling rewriting_breaks(const Comparison&) {
    const std::uint64_t zero = fell_back_ns(true, abi::kMSR_KVM_SYSTEM_TIME_NEW);
    return ruling(zero > kSecond / 2,
                  fmt::format("a guest that writes the MSR every second: kvmclock falls back by {}",
                              in_units(zero)),
                  "time went on across the writes");
}

Ruling rewriting_was_allowed(const Comparison&) {
    const std::uint64_t by_new = fell_back_ns(false, abi::kMSR_KVM_SYSTEM_TIME_NEW);
    const std::uint64_t by_old = fell_back_ns(false, abi::kMSR_KVM_SYSTEM_TIME);
    constexpr std::uint64_t an_update_ns = 1'000;  // what a masterclock update moves kvmclock by
    return ruling(
        by_new < an_update_ns && by_old < an_update_ns,
        fmt::format("without counting from zero, ten writes 1 s apart: kvmclock falls back "
                    "by {} with the new MSR, {} with the old one",
                    in_units(by_new), in_units(by_old)),
        "a write of the MSR moved the time");
}

Ruling old_msr_alone_is_spared(const Comparison&) {
    // The condition: a guest of the old MSR never counts from zero.
    const std::uint64_t by_old = fell_back_ns(false, abi::kMSR_KVM_SYSTEM_TIME);
    const std::uint64_t by_new = fell_back_ns(true, abi::kMSR_KVM_SYSTEM_TIME_NEW);
    return ruling(
        by_old < kSecond / 2 && by_new > kSecond / 2,
        fmt::format("counting from zero for the new MSR alone: a guest of the old one falls "
                    "back by {}, one of the new one that writes as often by {}",
                    in_units(by_old), in_units(by_new)),
        "the condition on the old MSR spares both guests, or neither");
}

/// vCPU 0 is unplugged after 100 s and comes back: how far the others' kvmclock fell back.
std::uint64_t fell_back_at_replug_ns(bool counts_from_zero) {
    HostPlatform host{kKhz};
    KvmVm vm{host, rules(counts_from_zero), kVcpus};
    boot(vm);
    host.sleep_ns(100 * kSecond);
    vm.exit(0);
    vm.reset_vcpu(0);
    host.sleep_ns(kSecond);
    const std::uint64_t before = own_page_ns(vm, 1);
    vm.enter(0);
    (void)vm.guest_write_msr(0, abi::kMSR_KVM_SYSTEM_TIME_NEW, 0x1000 | abi::kKVM_MSR_ENABLED);
    enter_all(vm);
    // The other vCPUs' pages are written when the kernel's work item comes round.
    host.sleep_ns(kSecond);
    vm.run_work(host.base_ns(host.tsc(0)));
    enter_all(vm);
    const std::uint64_t after = own_page_ns(vm, 1);
    return after < before ? before - after : 0;
}

Ruling replug_breaks(const Comparison&) {
    const std::uint64_t zero = fell_back_at_replug_ns(true);
    const std::uint64_t today = fell_back_at_replug_ns(false);
    return ruling(zero > kSecond && today < 1'000,
                  fmt::format("vCPU 0 comes back after 101 s: vCPU 1's kvmclock falls back by {}; "
                              "without counting from zero by {}",
                              in_units(zero), in_units(today)),
                  "the vCPU that stayed saw time go on");
}

/// A guest whose vCPUs' pages differ by up to a microsecond or so, at boot.
struct Imprecise {
    HostPlatform host{kKhz};
    model::Random random;
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};

    explicit Imprecise(std::uint64_t seed) : random{seed} {
        host.is_tsc_clocksource = false;
        host.take_time(&random, 2'000);
        boot(vm);
        host.take_time(nullptr, 0);
    }
};

struct SchedReads {
    unsigned reads = 0;
    unsigned absurd = 0;  ///< more than a year since boot
    unsigned backwards = 0;
};
SchedReads sched_reads(model::SchedClock::Underflow underflow) {
    SchedReads out;
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
        Imprecise guest{seed};
        model::KvmclockReader reader{guest.vm, model::KvmclockReader::Fallback::kNone};
        model::SchedClock clock{reader, 0, underflow};
        std::array<std::uint64_t, kVcpus> last{};
        for (unsigned i = 0; i < 400; ++i) {
            const unsigned vcpu = i % kVcpus;
            guest.host.counter += 2;
            const auto now = clock.read(vcpu);
            if (!now) continue;
            ++out.reads;
            if (*now > 31'556'952 * kSecond) ++out.absurd;
            if (*now < last[vcpu]) ++out.backwards;
            last[vcpu] = *now;
        }
    }
    return out;
}

Ruling underflow(const Comparison&) {
    const SchedReads open = sched_reads(model::SchedClock::Underflow::kWraps);
    const SchedReads guarded = sched_reads(model::SchedClock::Underflow::kGuarded);
    return ruling(open.absurd > 0 && guarded.absurd == 0,
                  fmt::format("50 boots with imprecise pages: {} of {} reads centuries ahead; with "
                              "the condition {} of {}",
                              open.absurd, open.reads, guarded.absurd, guarded.reads),
                  "no vCPU was behind vCPU 0 at boot, or the condition did not catch it");
}

/// The distances between vCPUs' scheduler clocks do not depend on when the constant was taken.
Ruling any_constant_will_do(const Comparison&) {
    std::uint64_t worst = 0;
    unsigned compared = 0;
    for (std::uint64_t seed = 1; seed <= 50; ++seed) {
        Imprecise guest{seed};
        model::KvmclockReader reader{guest.vm, model::KvmclockReader::Fallback::kNone};
        model::SchedClock early{reader, 0, model::SchedClock::Underflow::kWraps};
        guest.host.sleep_ns(seed * 1'000);
        model::SchedClock late{reader, 1, model::SchedClock::Underflow::kWraps};
        guest.host.sleep_ns(kSecond);
        for (unsigned v = 1; v < kVcpus; ++v) {
            const std::uint64_t apart_early = *early.read(v) - *early.read(0);
            const std::uint64_t apart_late = *late.read(v) - *late.read(0);
            ++compared;
            worst = std::max(worst, apart_early == apart_late ? 0 : std::uint64_t{1});
        }
    }
    return ruling(worst == 0 && compared > 0,
                  fmt::format("two constants, taken on two vCPUs at two instants: the distances "
                              "between vCPUs' clocks differ in {} of {} pairs",
                              worst == 0 ? 0 : compared, compared),
                  "the choice of the constant shows in the distance between two vCPUs");
}

Ruling no_stable_bit_needed(const Comparison&) {
    const SchedReads guarded = sched_reads(model::SchedClock::Underflow::kGuarded);
    return ruling(guarded.reads > 0 && guarded.backwards == 0,
                  fmt::format("without the stable bit: {} of {} reads of the scheduler's clock are "
                              "below the vCPU's one before",
                              guarded.backwards, guarded.reads),
                  "on one vCPU the clock ran backwards");
}

/// The host goes from tsc to hpet under a running guest: what reads in turn, a tick apart, see.
struct Loss {
    unsigned raw_backwards = 0;
    unsigned kept_backwards = 0;
    unsigned shifted_backwards = 0;
    unsigned reads = 0;
};
Loss clocksource_lost() {
    Loss out;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        HostPlatform host{kKhz};
        model::Random random{seed};
        KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};
        boot(vm);
        host.sleep_ns(kSecond);
        model::KvmclockReader kept{vm};
        model::KvmclockReader raw{vm, model::KvmclockReader::Fallback::kNone};
        model::SchedClock shifted{raw, 0, model::SchedClock::Underflow::kGuarded};
        host.is_tsc_clocksource = false;
        vm.clocksource_changed();
        host.take_time(&random, 2'000);
        enter_all(vm);
        host.take_time(nullptr, 0);
        std::uint64_t last_raw = 0;
        std::uint64_t last_kept = 0;
        std::uint64_t last_shifted = 0;
        for (unsigned i = 0; i < 400; ++i) {
            host.counter += 2;
            const std::uint64_t of_page = raw.read(i % kVcpus).value_or(last_raw);
            const std::uint64_t of_max = kept.read(i % kVcpus).value_or(last_kept);
            const std::uint64_t of_sched = shifted.read(i % kVcpus).value_or(last_shifted);
            ++out.reads;
            out.raw_backwards += of_page < last_raw ? 1 : 0;
            out.kept_backwards += of_max < last_kept ? 1 : 0;
            out.shifted_backwards += of_sched < last_shifted ? 1 : 0;
            last_raw = of_page;
            last_kept = of_max;
            last_shifted = of_sched;
        }
    }
    return out;
}

Ruling monotonicity_can_fail(const Comparison&) {
    const Loss loss = clocksource_lost();
    return ruling(loss.raw_backwards > 0 && loss.kept_backwards == 0,
                  fmt::format("tsc to hpet under 20 running guests: {} of {} reads in turn go "
                              "backwards by the pages alone, {} with the compare-and-exchange",
                              loss.raw_backwards, loss.reads, loss.kept_backwards),
                  "the pages stayed monotonic across vCPUs, or the workaround did not hold");
}

Ruling constant_adds_nothing(const Comparison&) {
    const Loss loss = clocksource_lost();
    return ruling(
        loss.raw_backwards > 0 && loss.shifted_backwards <= loss.raw_backwards,
        fmt::format("in the same runs: backwards {} times with the constant taken off, {} "
                    "times without",
                    loss.shifted_backwards, loss.raw_backwards),
        "taking the constant off made reads go backwards that did not before");
}

constexpr std::array kClaims{
    Claim{"s4-rewriting-breaks", "S4.2", kKrcmar,
          "COUNTS_FROM_ZERO breaks guests that write MSR_KVM_SYSTEM_TIME more than once: it makes "
          "the "
          "write a one-shot initialiser.",
          "the model with COUNTS_FROM_ZERO: the guest writes the MSR every second, and kvmclock "
          "falls "
          "back",
          &rewriting_breaks},
    Claim{"s4-rewriting-was-allowed", "S4.1", kKrcmar,
          "Before it a guest could write the MSR as much as it liked while time went on.",
          "the model without it, new and old MSR: kvmclock falls back by less than 1 us",
          &rewriting_was_allowed},
    Claim{
        "s4-the-old-msr-is-not-the-line", "S4.2", kKrcmar,
        "To switch it off only for guests of the old MSR presumes that no other guest was broken.",
        "the model: a guest of the new MSR that writes as often is broken, one of the old is not",
        &old_msr_alone_is_spared},
    Claim{"s4-replug-of-vcpu-0", "S4.4", kKrcmar,
          "With COUNTS_FROM_ZERO, unplugging vCPU 0 and plugging it in again does not work well.",
          "the model: vCPU 0 comes back after 101 s; vCPU 1's kvmclock falls back with it, not "
          "without",
          &replug_breaks},
    Claim{"s4-any-constant-will-do", "S4.3", kKrcmar,
          "It does not matter that the first read is a race: all vCPUs take off the same constant.",
          "the model: constants taken on different vCPUs at different instants leave the same "
          "distances between vCPUs",
          &any_constant_will_do},
    Claim{"s4-no-stable-bit-needed", "S4.3", kTosatti,
          "A stable scheduler's clock in the guest does not depend on the stable bit.",
          "the model without a masterclock: on no vCPU does the scheduler's clock run backwards",
          &no_stable_bit_needed},
    Claim{"s4-unsigned-underflow", "S4.3", kKrcmar,
          "Without the stable bit a vCPU may be behind vCPU 0 at initialisation, and the unsigned "
          "difference underflows; a condition guards it.",
          "the model, 50 boots with imprecise pages: reads centuries ahead without the condition, "
          "none with it",
          &underflow},
    Claim{
        "s4-monotonicity-can-fail", "S4.5", kTosatti,
        "Monotonicity across vCPUs can fail at run time, when the host's clocksource goes from tsc "
        "to hpet.",
        "the model: reads on vCPUs in turn go backwards by the pages alone",
        &monotonicity_can_fail},
    Claim{"s4-the-constant-adds-nothing", "S4.3", kKrcmar,
          "Taking a constant off every read relies on monotonicity no more than the old code did.",
          "the same runs: no more reads go backwards with the constant than without",
          &constant_adds_nothing},
};

}  // namespace

std::span<const Claim> kvmclock_claims() {
    return kClaims;
}

}  // namespace continuo::sim
