#include "continuo/kvm/doctor.h"

#include <cpuid.h>
#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "continuo/abi/cpuid.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/abi/pvclock.h"
#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/counter.h"
#include "continuo/kvm/settle.h"
#include "continuo/machine/migration.h"
#include "continuo/time/tsc_scale.h"
#include "examination.h"
#include "probe_vm.h"

namespace continuo::kvm {

namespace {

using abi::pvclock_vcpu_time_info;
using state::Quirk;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::TscMap;

/// Far beyond the second within which KVM takes a write of the TSC for an attempt to synchronise.
constexpr std::uint64_t kOffsetJump = std::uint64_t{1} << 40;
constexpr std::uint64_t kWriteJump = std::uint64_t{1} << 41;
constexpr std::int64_t kAdjustProbe = 0x1234'5678;
/// Well within that second.
constexpr std::uint64_t kShortJumpMs = 300;

class Examiner {
  public:
    Examiner(const System& system, const DoctorOptions& options, HostClock host,
             Examination::Clock::time_point started)
        : system_{system}, seen_{options, std::move(host), started} {}

    Result<DoctorReport> run() {
        if (auto fresh = make(fresh_, 1); !fresh) return tl::unexpected(fresh.error());
        if (auto pair = make(pair_, 2); !pair) return tl::unexpected(pair.error());
        check("clocksource", "host clocksource", "S0.4", &Examiner::clocksource);
        check("invariant_tsc", "invariant TSC", "S3.9", &Examiner::invariant_tsc);
        seen_.check("tai", "host TAI", "S3.10", [this] { return look_at_tai(host()); });
        check("tsc_offset", "TSC offset, get and set", "S2.2", &Examiner::offset_round_trip);
        check("tsc_offset_honoured", "TSC offset in the guest's RDTSC", "S2.2",
              &Examiner::offset_honoured);
        check("tsc_write", "TSC written by value", "S3.1", &Examiner::write_honoured);
        check("tsc_first_write", "first TSC write of a new vCPU", "S2.3",
              &Examiner::first_write_kept);
        check("tsc_second_write", "second TSC write within 1 s", "S3.2",
              &Examiner::second_write_kept);
        check("tsc_adjust", "TSC_ADJUST", "S3.6", &Examiner::tsc_adjust);
        check("tsc_khz", "TSC frequency, get and set", "S3.9", &Examiner::tsc_khz);
        check("tsc_scaling", "TSC scaling in the guest's RDTSC", "S0.5", &Examiner::scaling);
        check("settle", "pvclock page written without a guest entry", "S0.1", &Examiner::settles);
        check("kvmclock_rate", "rate of the pvclock page", "S2.1", &Examiner::kvmclock_rate);
        check("clock_triple", "kvmclock, REALTIME and TSC at one instant", "S2.1",
              &Examiner::clock_triple);
        check("masterclock", "masterclock: on, lost, back", "S3.4", &Examiner::masterclock);
        check("kvmclock_trim", "kvmclock set in a closed loop", "S2.1", &Examiner::trim);
        check("kvmclock_ctrl", "GUEST_STOPPED in the page", "S1.1", &Examiner::kvmclock_ctrl);
        seen_.check("thread_change", "vCPU taken over by another thread", "S3.8",
                    [this] { return look_at_thread_change(vcpu(), seen_); });
        check("tsc_deadline", "TSC deadline timer", "S3.1", &Examiner::deadline);
        return std::move(seen_).finish(quirks(), verdict());
    }

  private:
    using Check = Result<Finding> (Examiner::*)();

    Status make(std::unique_ptr<ProbeVm>& into, std::size_t vcpus) {
        auto probe = ProbeVm::create(system_, vcpus);
        if (!probe) return tl::unexpected(probe.error());
        into = std::move(*probe);
        return {};
    }

    void check(std::string_view id, std::string_view title, std::string_view requirement,
               Check run_it) {
        seen_.check(id, title, requirement, [this, run_it] { return (this->*run_it)(); });
    }
    bool worked(std::string_view id) const { return seen_.worked(id); }
    CheckState state_of(std::string_view id) const { return seen_.state_of(id); }
    const HostClock& host() const { return seen_.host(); }
    std::uint64_t ms_in_ticks(std::uint64_t ms) const { return seen_.ms_in_ticks(ms); }

    Vcpu& vcpu() { return pair_->vcpu(0); }

    // The host.

    Result<Finding> clocksource() {
        const std::string& source = host().clocksource;
        if (host().tsc_based()) return works(fmt::format("\"{}\"", source));
        return absent(fmt::format("\"{}\", not the TSC", source),
                      "KVM has no masterclock: kvmclock differs between vCPUs, and its restore is "
                      "a guess");
    }

    Result<Finding> invariant_tsc() {
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        __get_cpuid(abi::kCpuidPowerManagement, &eax, &ebx, &ecx, &edx);
        const bool invariant = abi::has_bit(edx, abi::kCpuidPmEdxInvariantTsc);
        const std::string evidence =
            fmt::format("CPUID 0x80000007 EDX = {:#x}, {} kHz", edx, host().tsc_khz());
        if (invariant) return works(evidence);
        return absent(evidence,
                      "the TSC may stop or change its rate in sleep states; guests do not use it "
                      "as a clocksource");
    }

    // The TSC.

    Result<Finding> offset_round_trip() {
        const std::string consequence = "the TSC can only be written by value";
        if (!vcpu().has_tsc_offset())
            return absent("no attribute KVM_VCPU_TSC_OFFSET", consequence);
        const auto before = vcpu().tsc_offset();
        if (!before) return tl::unexpected(before.error());
        if (auto set = vcpu().set_tsc_offset(*before + kOffsetJump); !set)
            return tl::unexpected(set.error());
        const auto after = vcpu().tsc_offset();
        if (!after) return tl::unexpected(after.error());
        const std::string evidence =
            fmt::format("{:#x}, wrote +2^40, reads back {:#x}", *before, *after);
        if (*after == *before + kOffsetJump) return works(evidence);
        return broken(evidence, consequence);
    }

    Result<Finding> offset_honoured() {
        if (!vcpu().has_tsc_offset()) return not_run("there is no offset attribute");
        const auto before = pair_->guest_rdtsc_narrow(0);
        if (!before) return tl::unexpected(before.error());
        const auto offset = vcpu().tsc_offset();
        if (!offset) return tl::unexpected(offset.error());
        const std::uint64_t wanted = *offset + kOffsetJump;
        if (auto set = vcpu().set_tsc_offset(wanted); !set) return tl::unexpected(set.error());
        const auto after = pair_->guest_rdtsc_narrow(0);
        if (!after) return tl::unexpected(after.error());
        const std::int64_t off = outside(TscMap{wanted}, *after);
        if (off == 0)
            return works(fmt::format("wrote +2^40, the guest's RDTSC is in a bracket of {} ticks",
                                     width(*after)));
        return broken(
            fmt::format("wrote +2^40, the guest's RDTSC moved by {} ticks", moved(*before, *after)),
            "offsets answer 0 and change nothing: plans must not use them");
    }

    Result<Finding> write_honoured() {
        const auto before = pair_->guest_rdtsc_narrow(0);
        if (!before) return tl::unexpected(before.error());
        const auto now = pair_->guest_rdtsc(0);
        if (!now) return tl::unexpected(now.error());
        const std::uint64_t value = now->value.raw() + kWriteJump;
        const auto wrote_at = host_counter();
        if (auto set = vcpu().set_msr(abi::kMSR_IA32_TSC, value); !set)
            return tl::unexpected(set.error());
        const auto after = pair_->guest_rdtsc_narrow(0);
        if (!after) return tl::unexpected(after.error());
        const std::uint64_t slack = (after->after - wrote_at).magnitude();
        const std::int64_t off = (after->value - Count<GuestCounter>::from_raw(value)).raw();
        if (off >= 0 && static_cast<std::uint64_t>(off) <= slack)
            return works(fmt::format("wrote +2^41, the guest reads {} ticks after it, within {}",
                                     off, slack));
        return broken(
            fmt::format("wrote +2^41, the guest's RDTSC moved by {} ticks", moved(*before, *after)),
            "writes of IA32_TSC answer 0 and change nothing");
    }

    /// Writes a value 0.3 s ahead and says by how much the guest's counter moved.
    struct ShortJump {
        std::int64_t moved;
        std::int64_t wanted;
        bool kept() const { return near(moved, wanted, static_cast<std::uint64_t>(wanted) / 3); }
        std::string text() const {
            return fmt::format(
                "wrote +{} ticks (0.3 s), the guest's "
                "counter moved by {}",
                wanted, moved);
        }
    };
    Result<ShortJump> short_jump(ProbeVm& probe) {
        const auto before = probe.guest_rdtsc_narrow(0);
        if (!before) return tl::unexpected(before.error());
        const std::uint64_t jump = ms_in_ticks(kShortJumpMs);
        const std::uint64_t since = (host_counter() - before->after).magnitude();
        const std::uint64_t value = before->value.raw() + since + jump;
        if (auto set = probe.vcpu(0).set_msr(abi::kMSR_IA32_TSC, value); !set)
            return tl::unexpected(set.error());
        const auto after = probe.guest_rdtsc_narrow(0);
        if (!after) return tl::unexpected(after.error());
        return ShortJump{moved(*before, *after), static_cast<std::int64_t>(jump)};
    }

    Result<Finding> first_write_kept() {
        if (!worked("tsc_write")) return not_run("the TSC cannot be written by value");
        const auto jump = short_jump(*fresh_);
        if (!jump) return tl::unexpected(jump.error());
        if (jump->kept()) return works(jump->text());
        return broken(
            jump->text(),
            "KVM's rules from before Linux 6.7: a first write by value that lies within a "
            "second of what the vCPU counts anyway is lost");
    }

    Result<Finding> second_write_kept() {
        if (!worked("tsc_first_write")) return not_run("the first write was not kept");
        const auto jump = short_jump(*fresh_);
        if (!jump) return tl::unexpected(jump.error());
        if (jump->kept()) return works(jump->text());
        return absent(jump->text(),
                      "KVM takes writes within a second of each other for one: differences between "
                      "vCPUs below that are lost when restored by value");
    }

    Result<Finding> tsc_adjust() {
        const auto before = pair_->guest_rdtsc_narrow(0);
        if (!before) return tl::unexpected(before.error());
        const auto bits = static_cast<std::uint64_t>(kAdjustProbe);
        const std::string consequence =
            "a guest that looks at TSC_ADJUST finds another value "
            "after a move";
        if (!vcpu().set_msr(abi::kMSR_IA32_TSC_ADJUST, bits))
            return absent("the kernel refuses MSR 0x3b", consequence);
        const auto host_reads = vcpu().msr(abi::kMSR_IA32_TSC_ADJUST);
        const auto guest_reads = pair_->guest_rdmsr(0, abi::kMSR_IA32_TSC_ADJUST);
        const auto after = pair_->guest_rdtsc_narrow(0);
        [[maybe_unused]] const auto restored = vcpu().set_msr(abi::kMSR_IA32_TSC_ADJUST, 0);
        if (!host_reads) return tl::unexpected(host_reads.error());
        if (!after) return tl::unexpected(after.error());
        const std::string seen =
            guest_reads ? fmt::format("{:#x}", *guest_reads) : guest_reads.error().what;
        const std::string evidence = fmt::format(
            "wrote {:#x}: host reads {:#x}, guest {}; RDTSC "
            "moved by {} ticks, bracket {}",
            bits, *host_reads, seen, moved(*before, *after), width(*before) + width(*after));
        const bool unmoved = near(moved(*before, *after), 0, width(*before) + width(*after));
        if (*host_reads == bits && guest_reads && *guest_reads == bits && unmoved)
            return works(evidence);
        return broken(evidence, consequence);
    }

    Result<Finding> tsc_khz() {
        const auto before = vcpu().tsc_khz();
        if (!before) return tl::unexpected(before.error());
        if (auto same = vcpu().set_tsc_khz(*before); !same)
            return broken(fmt::format("{} kHz, and the same written again: {}", *before,
                                      same.error().message()),
                          "a guest's frequency cannot be confirmed");
        if (host().scaling_frac_bits) return works(fmt::format("{} kHz", *before));
        const Status refused = vcpu().set_tsc_khz(*before / 2);
        const auto after = vcpu().tsc_khz();
        if (!after) return tl::unexpected(after.error());
        if (auto back = vcpu().set_tsc_khz(*before); !back) return tl::unexpected(back.error());
        return works(fmt::format("{} kHz; {} kHz is {}, and KVM_GET_TSC_KHZ then says {}", *before,
                                 *before / 2, refused ? "taken" : "refused", *after));
    }

    Result<Finding> scaling() {
        const auto bits = host().scaling_frac_bits;
        if (!bits)
            return absent("KVM_CAP_TSC_CONTROL is 0",
                          "a guest whose frequency is over 250 ppm from this host's cannot come "
                          "here");
        std::unique_ptr<ProbeVm> probe;
        if (auto made = make(probe, 1); !made) return tl::unexpected(made.error());
        if (auto set = probe->vcpu(0).set_tsc_khz(host().tsc_khz() / 2); !set)
            return tl::unexpected(set.error());
        const auto from = probe->guest_rdtsc_narrow(0);
        std::this_thread::sleep_for(std::chrono::milliseconds{10});
        const auto to = probe->guest_rdtsc_narrow(0);
        if (!from) return tl::unexpected(from.error());
        if (!to) return tl::unexpected(to.error());
        const auto guest = (to->value - from->value).magnitude();
        const auto host = (to->after - from->after).magnitude();
        const std::string evidence =
            fmt::format("{} fractional bits; asked for 1/2, {} guest ticks in {} of the host",
                        *bits, guest, host);
        const std::uint64_t tolerance = width(*from) + width(*to) + host / 1000;
        if (near(static_cast<std::int64_t>(2 * guest), static_cast<std::int64_t>(host), tolerance))
            return works(evidence);
        return broken(evidence, "scaling answers 0 and the guest's rate is another");
    }

    // kvmclock.

    Result<pvclock_vcpu_time_info> page(std::size_t i) {
        return pair_->memory().read_object<pvclock_vcpu_time_info>(pair_->pvclock_gpa(i));
    }

    /// Twice: the masterclock update of the second vCPU makes the first one's page stale again.
    Status settle_both() {
        for (std::size_t i = 0; i < 4; ++i)
            if (auto done = settle_vcpu(pair_->vcpu(i % 2)); !done) return done;
        return {};
    }

    /// One offset on both vCPUs, which is what gives a VM its masterclock.
    Status equal_offsets() {
        if (!vcpu().has_tsc_offset()) return {};
        const auto offset = vcpu().tsc_offset();
        if (!offset) return tl::unexpected(offset.error());
        if (auto set = vcpu().set_tsc_offset(*offset); !set) return set;
        return pair_->vcpu(1).set_tsc_offset(*offset);
    }

    Result<Finding> settles() {
        if (auto equal = equal_offsets(); !equal) return tl::unexpected(equal.error());
        for (std::size_t i = 0; i < 2; ++i)
            if (auto on = pair_->enable_pvclock(i); !on) return tl::unexpected(on.error());
        const auto rip = vcpu().regs();
        const auto before = page(0);
        if (auto settled = settle_both(); !settled) return tl::unexpected(settled.error());
        const auto rip_after = vcpu().regs();
        const auto after = page(0);
        if (!rip || !rip_after || !before || !after)
            return not_run("the vCPU's registers cannot be read");
        const std::string evidence =
            fmt::format("version {} to {}, RIP {:#x} to {:#x}", before->version, after->version,
                        rip->rip, rip_after->rip);
        if (after->version != before->version && after->version % 2 == 0 &&
            rip->rip == rip_after->rip)
            return works(evidence);
        return broken(evidence,
                      "what the guest will see is decided at its first entry: kvmclock may move by "
                      "some ns after it was verified");
    }

    /// Up to 6.1 a page is computed from the kHz at which the CPU came up or KVM was loaded
    /// (cpu_tsc_khz), which the kernel may have refined since (tsc_refine_calibration_work()).
    Result<Finding> kvmclock_rate() {
        if (!worked("settle")) return not_run("the page is not written without a guest entry");
        const auto khz = vcpu().tsc_khz();
        if (!khz) return tl::unexpected(khz.error());
        const auto read = page(0);
        if (!read) return tl::unexpected(read.error());
        const auto is = time::PvclockScale::make(read->tsc_to_system_mul, read->tsc_shift);
        const auto frequency = time::Hz::from_khz(*khz);
        if (!is || !frequency) return broken("the page holds no scale", "kvmclock cannot be read");
        const auto wanted = time::PvclockScale::from_hz(*frequency);
        const std::string evidence =
            fmt::format("mul {:#x} shift {}; {} kHz are mul {:#x} shift {}", is->mul(), is->shift(),
                        *khz, wanted.mul(), wanted.shift());
        if (*is == wanted) return works(evidence);
        return broken(evidence,
                      "kvmclock runs at another rate than this host's frequency says, and plans "
                      "state: load the kvm modules again, a second after boot at the earliest");
    }

    struct BracketedClock {
        kvm_clock_data data;
        machine::WriteBracket around;
        std::uint64_t width() const { return (around.after - around.before).magnitude(); }
    };
    Result<BracketedClock> read_clock() {
        BracketedClock read{};
        read.around.before = host_counter();
        const auto clock = pair_->vm().get_clock();
        read.around.after = host_counter();
        if (!clock) return tl::unexpected(clock.error());
        read.data = *clock;
        return read;
    }

    Result<Finding> clock_triple() {
        auto read = read_clock();
        for (int i = 0; read && i < 3; ++i)
            if (const auto next = read_clock(); next && next->width() < read->width()) read = next;
        if (!read) return tl::unexpected(read.error());
        const std::uint32_t wanted =
            abi::kKVM_CLOCK_TSC_STABLE | abi::kKVM_CLOCK_REALTIME | abi::kKVM_CLOCK_HOST_TSC;
        const auto at = Count<HostCounter>::from_raw(read->data.host_tsc);
        const bool inside =
            (at - read->around.before).raw() >= 0 && (read->around.after - at).raw() >= 0;
        const std::uint32_t flags = read->data.flags;
        const std::string evidence =
            fmt::format("flags {:#x}, host_tsc {} a bracket of {} ticks", flags,
                        inside ? "inside" : "outside", read->width());
        if ((flags & wanted) == wanted && inside) return works(evidence);
        const std::string consequence =
            "kvmclock cannot be read at a known counter value: its "
            "restore is good to about a microsecond";
        if ((flags & abi::kKVM_CLOCK_HOST_TSC) == 0) return absent(evidence, consequence);
        return broken(evidence, consequence);
    }

    Result<bool> stable_now() {
        if (auto settled = settle_both(); !settled) return tl::unexpected(settled.error());
        const auto clock = pair_->vm().get_clock();
        if (!clock) return tl::unexpected(clock.error());
        const auto first = page(0);
        if (!first) return tl::unexpected(first.error());
        const bool by_page = (first->flags & abi::kPVCLOCK_TSC_STABLE_BIT) != 0;
        const bool by_ioctl = (clock->flags & abi::kKVM_CLOCK_TSC_STABLE) != 0;
        if (by_page != by_ioctl)
            return state::fail(state::ErrorCode::kKernel, "masterclock",
                               "the guest's page and KVM_GET_CLOCK disagree about it");
        return by_page;
    }

    Result<Finding> masterclock() {
        if (!host().tsc_based()) return not_run("the host's clocksource is not the TSC");
        const auto with_equal = stable_now();
        if (!with_equal) return tl::unexpected(with_equal.error());
        const std::string consequence = "kvmclock differs between vCPUs by up to microseconds";
        if (!*with_equal) return broken("off with equal offsets", consequence);
        if (!vcpu().has_tsc_offset()) return works("on; not moved, for lack of the attribute");
        const auto offset = pair_->vcpu(1).tsc_offset();
        if (!offset) return tl::unexpected(offset.error());
        if (auto set = pair_->vcpu(1).set_tsc_offset(*offset + kOffsetJump); !set)
            return tl::unexpected(set.error());
        const auto unequal = stable_now();
        if (auto equal = equal_offsets(); !equal) return tl::unexpected(equal.error());
        const auto again = stable_now();
        if (!unequal) return tl::unexpected(unequal.error());
        if (!again) return tl::unexpected(again.error());
        const std::string evidence = fmt::format("equal offsets: on; unequal: {}; equal again: {}",
                                                 *unequal ? "on" : "lost", *again ? "on" : "lost");
        if (!*unequal && *again) return works(evidence);
        return broken(evidence, *again ? "the guest may be told of one line where there are two"
                                       : consequence);
    }

    /// A whole move of the probe's own clocks onto itself.
    Result<Finding> trim() {
        if (!worked("clock_triple")) return not_run("KVM_GET_CLOCK gives no host_tsc");
        ClockMachineOptions options;
        options.quirks = quirks();
        ClockMachine machine{pair_->vm(), pair_->vcpu_pointers(), pair_->memory(), host(), options};
        const auto record = machine::capture(machine);
        if (!record) return tl::unexpected(record.error());
        const auto destination = machine::destination_for(machine, *record);
        if (!destination) return tl::unexpected(destination.error());
        const auto plan = state::plan(*record, *destination, state::PlanOptions{});
        if (!plan) return not_run("no plan: " + plan.error().front().message);
        const auto from = host_counter();
        const auto applied = machine::apply(machine, *plan);
        const auto took = (host_counter() - from).magnitude();
        if (!applied) return tl::unexpected(applied.error());
        const std::string evidence =
            fmt::format("seam {} ns after {} rounds, {} us with all other writes of 2 vCPUs",
                        applied->trim.residual_ns, applied->trim.rounds, seen_.us(took));
        if (applied->trim.converged) return works(evidence);
        return broken(evidence, "kvmclock's seam is larger than its target of 1 ns");
    }

    Result<Finding> kvmclock_ctrl() {
        if (auto asked = vcpu().kvmclock_ctrl(); !asked)
            return absent(asked.error().message(),
                          "the guest's watchdogs take the gap for a lock-up");
        if (auto settled = settle_both(); !settled) return tl::unexpected(settled.error());
        const auto after = page(0);
        if (!after) return tl::unexpected(after.error());
        const std::string evidence = fmt::format("the page's flags are {:#x}", after->flags);
        if ((after->flags & abi::kPVCLOCK_GUEST_STOPPED) != 0) return works(evidence);
        return broken(evidence, "the guest's watchdogs take the gap for a lock-up");
    }

    // Entering, and timers.

    Result<Finding> deadline() {
        const auto has =
            system_.check_extension(static_cast<int>(abi::kKVM_CAP_TSC_DEADLINE_TIMER));
        if (!has) return tl::unexpected(has.error());
        const std::string consequence = "guests program their timers through the LAPIC's own count";
        if (*has == 0) return absent("KVM_CAP_TSC_DEADLINE_TIMER is 0", consequence);
        std::unique_ptr<ProbeVm> probe;
        if (auto made = make(probe, 1); !made) return tl::unexpected(made.error());
        if (auto armed = probe->enable_deadline_timer(0); !armed)
            return tl::unexpected(armed.error());
        const auto now = probe->guest_rdtsc(0);
        if (!now) return tl::unexpected(now.error());
        const std::uint64_t at = now->value.raw() + ms_in_ticks(2);
        if (auto set = probe->vcpu(0).set_msr(abi::kMSR_IA32_TSC_DEADLINE, at); !set)
            return tl::unexpected(set.error());
        const auto fired = probe->wait_for_timer(0);
        if (!fired) return tl::unexpected(fired.error());
        const auto late = static_cast<std::int64_t>(*fired - at);
        const std::string evidence =
            fmt::format("armed 2 ms ahead, the guest's handler runs {} ticks after it", late);
        if (late >= 0 && static_cast<std::uint64_t>(late) < ms_in_ticks(400))
            return works(evidence);
        return broken(evidence, consequence);
    }

    /// What was not seen to work counts as not working.
    state::Quirks quirks() const {
        state::Quirks found = 0;
        const auto unless = [&](bool fine, Quirk quirk) {
            if (!fine) found |= static_cast<state::Quirks>(quirk);
        };
        const bool attribute = state_of("tsc_offset") != CheckState::kAbsent;
        unless(attribute, Quirk::kNoTscOffset);
        unless(!attribute || worked("tsc_offset_honoured"), Quirk::kTscOffsetIgnored);
        unless(worked("tsc_write"), Quirk::kTscWriteIgnored);
        unless(!worked("tsc_write") || worked("tsc_first_write"), Quirk::kTscSyncOnFirstWrite);
        unless(worked("tsc_adjust"), Quirk::kNoTscAdjust);
        unless(worked("kvmclock_ctrl"), Quirk::kNoKvmclockCtrl);
        unless(worked("clock_triple"), Quirk::kNoClockTriple);
        return found;
    }

    Verdict verdict() const {
        if (worked("tsc_offset_honoured")) return Verdict::kExact;
        return worked("tsc_write") ? Verdict::kByValue : Verdict::kFixedTsc;
    }

    const System& system_;
    Examination seen_;
    std::unique_ptr<ProbeVm> fresh_;
    std::unique_ptr<ProbeVm> pair_;
};

}  // namespace

Result<DoctorReport> examine(const System& system, const DoctorOptions& options) {
    const auto started = Examination::Clock::now();
    auto host = examine_host(system);
    if (!host) return tl::unexpected(host.error());
    return Examiner{system, options, std::move(*host), started}.run();
}

}  // namespace continuo::kvm
