// A restore lands on every kernel by the sequence that its quirks choose, and what the kernel would
// do without it. Each test prints its figures and records them as properties.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "continuo/abi/pvclock.h"
#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/counter.h"
#include "continuo/machine/migration.h"
#include "kvm_test_host.h"
#include "probe_vm.h"
#include "run_limit.h"

namespace continuo::kvm {
namespace {

using abi::pvclock_vcpu_time_info;
using machine::Machine;
using state::Plan;
using state::Policy;
using state::Quirk;
using state::Record;
using time::Ticks;

#define ASSERT_OK(expression)                                \
    do {                                                     \
        auto outcome_ = (expression);                        \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

/// The same machine on a kernel that has no KVM_VCPU_TSC_OFFSET, or does not honour it.
class WithoutOffset final : public Machine {
  public:
    explicit WithoutOffset(Machine& inner) : inner_{inner} {}

    std::size_t vcpu_count() const override { return inner_.vcpu_count(); }
    Result<machine::HostFacts> host_facts() override {
        return inner_.host_facts().map([](machine::HostFacts facts) {
            facts.quirks |= static_cast<state::Quirks>(Quirk::kNoTscOffset);
            return facts;
        });
    }
    time::Count<time::HostCounter> now() override { return inner_.now(); }
    Result<state::Anchor<time::HostCounter>> anchor() override { return inner_.anchor(); }
    Result<machine::VcpuClockState> vcpu_state(std::size_t vcpu) override {
        return inner_.vcpu_state(vcpu).map([](machine::VcpuClockState clocks) {
            clocks.map.reset();
            return clocks;
        });
    }
    Result<machine::BracketedTsc> read_tsc_by_value(std::size_t vcpu) override {
        return inner_.read_tsc_by_value(vcpu);
    }
    Result<std::optional<time::PvclockLine>> pvclock_page(std::size_t vcpu) override {
        return inner_.pvclock_page(vcpu);
    }
    Result<machine::KvmclockReading> kvmclock() override { return inner_.kvmclock(); }
    Status set_tsc_khz(std::size_t vcpu, std::uint64_t khz) override {
        return inner_.set_tsc_khz(vcpu, khz);
    }
    Status set_tsc_adjust(std::size_t vcpu, std::int64_t value) override {
        return inner_.set_tsc_adjust(vcpu, value);
    }
    Status set_tsc_offset(std::size_t, std::uint64_t) override { return tl::unexpected(masked()); }
    Result<time::TscMap> tsc_map(std::size_t) override { return tl::unexpected(masked()); }
    Result<machine::WriteBracket> write_tsc_by_value(
        std::size_t vcpu, time::Count<time::GuestCounter> value) override {
        return inner_.write_tsc_by_value(vcpu, value);
    }
    Status set_kvmclock(time::Instant<time::Kvmclock> clock) override {
        return inner_.set_kvmclock(clock);
    }
    Status signal_guest_stopped(std::size_t vcpu) override {
        return inner_.signal_guest_stopped(vcpu);
    }
    Status settle() override { return inner_.settle(); }

  private:
    static state::Error masked() {
        return {state::ErrorCode::kUnsupported, "KVM_VCPU_TSC_OFFSET", "masked by this test", {}};
    }
    Machine& inner_;
};

/// A VM with its pages on, and its clocks.
struct Subject {
    std::unique_ptr<ProbeVm> probe;
    std::unique_ptr<ClockMachine> clocks;
};

class RestoreOnThisKernel : public testing::Test {
  protected:
    static constexpr std::size_t kVcpus = 3;

    void SetUp() override {
        SKIP_WITHOUT_KVM();
        if (!host().works("tsc_offset_honoured") || !host().works("tsc_write"))
            GTEST_SKIP() << "nothing moves a guest's TSC on this host";
        source_ = make();
        target_ = make();
    }

    Subject make() {
        Subject made;
        auto probe = ProbeVm::create(*host().system, kVcpus);
        EXPECT_TRUE(probe) << probe.error().message();
        made.probe = std::move(*probe);
        for (std::size_t i = 0; i < kVcpus; ++i)
            EXPECT_TRUE(made.probe->enable_pvclock(i));
        ClockMachineOptions options;
        options.quirks = host().report.quirks;
        made.clocks =
            std::make_unique<ClockMachine>(made.probe->vm(), made.probe->vcpu_pointers(),
                                           made.probe->memory(), *host().report.host, options);
        EXPECT_TRUE(made.clocks->settle());
        return made;
    }

    static Plan plan_for(Machine& machine, const Record& record, Policy policy) {
        const auto destination = machine::destination_for(machine, record);
        EXPECT_TRUE(destination) << destination.error().message();
        state::PlanOptions options;
        options.policy = policy;
        const auto plan = state::plan(record, *destination, options);
        EXPECT_TRUE(plan) << (plan ? "" : plan.error().front().message);
        return *plan;
    }

    /// The true seam of a vCPU, whatever was told to the machine under test.
    std::int64_t true_seam(const Plan& plan, std::size_t vcpu) {
        const auto map = target_.clocks->tsc_map(vcpu);
        EXPECT_TRUE(map);
        return static_cast<std::int64_t>(map->offset() - plan.tsc[vcpu].map.offset());
    }

    struct Seams {
        std::uint64_t tsc = 0;    ///< largest, true
        std::uint64_t bound = 0;  ///< what apply() said of it, at most
        std::uint64_t skew = 0;   ///< of any vCPU against vCPU 0, beyond what was prescribed
        std::int64_t kvmclock = 0;
        std::uint64_t kvmclock_bound = 0;
        bool holds = false;
    };

    Seams restore(Machine& machine, const Plan& plan) {
        Seams seams;
        const auto applied = machine::apply(machine, plan);
        EXPECT_TRUE(applied) << (applied ? "" : applied.error().message());
        if (!applied) return seams;
        const auto certificate = machine::verify(machine, plan, *applied);
        EXPECT_TRUE(certificate);
        if (!certificate) return seams;
        seams.holds = certificate->holds();
        for (std::size_t i = 0; i < kVcpus; ++i) {
            const auto seam = Ticks<time::GuestCounter>::from_raw(true_seam(plan, i));
            const auto first = Ticks<time::GuestCounter>::from_raw(true_seam(plan, 0));
            seams.tsc = std::max(seams.tsc, seam.magnitude());
            seams.skew = std::max(seams.skew, (seam - first).magnitude());
            // A certificate's own claim: the realised line, within its bound.
            const auto claimed = Ticks<time::GuestCounter>::from_raw(
                static_cast<std::int64_t>(applied->maps[i].offset() - plan.tsc[i].map.offset()));
            EXPECT_LE((seam - claimed).magnitude(), applied->map_bound_ticks[i]) << "vCPU " << i;
            seams.bound = std::max(seams.bound, claimed.magnitude() + applied->map_bound_ticks[i]);
            EXPECT_LE(seam.magnitude(), plan.tsc[i].bound.total()) << "vCPU " << i;
        }
        for (const auto& clock : certificate->clocks) {
            if (clock.clock != state::ClockKind::kKvmclock) continue;
            seams.kvmclock = clock.seam;
            seams.kvmclock_bound = clock.seam_bound;
        }
        return seams;
    }

    static void print(std::string_view name, const Seams& seams) {
        figure(name,
               "TSC seam {} ticks (bound {}), {} between vCPUs; kvmclock seam {} ns (bound {})",
               seams.tsc, seams.bound, seams.skew, seams.kvmclock, seams.kvmclock_bound);
    }

    /// A guest whose counters are `apart_ms` from one vCPU to the next.
    void set_source_apart(std::uint64_t apart_ms) {
        for (std::size_t i = 0; i < kVcpus; ++i)
            ASSERT_OK(source_.clocks->set_tsc_offset(
                i, 0x1234'5678'9abcU + i * apart_ms * host().report.host->tsc_khz()));
        ASSERT_OK(source_.clocks->settle());
    }

    Subject source_;
    Subject target_;
};

TEST_F(RestoreOnThisKernel, WithTheOffsetEveryClockIsExact) {
    set_source_apart(0);
    for (const Policy policy : {Policy::kAdvance, Policy::kFreeze}) {
        const auto record = machine::capture(*source_.clocks);
        ASSERT_OK(record);
        const Seams seams = restore(*target_.clocks, plan_for(*target_.clocks, *record, policy));
        print(fmt::format("restore_by_offset_{}", state::name(policy)), seams);
        EXPECT_EQ(seams.tsc, 0u);
        EXPECT_LE(std::abs(seams.kvmclock), 1);
        EXPECT_TRUE(seams.holds);
        EXPECT_EQ(target_.clocks->kvmclock()->stable, host().report.host->tsc_based());
    }
}

TEST_F(RestoreOnThisKernel, WithTheOffsetVcpusThatAreApartAreExactToo) {
    set_source_apart(300);
    const auto record = machine::capture(*source_.clocks);
    ASSERT_OK(record);
    const Seams seams =
        restore(*target_.clocks, plan_for(*target_.clocks, *record, Policy::kFreeze));
    print("restore_by_offset_apart", seams);
    EXPECT_EQ(seams.tsc, 0u);
}

TEST_F(RestoreOnThisKernel, ByValueItLandsAndTheVcpusStayOneClock) {
    WithoutOffset from{*source_.clocks};
    WithoutOffset to{*target_.clocks};
    // What a kernel's heuristics take for their own: a guest that has run as long as the new VM,
    // less the moment since.
    for (const Policy policy : {Policy::kFreeze, Policy::kAdvance}) {
        const auto record = machine::capture(from);
        ASSERT_OK(record);
        std::this_thread::sleep_for(std::chrono::milliseconds{100});
        const Plan plan = plan_for(to, *record, policy);
        ASSERT_TRUE(plan.tsc.front().bound.total() > 0);
        const Seams seams = restore(to, plan);
        print(fmt::format("restore_by_value_{}", state::name(policy)), seams);
        EXPECT_TRUE(seams.holds);
        // Read by value, one line is three values; written, it is one line again.
        for (std::size_t i = 1; i < kVcpus; ++i)
            EXPECT_EQ(target_.clocks->tsc_map(i)->offset(), target_.clocks->tsc_map(0)->offset());
        EXPECT_EQ(target_.clocks->kvmclock()->stable, host().report.host->tsc_based());
    }
}

TEST_F(RestoreOnThisKernel, ByValueOneLineIsOneOffsetAndKeepsTheMasterclock) {
    set_source_apart(0);
    // The record is exact here, so that all vCPUs have one line.
    const auto record = machine::capture(*source_.clocks);
    ASSERT_OK(record);
    WithoutOffset to{*target_.clocks};
    const Plan plan = plan_for(to, *record, Policy::kFreeze);
    const Seams once = restore(to, plan);
    print("restore_by_value_one_line", once);
    EXPECT_EQ(once.skew, 0u);
    EXPECT_LE(once.tsc, once.bound);
    EXPECT_TRUE(once.holds);
    EXPECT_EQ(target_.clocks->kvmclock()->stable, host().report.host->tsc_based());
    // A second time, inside of the window of the first: it lands again.
    const Seams again = restore(to, plan);
    print("restore_by_value_one_line_again", again);
    EXPECT_EQ(again.skew, 0u);
    EXPECT_TRUE(again.holds);
}

TEST_F(RestoreOnThisKernel, ByValueVcpusThatAreApartAllLand) {
    set_source_apart(300);
    const auto record = machine::capture(*source_.clocks);
    ASSERT_OK(record);
    WithoutOffset to{*target_.clocks};
    const Seams seams = restore(to, plan_for(to, *record, Policy::kFreeze));
    print("restore_by_value_apart", seams);
    EXPECT_LE(seams.tsc, seams.bound);
    EXPECT_LE(seams.skew, 2 * seams.bound);
    // Snapped, they would be off by 0.3 s and 0.6 s.
    EXPECT_LT(seams.tsc, host().report.host->tsc_khz() * 10);
}

/// The restore that VMMs do today, on the same record: what the sequence above is for.
TEST_F(RestoreOnThisKernel, TheUsualRestoreByValueSnapsVcpusThatAreApart) {
    set_source_apart(300);
    const auto record = machine::capture(*source_.clocks);
    ASSERT_OK(record);
    const Plan plan = plan_for(*target_.clocks, *record, Policy::kFreeze);
    ASSERT_OK(machine::apply_by_value(*target_.clocks, *record, plan));
    const std::int64_t skew = true_seam(plan, 1) - true_seam(plan, 0);
    figure("usual_restore_apart", "vCPU 1 is {} ticks from where it was to vCPU 0, vCPU 2 {}", skew,
           true_seam(plan, 2) - true_seam(plan, 0));
    const auto lost = std::int64_t{300} * host().report.host->tsc_khz();
    EXPECT_EQ(skew, -lost) << "every kernel so far snaps them (tsc_write_snaps)";
}

TEST_F(RestoreOnThisKernel, AGuestStoppedThatASaveWouldLoseIsInTheRecord) {
    ASSERT_OK(source_.clocks->signal_guest_stopped(0));
    const auto flags = [](Subject& subject) {
        return subject.probe->memory()
            .read_object<pvclock_vcpu_time_info>(subject.probe->pvclock_gpa(0))
            ->flags;
    };
    ASSERT_EQ(flags(source_) & abi::kPVCLOCK_GUEST_STOPPED, 0) << "published at once";
    const auto record = machine::capture(*source_.clocks);
    ASSERT_OK(record);
    // A snapshot's memory, on a VM whose clocks nobody restores.
    const auto page =
        source_.probe->memory().read_object<pvclock_vcpu_time_info>(source_.probe->pvclock_gpa(0));
    Subject bare = make();
    ASSERT_OK(bare.probe->memory().write_object(bare.probe->pvclock_gpa(0), *page));
    ASSERT_OK(bare.clocks->settle());
    const bool without = (flags(bare) & abi::kPVCLOCK_GUEST_STOPPED) != 0;
    // And on one where continuo does.
    ASSERT_OK(target_.probe->memory().write_object(target_.probe->pvclock_gpa(0), *page));
    restore(*target_.clocks, plan_for(*target_.clocks, *record, Policy::kAdvance));
    ASSERT_OK(target_.clocks->settle());
    const bool with = (flags(target_) & abi::kPVCLOCK_GUEST_STOPPED) != 0;
    figure("guest_stopped_after_restore", "from memory alone: {}; by the record: {}",
           without ? "told" : "lost", with ? "told" : "lost");
    EXPECT_TRUE(record->vcpus[0].guest_stopped_pending);
    EXPECT_FALSE(record->vcpus[1].guest_stopped_pending);
    EXPECT_FALSE(without);
    EXPECT_TRUE(with);
}

/// Why a vCPU can arrive at reset: on SVM it shut down before it left, and KVM put it there.
/// Whoever finds a moved vCPU so has to look at its source.
TEST_F(RestoreOnThisKernel, AVcpuThatShutDownIsAtReset) {
    Vcpu& vcpu = source_.probe->vcpu(0);
    auto sregs = vcpu.sregs();
    ASSERT_OK(sregs);
    // Protected mode with interrupt gates that are not present: an interrupt, its #NP, a double
    // fault, the end. (KVM on SVM intercepts #GP, which an IDT limit of 0 would give.)
    constexpr std::uint64_t kIdt = 0x8000;
    constexpr std::uint64_t kAbsentGate = std::uint64_t{0x0e00} << 32;
    for (std::uint64_t vector = 0; vector < 256; ++vector)
        ASSERT_OK(source_.probe->memory().write_object(kIdt + 8 * vector, kAbsentGate));
    sregs->cr0 |= 1;
    sregs->idt.base = kIdt;
    sregs->idt.limit = 256 * 8 - 1;
    ASSERT_OK(vcpu.set_sregs(*sregs));
    constexpr std::uint64_t kAt = 0x2000;
    constexpr std::uint16_t kInt20 = 0x20cd;
    ASSERT_OK(source_.probe->memory().write_object(kAt, kInt20));
    const auto limit = RunLimit::create();
    ASSERT_TRUE(limit) << limit.error().message();
    auto regs = vcpu.regs();
    ASSERT_OK(regs);
    regs->rip = kAt;
    ASSERT_OK(vcpu.set_regs(*regs));
    ASSERT_OK((*limit)->run(vcpu, 5'000));
    ASSERT_EQ(vcpu.run_page().exit_reason, std::uint32_t{KVM_EXIT_SHUTDOWN});
    const auto after = vcpu.regs();
    ASSERT_OK(after);
    const bool reset = after->rip == 0xfff0 && after->rsp == 0;
    const auto after_sregs = vcpu.sregs();
    ASSERT_OK(after_sregs);
    // Moved as it stands, and run.
    Vcpu& moved = target_.probe->vcpu(0);
    ASSERT_OK(moved.set_sregs(*after_sregs));
    ASSERT_OK(moved.set_regs(*after));
    ASSERT_OK((*limit)->run(moved, 5'000));
    const kvm_run& run = moved.run_page();
    const bool gave_up = run.exit_reason == std::uint32_t{KVM_EXIT_INTERNAL_ERROR};
    figure("shut_down_vcpu", "RIP {:#x}, RSP {:#x}, CS {:#x}; moved and run: exit reason {}, {}",
           after->rip, after->rsp, after_sregs->cs.selector, run.exit_reason,
           gave_up ? fmt::format("suberror {}", run.internal.suberror) : "no internal error");
    if (::access("/sys/module/kvm_amd", F_OK) != 0) GTEST_SKIP() << "not SVM: no INIT is promised";
    EXPECT_TRUE(reset);
    ASSERT_TRUE(gave_up);
    EXPECT_EQ(run.internal.suberror, std::uint32_t{KVM_INTERNAL_ERROR_EMULATION});
}

/// What the trim is for: as long as nothing is pending the line stays, whatever time passes.
TEST_F(RestoreOnThisKernel, AfterARestoreKvmclockStaysOnItsLine) {
    if (!host().report.host->tsc_based()) GTEST_SKIP() << "no masterclock on this host";
    set_source_apart(0);
    const auto record = machine::capture(*source_.clocks);
    ASSERT_OK(record);
    const Plan plan = plan_for(*target_.clocks, *record, Policy::kFreeze);
    restore(*target_.clocks, plan);
    std::this_thread::sleep_for(std::chrono::seconds{1});
    ASSERT_OK(target_.clocks->settle());
    const auto page = target_.clocks->pvclock_page(0);
    ASSERT_TRUE(page && *page);
    const auto at = plan.tsc[0].map.at(host_counter());
    const auto off = ((*page)->at(at) - plan.kvmclock->line.at(at)).raw();
    figure("kvmclock_1s_after_restore", "{:+} ns from its line", off);
    EXPECT_LE(std::abs(off), 2);
}

}  // namespace
}  // namespace continuo::kvm
