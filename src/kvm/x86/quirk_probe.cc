// The experiments behind the quirk table that doctor does not make anyway: each on VMs of its own,
// each with one figure. What is read exactly is read through the TSC offset, which the experiments
// therefore need.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "continuo/abi/cpuid.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/abi/pvclock.h"
#include "continuo/kvm/counter.h"
#include "continuo/kvm/quirk_table.h"
#include "continuo/kvm/settle.h"
#include "probe_vm.h"

namespace continuo::kvm {

namespace {

using abi::pvclock_vcpu_time_info;
using std::chrono::milliseconds;
using time::Count;
using time::GuestCounter;
using time::Instant;
using time::Kvmclock;
using time::PvclockLine;

/// Far outside of the second within which KVM takes a write for an attempt to synchronise.
constexpr std::uint64_t kFar = std::uint64_t{1} << 40;
/// Well inside of it.
constexpr std::uint64_t kShortMs = 300;
/// Between two writes, outside of it.
constexpr std::uint64_t kLateMs = 1'200;

struct Host {
    const System& system;
    const HostClock& clock;

    std::uint64_t ticks(std::uint64_t ms) const { return clock.tsc_khz() * ms; }
};

using Outcome = Result<QuirkEffect>;

QuirkEffect effect(bool seen, std::int64_t figure, std::string_view unit, std::string evidence) {
    return {{}, seen, std::move(evidence), figure, unit};
}

QuirkEffect untried(std::string why) {
    return {{}, std::nullopt, std::move(why), {}, {}};
}

/// A probe whose failures wait: each step is skipped after the first that failed.
class Probe {
  public:
    static Result<Probe> make(const Host& host, std::size_t vcpus, bool pages = false) {
        auto vm = ProbeVm::create(host.system, vcpus);
        if (!vm) return tl::unexpected(vm.error());
        Probe probe{host, std::move(*vm), vcpus};
        for (std::size_t i = 0; pages && i < vcpus; ++i)
            probe.need(probe.vm_->enable_pvclock(i));
        if (pages) probe.settle();
        return probe;
    }

    const Status& status() const { return status_; }
    ProbeVm& vm() { return *vm_; }
    void need(Status done) {
        if (status_ && !done) status_ = std::move(done);
    }
    template <class T>
    T need(Result<T> value, T instead = {}) {
        if (value) return *value;
        if (status_) status_ = tl::unexpected(value.error());
        return instead;
    }

    std::uint64_t offset(std::size_t i) { return need(vm_->vcpu(i).tsc_offset()); }
    void set_offset(std::size_t i, std::uint64_t value) {
        if (status_) need(vm_->vcpu(i).set_tsc_offset(value));
    }
    void write_tsc(std::size_t i, std::uint64_t value) {
        if (status_) need(vm_->vcpu(i).set_msr(abi::kMSR_IA32_TSC, value));
    }
    /// How far vCPU 1's counter is ahead of vCPU 0's, exactly.
    std::int64_t skew() { return static_cast<std::int64_t>(offset(1) - offset(0)); }

    /// Twice: what a later vCPU's update makes stale is written again.
    void settle() {
        for (std::size_t i = 0; status_ && i < 2 * vcpus_; ++i)
            need(settle_vcpu(vm_->vcpu(i % vcpus_)));
    }
    kvm_clock_data clock() { return need(vm_->vm().get_clock()); }
    void set_clock(const kvm_clock_data& data) {
        if (status_) need(vm_->vm().set_clock(data));
    }
    pvclock_vcpu_time_info page(std::size_t i) {
        return need(vm_->memory().read_object<pvclock_vcpu_time_info>(vm_->pvclock_gpa(i)));
    }
    bool stable_by_page(std::size_t i) {
        return (page(i).flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0;
    }
    bool stable() { return (clock().flags & abi::kKVM_CLOCK_TSC_STABLE) != 0; }

    /// How far kvmclock's line moved from one reading of KVM_GET_CLOCK to the next; both need
    /// host_tsc. Within 1 ns.
    std::int64_t moved_ns(const kvm_clock_data& from, const kvm_clock_data& to) const {
        const PvclockLine line{Count<GuestCounter>::from_raw(from.host_tsc),
                               Instant<Kvmclock>::from_raw(from.clock),
                               time::PvclockScale::from_hz(host_.clock.frequency())};
        const auto expected = line.at(Count<GuestCounter>::from_raw(to.host_tsc));
        return (Instant<Kvmclock>::from_raw(to.clock) - expected).raw();
    }
    /// What the page of a vCPU says at a host counter value. Within 1 ns.
    Instant<Kvmclock> page_at(std::size_t i, std::uint64_t host_tsc) {
        const auto line = abi::pvclock_line(page(i));
        if (!line) {
            need(Status{state::fail(state::ErrorCode::kKernel, "pvclock page",
                                    "its shift is one that KVM does not publish")});
            return {};
        }
        return line->at(Count<GuestCounter>::from_raw(host_tsc + offset(i)));
    }

  private:
    Probe(const Host& host, std::unique_ptr<ProbeVm> vm, std::size_t vcpus)
        : host_{host}, vm_{std::move(vm)}, vcpus_{vcpus} {}

    Host host_;
    std::unique_ptr<ProbeVm> vm_;
    std::size_t vcpus_;
    Status status_{};
};

/// Makes the probe, runs the experiment on it, and reports the first step that failed.
template <class Experiment>
Outcome with_probe(const Host& host, std::size_t vcpus, bool pages, Experiment&& experiment) {
    auto probe = Probe::make(host, vcpus, pages);
    if (!probe) return tl::unexpected(probe.error());
    QuirkEffect seen = experiment(*probe);
    if (!probe->status()) return tl::unexpected(probe->status().error());
    return seen;
}

// ---- Writes of the TSC ----

Outcome sequential_writes_snap(const Host& host) {
    return with_probe(host, 2, false, [&](Probe& probe) {
        const auto ahead = static_cast<std::int64_t>(host.ticks(kShortMs));
        probe.write_tsc(0, kFar);
        probe.write_tsc(1, kFar + host.ticks(kShortMs));
        const std::int64_t skew = probe.skew();
        return effect(
            skew < ahead / 3, skew - ahead, "ticks",
            fmt::format("vCPU 1 was {} ticks (0.3 s) ahead at the save and is {} ahead restored",
                        ahead, skew));
    });
}

Outcome late_writes_skew(const Host& host) {
    return with_probe(host, 2, false, [&](Probe& probe) {
        probe.write_tsc(0, kFar);
        std::this_thread::sleep_for(milliseconds{kLateMs});
        probe.write_tsc(1, kFar);
        const std::int64_t skew = probe.skew();
        probe.settle();
        const bool stable = probe.stable();
        const auto second = static_cast<std::int64_t>(host.ticks(1000));
        return effect(-skew > second && !stable, skew, "ticks",
                      fmt::format("one value, 1.2 s apart: vCPU 1 is {} ticks behind, masterclock "
                                  "{}",
                                  -skew, stable ? "on" : "off"));
    });
}

Outcome zero_snaps(const Host& host) {
    return with_probe(host, 2, false, [&](Probe& probe) {
        probe.write_tsc(0, host_counter().raw() + kFar);
        probe.write_tsc(1, 0);
        const std::int64_t skew = probe.skew();
        return effect(skew == 0, skew, "ticks",
                      fmt::format("wrote 0; the vCPU is {} ticks from its neighbour", skew));
    });
}

Outcome refused_khz_sticks(const Host& host) {
    if (host.clock.scaling_frac_bits) return untried("this host scales: it refuses nothing");
    return with_probe(host, 1, false, [&](Probe& probe) {
        Vcpu& vcpu = probe.vm().vcpu(0);
        const std::uint32_t before = probe.need(vcpu.tsc_khz());
        const bool refused = !vcpu.set_tsc_khz(before / 2);
        const std::uint32_t after = probe.need(vcpu.tsc_khz());
        return effect(refused && after != before, after, "kHz",
                      fmt::format("{} kHz is {}; KVM_GET_TSC_KHZ says {} then, {} before",
                                  before / 2, refused ? "refused" : "taken", after, before));
    });
}

// ---- KVM_GET_CLOCK handed back ----

Outcome handed_back(const Host& host, std::uint32_t keep, bool forward) {
    return with_probe(host, 1, false, [&](Probe& probe) {
        std::array<std::int64_t, 31> moved{};
        probe.settle();
        for (std::int64_t& ns : moved) {
            const kvm_clock_data before = probe.clock();
            kvm_clock_data back = before;
            back.flags &= keep;
            probe.set_clock(back);
            ns = probe.moved_ns(before, probe.clock());
        }
        std::sort(moved.begin(), moved.end());
        const std::int64_t median = moved[moved.size() / 2];
        return effect(forward ? median > 1 : median < -1, median, "ns",
                      fmt::format("kvmclock moved by {:+} ns (from {:+} to {:+})", median,
                                  moved.front(), moved.back()));
    });
}

Outcome handed_back_plain(const Host& host) {
    return handed_back(host, 0, false);
}

Outcome handed_back_whole(const Host& host) {
    return handed_back(host, ~std::uint32_t{0}, true);
}

// ---- The masterclock ----

Outcome new_vm_unstable(const Host& host) {
    return with_probe(host, 2, false, [&](Probe& probe) {
        const std::uint32_t fresh = probe.clock().flags;
        probe.settle();
        const std::uint32_t settled = probe.clock().flags;
        if ((settled & abi::kKVM_CLOCK_HOST_TSC) == 0)
            return untried("there is no masterclock after it either");
        return effect((fresh & abi::kKVM_CLOCK_HOST_TSC) == 0, fresh, "flags",
                      fmt::format("flags {:#x} before settle, {:#x} after it", fresh, settled));
    });
}

Outcome lost_when_apart(const Host& host) {
    return with_probe(host, 2, true, [&](Probe& probe) {
        const bool on = probe.stable() && probe.stable_by_page(0) && probe.stable_by_page(1);
        const kvm_clock_data before = probe.clock();
        const std::uint64_t offset = probe.offset(0);
        probe.set_offset(1, offset + kFar);
        probe.settle();
        const bool lost = !probe.stable() && !probe.stable_by_page(0) && !probe.stable_by_page(1);
        const std::uint64_t at = host_counter().raw();
        const std::int64_t pages = (probe.page_at(1, at) - probe.page_at(0, at)).raw();
        probe.set_offset(1, offset);
        probe.set_offset(0, offset);
        probe.settle();
        const bool back = probe.stable() && probe.stable_by_page(0) && probe.stable_by_page(1);
        const std::int64_t step = back ? probe.moved_ns(before, probe.clock()) : 0;
        return effect(
            on && lost && back, step, "ns",
            fmt::format("equal: {}; apart: {}, pages {:+} ns apart; equal again: {}, "
                        "kvmclock {:+} ns from its line",
                        on ? "on" : "off", lost ? "lost" : "on", pages, back ? "on" : "off", step));
    });
}

Outcome needs_every_vcpu(const Host& host) {
    return with_probe(host, 2, true, [&](Probe& probe) {
        const std::uint64_t offset = probe.offset(0);
        probe.set_offset(1, offset + kFar);
        probe.set_offset(1, offset);
        probe.settle();
        const bool alone = probe.stable();
        probe.set_offset(0, offset);
        probe.settle();
        const bool both = probe.stable();
        return effect(!alone && both, alone ? 1 : 2, "writes",
                      fmt::format("vCPU 1 put back: {}; vCPU 0 written over itself: {}",
                                  alone ? "on" : "off", both ? "on" : "off"));
    });
}

Outcome update_on_every_write(const Host& host) {
    return with_probe(host, 2, true, [&](Probe& probe) {
        const std::uint64_t before = probe.page(0).tsc_timestamp;
        probe.set_offset(0, probe.offset(0));
        probe.settle();
        const auto moved = static_cast<std::int64_t>(probe.page(0).tsc_timestamp - before);
        return effect(
            moved != 0, moved, "ticks",
            fmt::format("an offset written over itself moved tsc_timestamp by {} ticks", moved));
    });
}

Outcome update_moves_kvmclock(const Host& host) {
    return with_probe(host, 1, true, [&](Probe& probe) {
        const std::uint64_t offset = probe.offset(0);
        const std::uint64_t at = host_counter().raw() + host.ticks(1000);
        const auto before = probe.page_at(0, at);
        std::this_thread::sleep_for(milliseconds{1000});
        // Away and back: two generations of offsets, and the guest's counter is where it was.
        probe.set_offset(0, offset + 1);
        probe.set_offset(0, offset);
        probe.settle();
        const std::int64_t moved = (probe.page_at(0, at) - before).raw();
        // Each page rounds down once.
        return effect(moved < -1 || moved > 1, moved, "ns",
                      fmt::format("1 s after the last one it moved kvmclock by {:+} ns", moved));
    });
}

Outcome stable_on_guest_write(const Host& host) {
    return with_probe(host, 2, true, [&](Probe& probe) {
        probe.need(probe.vm().guest_wrmsr(1, abi::kMSR_IA32_TSC, host_counter().raw() + kFar));
        probe.settle();
        const std::int64_t skew = probe.skew();
        const bool stable = probe.stable() && probe.stable_by_page(1);
        return effect(skew != 0 && stable, skew, "ticks",
                      fmt::format("the guest's write put vCPU 1 {} ticks ahead; stable: {}", skew,
                                  stable ? "yes" : "no"));
    });
}

// ---- What a save sees ----

Outcome stopped_not_saved(const Host& host) {
    return with_probe(host, 1, true, [&](Probe& probe) {
        const auto told = [&] { return (probe.page(0).flags & abi::kPVCLOCK_GUEST_STOPPED) != 0; };
        probe.need(probe.vm().vcpu(0).kvmclock_ctrl());
        const bool at_once = told();
        probe.settle();
        const bool later = told();
        return effect(!at_once && later, at_once ? 1 : 0, "flag",
                      fmt::format("in the page at once: {}; after settle: {}",
                                  at_once ? "yes" : "no", later ? "yes" : "no"));
    });
}

/// Whoever was only not scheduled was so once: the quickest of several tells.
Outcome thread_change_waits(const Host& host) {
    return with_probe(host, 1, false, [&](Probe& probe) {
        std::uint64_t quickest_us = ~std::uint64_t{0};
        for (int i = 0; i < 7; ++i) {
            probe.need(claim_vcpu(probe.vm().vcpu(0)));
            Status claimed;
            std::uint64_t ticks = 0;
            std::thread{[&] {
                const auto from = host_counter();
                claimed = claim_vcpu(probe.vm().vcpu(0));
                ticks = (host_counter() - from).magnitude();
            }}.join();
            probe.need(claimed);
            quickest_us = std::min(quickest_us, ticks * 1000 / host.clock.tsc_khz());
        }
        return effect(quickest_us > 1000, static_cast<std::int64_t>(quickest_us), "us",
                      fmt::format("the quickest first KVM_RUN of 7 took {} us", quickest_us));
    });
}

Outcome deadline_not_listed(const Host& host) {
    const auto capability =
        host.system.check_extension(static_cast<int>(abi::kKVM_CAP_TSC_DEADLINE_TIMER));
    if (!capability) return tl::unexpected(capability.error());
    if (*capability == 0) return untried("KVM emulates no TSC deadline timer here");
    const auto cpuid = host.system.supported_cpuid();
    if (!cpuid) return tl::unexpected(cpuid.error());
    const CpuidEntry* features = find_cpuid(*cpuid, abi::kCpuidFeatures);
    const std::uint32_t ecx = features == nullptr ? 0 : features->ecx;
    const bool listed = abi::has_bit(ecx, abi::kCpuid1EcxTscDeadline);
    return effect(!listed, listed ? 1 : 0, "bit",
                  fmt::format("CPUID 1 ECX {:#x}: bit {} is {}", ecx,
                              unsigned{abi::kCpuid1EcxTscDeadline}, listed ? "set" : "clear"));
}

struct Experiment {
    std::string_view id;
    Outcome (*run)(const Host&);
    std::array<std::string_view, 2> needs;  ///< checks of doctor's that must have worked
};

constexpr std::string_view kOffset = "tsc_offset_honoured";
constexpr std::string_view kWrite = "tsc_write";
constexpr std::string_view kMasterclock = "masterclock";
constexpr std::string_view kTriple = "clock_triple";

constexpr std::array kExperiments{
    Experiment{"tsc_write_snaps", &sequential_writes_snap, {kOffset, kWrite}},
    Experiment{"tsc_late_write_skews", &late_writes_skew, {kOffset, kWrite}},
    Experiment{"tsc_write_of_zero_snaps", &zero_snaps, {kOffset, kWrite}},
    Experiment{"tsc_khz_refused_sticks", &refused_khz_sticks, {}},
    Experiment{"clock_handed_back_goes_back", &handed_back_plain, {kTriple}},
    Experiment{"clock_handed_back_advances", &handed_back_whole, {kTriple}},
    Experiment{"clock_new_vm_unstable", &new_vm_unstable, {kTriple}},
    Experiment{"masterclock_lost_apart", &lost_when_apart, {kOffset, kMasterclock}},
    Experiment{"masterclock_needs_every_vcpu", &needs_every_vcpu, {kOffset, kMasterclock}},
    Experiment{
        "masterclock_update_on_every_write", &update_on_every_write, {kOffset, kMasterclock}},
    Experiment{
        "masterclock_update_moves_kvmclock", &update_moves_kvmclock, {kOffset, kMasterclock}},
    Experiment{"stable_bit_stays_on_guest_write", &stable_on_guest_write, {kOffset, kMasterclock}},
    Experiment{"guest_stopped_not_saved", &stopped_not_saved, {"kvmclock_ctrl"}},
    Experiment{"thread_change_waits", &thread_change_waits, {}},
    Experiment{"tsc_deadline_not_listed", &deadline_not_listed, {}},
};

const DoctorCheck* find_check(const DoctorReport& report, std::string_view id) {
    for (const DoctorCheck& check : report.checks)
        if (check.id == id) return &check;
    return nullptr;
}

QuirkEffect by_experiment(const Host& host, const DoctorReport& report, const Experiment& try_it) {
    for (const std::string_view need : try_it.needs) {
        if (need.empty()) continue;
        const DoctorCheck* check = find_check(report, need);
        if (check == nullptr || check->state != CheckState::kWorks)
            return untried(fmt::format("needs {}, which does not work here: {}", need,
                                       check == nullptr ? "not looked at" : check->evidence));
    }
    auto outcome = try_it.run(host);
    if (!outcome) return untried(outcome.error().message());
    return std::move(*outcome);
}

}  // namespace

state::Architecture quirk_architecture() {
    return state::Architecture::kX86_64;
}

QuirkEffect see_quirk(const System& system, const DoctorReport& report, const QuirkRow& row) {
    for (const QuirkEffect& effect : quirks_seen_by(report))
        if (effect.id == row.id) return effect;
    QuirkEffect out = untried(report.host ? "doctor did not look" : "there is no usable KVM");
    for (const Experiment& experiment : kExperiments)
        if (report.host && experiment.id == row.id)
            out = by_experiment(Host{system, *report.host}, report, experiment);
    out.id = row.id;
    return out;
}

}  // namespace continuo::kvm
