#include "continuo/kvm/doctor.h"

#include <fmt/format.h>

#include <cerrno>
#include <ctime>

#include "continuo/abi/arm64.h"
#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/counter.h"
#include "continuo/machine/migration.h"
#include "examination.h"
#include "probe_vm.h"

namespace continuo::kvm {

namespace {

using machine::BracketedTsc;
using state::Quirk;
using time::Count;
using time::GuestCounter;
using time::TscMap;

/// Far beyond any bracket, in either direction.
constexpr std::uint64_t kJump = std::uint64_t{1} << 40;
constexpr std::uint64_t kReads = 256;

std::uint64_t realtime_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * time::kNanosPerSecond +
           static_cast<std::uint64_t>(now.tv_nsec);
}

/// A host register that says what the processor has, as KVM gives it to a vCPU.
constexpr std::uint64_t kId_Aa64mmfr0 = abi::arm64_sysreg(3, 0, 0, 7, 0);
constexpr int kEcvShift = 60;

class Examiner {
  public:
    Examiner(const System& system, const DoctorOptions& options, HostClock host,
             Examination::Clock::time_point started)
        : system_{system}, seen_{options, std::move(host), started} {}

    Result<DoctorReport> run() {
        if (auto ours = make(ours_, 2, CounterOwner::kUs); !ours)
            return tl::unexpected(ours.error());
        if (auto theirs = make(theirs_, 2, CounterOwner::kKernel); !theirs)
            return tl::unexpected(theirs.error());
        check("clocksource", "host clocksource", "S0.4", &Examiner::clocksource);
        seen_.check("tai", "host TAI", "S3.10", [this] { return look_at_tai(host()); });
        check("cntfrq", "CNTFRQ_EL0 in the guest", "S3.9", &Examiner::frequency);
        check("counter_offset", "counter offset, set", "S2.4", &Examiner::offset_call);
        check("counter_offset_honoured", "counter offset in the guest's CNTVCT_EL0", "S2.4",
              &Examiner::virtual_honoured);
        check("physical_offset_honoured", "counter offset in the guest's CNTPCT_EL0", "S2.5",
              &Examiner::physical_honoured);
        check("physical_counter_cost", "CNTPCT_EL0 without a trap", "S2.5",
              &Examiner::physical_cost);
        check("vtimer", "virtual timer on the guest's own counter", "S2.4", &Examiner::vtimer);
        check("ptimer", "physical timer on the guest's own counter", "S2.5", &Examiner::ptimer);
        check("counter_vm_wide", "one counter for all vCPUs", "S2.4", &Examiner::vm_wide);
        check("counter_owned", "counter kept when a vCPU is created", "S2.4", &Examiner::kept);
        check("counter_write", "CNTVCT written by value", "S2.4", &Examiner::write_honoured);
        check("counter_write_dropped", "register writes after an offset change nothing", "S2.4",
              &Examiner::write_dropped);
        check("ptp_call", "PTP call: REALTIME and counter at one instant", "S2.1", &Examiner::ptp);
        check("counter_restore", "counters restored on this host", "S2.4", &Examiner::restore);
        seen_.check("thread_change", "vCPU taken over by another thread", "S3.8",
                    [this] { return look_at_thread_change(ours_->vcpu(0), seen_); });
        return std::move(seen_).finish(quirks(), verdict());
    }

  private:
    using Check = Result<Finding> (Examiner::*)();

    Status make(std::unique_ptr<ProbeVm>& into, std::size_t vcpus, CounterOwner counter) {
        auto probe = ProbeVm::create(system_, vcpus, counter);
        if (!probe) return tl::unexpected(probe.error());
        into = std::move(*probe);
        return {};
    }

    void check(std::string_view id, std::string_view title, std::string_view requirement,
               Check run_it) {
        seen_.check(id, title, requirement, [this, run_it] { return (this->*run_it)(); });
    }
    bool worked(std::string_view id) const { return seen_.worked(id); }
    const HostClock& host() const { return seen_.host(); }

    // The host.

    Result<Finding> clocksource() {
        const std::string& source = host().clocksource;
        if (source == "arch_sys_counter") return works(fmt::format("\"{}\"", source));
        return absent(fmt::format("\"{}\", not the architected counter", source),
                      "the guest's PTP call has no answer, and TAI is not read by the counter");
    }

    Result<Finding> frequency() {
        const auto guest = ours_->guest_cntfrq(0);
        if (!guest) return tl::unexpected(guest.error());
        const std::string evidence =
            fmt::format("host {} Hz, guest {} Hz", host().frequency().hz(), *guest);
        if (*guest == host().frequency().hz()) return works(evidence);
        return broken(evidence,
                      "firmware set the CPUs' CNTFRQ_EL0 differently: a guest's time "
                      "depends on the CPU that it booted on");
    }

    // The offset.

    bool owned() const { return ours_->vm().counter_offset().has_value(); }
    Finding no_offset() const { return not_run("the counter's offset cannot be set"); }

    Result<Finding> offset_call() {
        const auto offered =
            ours_->vm().check_extension(static_cast<int>(abi::kKVM_CAP_COUNTER_OFFSET));
        if (!offered) return tl::unexpected(offered.error());
        const std::string evidence =
            fmt::format("KVM_CAP_COUNTER_OFFSET {}, KVM_ARM_SET_COUNTER_OFFSET {}", *offered,
                        owned() ? "0" : errno_text());
        if (owned()) return works(evidence);
        const std::string consequence =
            "the virtual counter goes by value, through its register; the physical one is the "
            "host's";
        return *offered == 0 ? absent(evidence, consequence) : broken(evidence, consequence);
    }
    std::string errno_text() const {
        const auto& why = ours_->vm().why_no_offset();
        return why ? fmt::format("errno {}", why->sys_errno) : "not tried";
    }

    using Ask = Result<BracketedTsc> (ProbeVm::*)(std::size_t);
    /// Jumps, and looks at the guest's counter before and after.
    Result<Finding> honoured(Ask ask, std::string_view name, std::string consequence) {
        if (!owned()) return no_offset();
        const auto before = (*ours_.*ask)(0);
        if (!before) return tl::unexpected(before.error());
        const std::uint64_t offset = *ours_->vm().counter_offset() - kJump;
        if (auto set = ours_->vm().set_counter_offset(offset); !set)
            return tl::unexpected(set.error());
        const auto after = (*ours_.*ask)(0);
        if (!after) return tl::unexpected(after.error());
        const std::int64_t off = outside(TscMap{0 - offset}, *after);
        if (off == 0)
            return works(fmt::format("offset -2^40, the guest's {} is in a bracket of {} ticks",
                                     name, width(*after)));
        return broken(fmt::format("offset -2^40, the guest's {} moved by {} ticks and is {} off",
                                  name, moved(*before, *after), off),
                      std::move(consequence));
    }

    Result<Finding> virtual_honoured() {
        return honoured(&ProbeVm::guest_cntvct, "CNTVCT_EL0",
                        "offsets answer 0 and change nothing: plans must not use them");
    }

    Result<Finding> physical_honoured() {
        return honoured(&ProbeVm::guest_cntpct, "CNTPCT_EL0",
                        "the guest's physical counter is the host's: it jumps when the guest "
                        "moves");
    }

    /// Without an offset KVM lets the guest read the register; with one it traps, unless the
    /// processor subtracts (FEAT_ECV's CNTPOFF_EL2, used under VHE).
    Result<Finding> physical_cost() {
        if (!worked("physical_offset_honoured"))
            return not_run("the guest's physical counter is not offset");
        const auto mmfr0 = ours_->vcpu(0).one_reg(kId_Aa64mmfr0);
        const auto virtual_ticks = ours_->cntvct_ticks(0, kReads);
        const auto physical_ticks = ours_->cntpct_ticks(0, kReads);
        if (!mmfr0) return tl::unexpected(mmfr0.error());
        if (!virtual_ticks) return tl::unexpected(virtual_ticks.error());
        if (!physical_ticks) return tl::unexpected(physical_ticks.error());
        const std::uint64_t ecv = *mmfr0 >> kEcvShift & 0xf;
        // An exit costs some thousand instructions; a read of the register a few.
        const bool traps = *physical_ticks > 8 * *virtual_ticks + 64;
        const std::string evidence = fmt::format(
            "ID_AA64MMFR0_EL1.ECV {}; {} reads: virtual {} ticks, physical {}: {}", ecv, kReads,
            *virtual_ticks, *physical_ticks, traps ? "trapped and emulated" : "by CNTPOFF_EL2");
        if (!traps) return works(evidence);
        return absent(evidence, "a guest that reads the physical counter exits at each read");
    }

    /// A timer whose condition goes by another counter than the guest reads is 2^40 ticks off.
    Result<Finding> timer(Result<std::uint64_t> (ProbeVm::*ask)(std::size_t, std::uint64_t)) {
        const auto late = (*ours_.*ask)(0, seen_.ms_in_ticks(2));
        if (!late) return tl::unexpected(late.error());
        const std::string evidence =
            fmt::format("armed 2 ms ahead, its condition is met {} ticks after it",
                        static_cast<std::int64_t>(*late));
        if (*late < seen_.ms_in_ticks(400)) return works(evidence);
        return broken(evidence, "the guest's timers fire at other times than they are set to");
    }
    Result<Finding> vtimer() { return timer(&ProbeVm::vtimer_lateness); }
    Result<Finding> ptimer() { return timer(&ProbeVm::ptimer_lateness); }

    Result<Finding> vm_wide() {
        if (!worked("counter_offset_honoured"))
            return not_run("no offset reaches the guest's counter");
        const TscMap map{0 - *ours_->vm().counter_offset()};
        std::string evidence;
        bool fine = true;
        for (std::size_t vcpu = 0; vcpu < 2; ++vcpu) {
            const auto read = ours_->guest_cntvct(vcpu);
            if (!read) return tl::unexpected(read.error());
            const std::int64_t off = outside(map, *read);
            fine = fine && off == 0;
            evidence += fmt::format("{}vCPU {} {} ticks off its line, bracket {}",
                                    vcpu == 0 ? "" : "; ", vcpu, off, width(*read));
        }
        if (fine) return works(evidence);
        return broken(evidence, "one call does not move all vCPUs");
    }

    Result<Finding> kept() {
        if (!worked("counter_offset_honoured"))
            return not_run("no offset reaches the guest's counter");
        const TscMap map{0 - *ours_->vm().counter_offset()};
        auto third = Vcpu::create(ours_->vm(), 2);
        if (!third) return tl::unexpected(third.error());
        const auto read = ours_->guest_cntvct(0);
        if (!read) return tl::unexpected(read.error());
        const std::int64_t off = outside(map, *read);
        const std::string evidence =
            fmt::format("after a third vCPU {} ticks off its line, bracket {}", off, width(*read));
        if (off == 0) return works(evidence);
        return broken(evidence, "create every vCPU before the counter is restored");
    }

    // The registers.

    Result<Finding> write_honoured() {
        const auto before = theirs_->guest_cntvct(1);
        if (!before) return tl::unexpected(before.error());
        const std::uint64_t value = before->value.raw() + kJump;
        const auto wrote_at = host_counter();
        if (auto set = theirs_->vcpu(0).set_one_reg(abi::kKVM_REG_ARM_TIMER_CNT, value); !set)
            return tl::unexpected(set.error());
        const auto after = theirs_->guest_cntvct(1);
        if (!after) return tl::unexpected(after.error());
        const std::uint64_t slack = (after->after - wrote_at).magnitude();
        const std::int64_t late = (after->value - Count<GuestCounter>::from_raw(value)).raw();
        if (late >= 0 && static_cast<std::uint64_t>(late) <= slack)
            return works(fmt::format(
                "wrote +2^40 to vCPU 0, vCPU 1 reads {} ticks after it, within {}", late, slack));
        return broken(fmt::format("wrote +2^40 to vCPU 0, vCPU 1's CNTVCT_EL0 moved by {} ticks",
                                  moved(*before, *after)),
                      "writes of the counter's register do not move the VM's counter");
    }

    Result<Finding> write_dropped() {
        if (!worked("counter_offset_honoured"))
            return not_run("no offset reaches the guest's counter");
        const auto before = ours_->guest_cntvct(0);
        if (!before) return tl::unexpected(before.error());
        if (auto set = ours_->vcpu(0).set_one_reg(abi::kKVM_REG_ARM_TIMER_CNT,
                                                  before->value.raw() + kJump);
            !set)
            return tl::unexpected(set.error());
        const auto after = ours_->guest_cntvct(0);
        if (!after) return tl::unexpected(after.error());
        const std::string evidence =
            fmt::format("wrote +2^40, the guest's CNTVCT_EL0 moved by {}", moved(*before, *after));
        if (near(moved(*before, *after), 0, width(*before) + width(*after))) return works(evidence);
        return broken(evidence, "restoring all registers, the counter among them, moves it");
    }

    // The guest's own REALTIME.

    Result<Finding> ptp() {
        const std::string consequence =
            "the guest has no ptp_kvm clock, and its NTP only the network";
        const std::uint64_t from = realtime_ns();
        const auto call = ours_->hypercall(0, abi::kARM_SMCCC_VENDOR_HYP_KVM_PTP_FUNC_ID,
                                           abi::kKVM_PTP_VIRT_COUNTER);
        const std::uint64_t to = realtime_ns();
        if (!call) return tl::unexpected(call.error());
        const auto& x = call->answer;
        const auto word = [](std::uint64_t high, std::uint64_t low) {
            return (high & 0xffff'ffffU) << 32 | (low & 0xffff'ffffU);
        };
        if (static_cast<std::int32_t>(x[0]) < 0)
            return absent(fmt::format("it answers {}", static_cast<std::int32_t>(x[0])),
                          consequence);
        const std::uint64_t real = word(x[0], x[1]);
        const auto counter = Count<GuestCounter>::from_raw(word(x[2], x[3]));
        const bool in_time = real >= from && real <= to;
        const std::int64_t off =
            owned() ? outside(TscMap{0 - *ours_->vm().counter_offset()},
                              BracketedTsc{call->around.before, counter, call->around.after})
                    : 0;
        const std::string evidence =
            fmt::format("REALTIME {} the call of {} us, the counter {} ticks off its line{}",
                        in_time ? "inside" : "outside",
                        seen_.us((call->around.after - call->around.before).magnitude()), off,
                        owned() ? "" : " (not known: the offset is the kernel's)");
        if (in_time && off == 0) return works(evidence);
        return broken(evidence, consequence);
    }

    /// A whole move of the probe's own counters onto itself, by the policy that moves them.
    Result<Finding> restore() {
        ProbeVm& probe = worked("counter_offset_honoured") ? *ours_ : *theirs_;
        ClockMachineOptions options;
        options.quirks = quirks();
        ClockMachine machine{probe.vm(), probe.vcpu_pointers(), probe.memory(), host(), options};
        const auto record = machine::capture(machine);
        if (!record) return tl::unexpected(record.error());
        const auto destination = machine::destination_for(machine, *record);
        if (!destination) return tl::unexpected(destination.error());
        state::PlanOptions plan_options;
        plan_options.policy = state::Policy::kFreeze;
        const auto plan = state::plan(*record, *destination, plan_options);
        if (!plan) return not_run("no plan: " + plan.error().front().message);
        const auto from = host_counter();
        const auto applied = machine::apply(machine, *plan);
        const auto took = (host_counter() - from).magnitude();
        if (!applied) return tl::unexpected(applied.error());
        const auto certificate = machine::verify(machine, *plan, *applied);
        if (!certificate) return tl::unexpected(certificate.error());
        const auto& first = certificate->clocks.front();
        const std::string evidence =
            fmt::format("seam {} ticks, at most {}, {} us with all writes of 2 vCPUs", first.seam,
                        first.seam_bound, seen_.us(took));
        if (certificate->holds()) return works(evidence);
        return broken(evidence, "the seam is outside its bound");
    }

    /// What was not seen to work counts as not working.
    state::Quirks quirks() const {
        state::Quirks found = 0;
        const auto unless = [&](bool fine, Quirk quirk) {
            if (!fine) found |= static_cast<state::Quirks>(quirk);
        };
        unless(owned(), Quirk::kNoTscOffset);
        unless(!owned() || worked("counter_offset_honoured"), Quirk::kTscOffsetIgnored);
        unless(worked("counter_write"), Quirk::kTscWriteIgnored);
        unless(worked("physical_offset_honoured"), Quirk::kPhysicalCounterFixed);
        return found;
    }

    Verdict verdict() const {
        if (worked("counter_offset_honoured")) return Verdict::kExact;
        return worked("counter_write") ? Verdict::kByValue : Verdict::kFixedTsc;
    }

    const System& system_;
    Examination seen_;
    std::unique_ptr<ProbeVm> ours_;    ///< its counter owned by us, where the kernel lets us
    std::unique_ptr<ProbeVm> theirs_;  ///< its counter the kernel's
};

}  // namespace

Result<DoctorReport> examine(const System& system, const DoctorOptions& options) {
    const auto started = Examination::Clock::now();
    auto host = examine_host(system);
    if (!host) return tl::unexpected(host.error());
    return Examiner{system, options, std::move(*host), started}.run();
}

}  // namespace continuo::kvm
