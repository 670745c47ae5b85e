// Live migrations of the witness guest on a real /dev/kvm.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "continuo/kvm/doctor.h"
#include "continuo/vmm/kvm_migration.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

#define ASSERT_OK(expression)                                \
    do {                                                     \
        const auto& outcome_ = (expression);                 \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

/// What doctor says of this host; asked once.
struct Host {
    kvm::System system;
    HostFindings findings;
};

Result<Host> examine_this_host() {
    auto system = kvm::System::open();
    if (!system) return tl::unexpected(std::move(system.error()));
    auto report = kvm::examine(*system);
    if (!report) return tl::unexpected(std::move(report.error()));
    if (!report->host) return state::fail(state::ErrorCode::kUnsupported, "doctor", report->reason);
    HostFindings findings{*report->host, report->quirks};
    return Host{std::move(*system), std::move(findings)};
}

Status run_loops(VirtualMachine& machine, std::uint64_t loops) {
    const auto until = after(30s);
    for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
        const std::uint64_t gpa =
            witness::kReports + witness::kReportStride * vcpu + offsetof(witness::Report, loops);
        const std::uint64_t from = *machine.memory().load<std::uint64_t>(gpa);
        while (*machine.memory().load<std::uint64_t>(gpa) < from + loops) {
            if (auto well = machine.health(); !well) return well;
            if (std::chrono::steady_clock::now() > until)
                return state::fail(state::ErrorCode::kTimeout, "witness", "it stands still");
            std::this_thread::sleep_for(1ms);
        }
    }
    return {};
}

Result<std::unique_ptr<VirtualMachine>> boot(const Host& host, std::uint32_t vcpus) {
    auto machine = VirtualMachine::create(host.system, {.vcpus = vcpus, .memory_bytes = 32 << 20});
    if (!machine) return machine;
    const WitnessConfig config{.dirty_pages_a_second = 2000, .workload_pages_a_vcpu = 256};
    if (auto done = load_witness(**machine, config); !done)
        return tl::unexpected(std::move(done.error()));
    if (auto done = (*machine)->resume(); !done) return tl::unexpected(std::move(done.error()));
    if (auto done = run_loops(**machine, 200); !done)
        return tl::unexpected(std::move(done.error()));
    return machine;
}

class MigrationOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto host = examine_this_host();
        if (!host) GTEST_SKIP() << "no usable /dev/kvm: " << host.error().message();
        host_.emplace(std::move(*host));
    }
    Address address() const {
        return *parse_address("unix:/tmp/continuo-kvm-" + std::to_string(::getpid()));
    }

    struct Ends {
        std::optional<SourceOutcome> source;
        std::optional<DestinationOutcome> destination;
    };
    Ends migrate(KvmSourceVm& source, KvmDestinationVm& destination, const Address& at) {
        Ends ends;
        auto receiver = Receiver::open(at);
        EXPECT_TRUE(receiver) << receiver.error().message();
        const MigrationOptions options;
        std::thread other{[&] {
            auto outcome = (*receiver)->receive(destination, options, 10s);
            EXPECT_TRUE(outcome) << outcome.error().message();
            if (outcome) ends.destination = std::move(*outcome);
        }};
        const Address to = (*receiver)->address();
        auto connection = connect_to(to, 2s);
        EXPECT_TRUE(connection);
        ends.source = send_vm(
            std::move(*connection), source, [&] { return connect_to(to, 1s); }, options);
        other.join();
        return ends;
    }

    std::optional<Host> host_;
};

void expect_whole(VirtualMachine& machine) {
    const auto reports = witness_reports(machine.memory(), machine.config().vcpus);
    ASSERT_OK(reports);
    for (const witness::Report& report : *reports) {
        EXPECT_EQ(report.fault_vector, 0u);
        EXPECT_EQ(report.tsc_back_own.count + report.tsc_back_cross.count, 0u);
        EXPECT_EQ(report.kvmclock_back_own.count, 0u)
            << report.kvmclock_back_own.before << " -> " << report.kvmclock_back_own.after;
        EXPECT_GT(report.ticks, 0u);
    }
    ASSERT_OK(verify_workload(machine.memory(), machine.config().vcpus));
}

TEST_F(MigrationOnKvm, AdvanceMovesALiveVmAndCertifiesItsClocks) {
    auto machine = boot(*host_, 4);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    ArrivalOptions arrival;
    arrival.plan.policy = state::Policy::kAdvance;
    KvmDestinationVm destination{host_->system, host_->findings, arrival};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
    ASSERT_TRUE(ends.destination && std::holds_alternative<Arrived>(*ends.destination));
    EXPECT_EQ(source.machine(), nullptr);

    VirtualMachine& moved = *destination.machine();
    ASSERT_TRUE(destination.epoch());
    ASSERT_OK(await_epoch(moved, *destination.epoch(), 10s));
    const auto observed = observe_witness(moved, *destination.plan(), *destination.epoch());
    ASSERT_OK(observed);
    ASSERT_EQ(observed->size(), 4u);
    for (const state::GuestObservation& vcpu : *observed) {
        std::printf("vCPU %u: first read %lld ns after the instant, kvmclock seam %lld ns\n",
                    vcpu.vcpu, static_cast<long long>(vcpu.after_resume_ns),
                    static_cast<long long>(vcpu.kvmclock_seam_ns));
        EXPECT_GE(vcpu.after_resume_ns, 0) << "no vCPU reads before the common instant";
        EXPECT_LE(std::abs(vcpu.kvmclock_seam_ns), 3) << "the guest's own page";
    }
    const state::Certificate& certificate = *destination.certificate();
    for (const state::ClockCertificate& clock : certificate.clocks) {
        EXPECT_TRUE(clock.holds()) << state::name(clock.clock) << " seam " << clock.seam;
        if (clock.clock == state::ClockKind::kTsc) {
            EXPECT_EQ(clock.seam, 0);
        }
        if (clock.clock == state::ClockKind::kKvmclock)
            std::printf("kvmclock seam %lld ns, %u rounds, %u attempts\n",
                        static_cast<long long>(clock.seam), certificate.trim.rounds,
                        destination.attempts());
    }
    const MigrationStats& stats = std::get<Moved>(*ends.source).stats;
    std::printf("rounds %u pages %llu last %llu downtime %.3f ms\n", stats.rounds,
                static_cast<unsigned long long>(stats.pages_sent),
                static_cast<unsigned long long>(stats.last_pages),
                std::chrono::duration<double, std::milli>(stats.downtime).count());
    ASSERT_OK(run_loops(moved, 200));
    std::this_thread::sleep_for(30ms);
    ASSERT_OK(moved.stop());
    expect_whole(moved);
}

TEST_F(MigrationOnKvm, BackAndForthOverTcp) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    std::unique_ptr<VirtualMachine> here = std::move(*machine);
    for (int hop = 0; hop < 4; ++hop) {
        KvmSourceVm source{host_->system, std::move(here), host_->findings};
        KvmDestinationVm destination{host_->system, host_->findings, {}};
        const Ends ends = migrate(source, destination, *parse_address("tcp:127.0.0.1:0"));
        if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
        ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
        here = destination.release();
        ASSERT_OK(run_loops(*here, 50));
    }
    ASSERT_OK(here->stop());
    expect_whole(*here);
}

TEST_F(MigrationOnKvm, AFreezeThatThisHostCannotDoLeavesTheSourceRunning) {
    const bool fixed = state::has(host_->findings.quirks, state::Quirk::kTscOffsetIgnored) &&
                       state::has(host_->findings.quirks, state::Quirk::kTscWriteIgnored);
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    ArrivalOptions arrival;
    arrival.plan.policy = state::Policy::kFreeze;
    KvmDestinationVm destination{host_->system, host_->findings, arrival};
    const Ends ends = migrate(source, destination, address());
    if (!fixed) {
        ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
        ASSERT_OK(await_epoch(*destination.machine(), *destination.epoch(), 10s));
        const auto seen =
            observe_witness(*destination.machine(), *destination.plan(), *destination.epoch());
        ASSERT_OK(seen);
        for (const state::GuestObservation& vcpu : *seen)
            EXPECT_GE(vcpu.after_resume_ns, 0);
        return;
    }
    ASSERT_TRUE(std::holds_alternative<Kept>(*ends.source));
    const state::Error& reason = std::get<Kept>(*ends.source).reason;
    EXPECT_NE(reason.what.find("tsc"), std::string::npos) << reason.message();
    ASSERT_TRUE(std::holds_alternative<Discarded>(*ends.destination));
    EXPECT_EQ(std::get<Discarded>(*ends.destination).reason.code, state::ErrorCode::kRefused);
    ASSERT_NE(source.machine(), nullptr);
    ASSERT_OK(run_loops(*source.machine(), 100));
    ASSERT_OK(source.machine()->stop());
    expect_whole(*source.machine());
}

/// Waits until the witness has answered `answers` notices in all.
Result<witness::Notice> answered_notice(VirtualMachine& machine, std::uint64_t answers) {
    const auto until = after(10s);
    for (;;) {
        const auto notice = read_notice(machine.memory());
        if (!notice) return tl::unexpected(notice.error());
        if (!*notice) return state::fail(state::ErrorCode::kGuest, "notice", "no witness");
        if (((*notice)->sequence & 1) == 0 && (*notice)->answers == answers) return **notice;
        if (std::chrono::steady_clock::now() > until)
            return state::fail(state::ErrorCode::kTimeout, "notice", "nobody answers");
        std::this_thread::sleep_for(1ms);
    }
}

TEST_F(MigrationOnKvm, ANotifiedGuestAnswersAndNoPendingGapIsLost) {
    ArrivalOptions arrival;
    arrival.plan.policy = state::Policy::kAdvanceAndNotify;
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    KvmDestinationVm destination{host_->system, host_->findings, arrival};
    Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
    ASSERT_TRUE(destination.certificate()->notice) << "it was published, and certified";
    EXPECT_EQ(destination.certificate()->notice->sequence, 1u);
    const auto first = answered_notice(*destination.machine(), 1);
    ASSERT_OK(first);
    const auto gap = static_cast<std::uint64_t>(destination.plan()->gap.raw());
    EXPECT_EQ(first->sequence, 2u);
    EXPECT_EQ(first->told_gap_ns, gap);
    EXPECT_EQ(first->told_delta_realtime_ns, 0u) << "its clocks advanced";

    // Stopped before it has answered another: as if that had come with the stop.
    std::unique_ptr<VirtualMachine> here = destination.release();
    ASSERT_OK(here->stop());
    state::Notice unanswered;
    unanswered.gap = decltype(unanswered.gap)::from_raw(123'456);
    unanswered.delta_realtime = decltype(unanswered.gap)::from_raw(7);
    ASSERT_OK(publish_notice(*here, **read_notice(here->memory()), unanswered));
    KvmSourceVm again{host_->system, std::move(here), host_->findings};
    KvmDestinationVm onward{host_->system, host_->findings, arrival};
    ends = migrate(again, onward, address());
    ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
    EXPECT_EQ(onward.record()->notice_sequence, 3u);
    EXPECT_EQ(onward.certificate()->notice->sequence, 5u) << "not the one that is pending";
    const auto second = answered_notice(*onward.machine(), 2);
    ASSERT_OK(second);
    ASSERT_OK(onward.machine()->stop());
    const auto end = read_notice(onward.machine()->memory());
    ASSERT_OK(end);
    EXPECT_EQ((*end)->sequence, 6u);
    EXPECT_EQ((*end)->answers, 2u);
    EXPECT_EQ((*end)->told_gap_ns,
              gap + 123'456 + static_cast<std::uint64_t>(onward.plan()->gap.raw()));
    EXPECT_EQ((*end)->told_delta_realtime_ns, 7u);
}

constexpr std::uint64_t kFirstClockPage = witness::kClockPages;

TEST_F(MigrationOnKvm, AGuestThatScribblesOverItsClockPageMovesByTheKernelsLine) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    // As if it had done it with its last instruction before the stop.
    ASSERT_OK((*machine)->stop());
    ASSERT_OK((*machine)->memory().write(kFirstClockPage, Bytes(32, std::byte{0xff})));
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
    ASSERT_TRUE(destination.record() && destination.record()->kvmclock);
    EXPECT_EQ(destination.record()->kvmclock->origin, state::KvmclockOrigin::kKernel);
    bool told = false;
    for (const std::string& note : destination.certificate()->notes)
        told = told || note.find("page") != std::string::npos;
    EXPECT_TRUE(told) << "the certificate says that it rests on the kernel's line";
    VirtualMachine& moved = *destination.machine();
    ASSERT_OK(await_epoch(moved, *destination.epoch(), 10s));
    const auto seen = observe_witness(moved, *destination.plan(), *destination.epoch());
    ASSERT_OK(seen);
    for (const state::GuestObservation& vcpu : *seen)
        EXPECT_LE(std::abs(vcpu.kvmclock_seam_ns), 3) << "vCPU " << vcpu.vcpu;
    ASSERT_OK(run_loops(moved, 100));
    ASSERT_OK(moved.stop());
}

TEST_F(MigrationOnKvm, AClockPageAtAnImpossibleAddressIsNoReasonNotToMove) {
    auto machine = boot(*host_, 1);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    kvm::Vcpu& vcpu = source.machine()->vcpus()[0];
    int taken = 0;
    for (const std::uint64_t gpa : {kFirstClockPage + 2, std::uint64_t{1} << 40,
                                    std::uint64_t{32 << 20} - 16, ~std::uint64_t{0} << 12}) {
        if (!vcpu.set_msr(0x4b564d01, gpa | 1)) continue;  // KVM itself refuses some
        ++taken;
        const auto clocks = source.capture_clocks();
        ASSERT_OK(clocks);
        EXPECT_EQ(source.record()->kvmclock->origin, state::KvmclockOrigin::kKernel)
            << std::hex << gpa;
    }
    if (taken == 0) GTEST_SKIP() << "this KVM refuses all of them";
}

TEST_F(MigrationOnKvm, AGuestThatHasDiedIsNotMoved) {
    for (const bool before : {true, false}) {
        auto machine = boot(*host_, 1);
        ASSERT_OK(machine);
        ASSERT_OK((*machine)->stop());
        kvm_regs regs = *(*machine)->vcpus()[0].regs();
        regs.rip = std::uint64_t{1} << 40;  // outside its page tables
        ASSERT_OK((*machine)->vcpus()[0].set_regs(regs));
        ASSERT_OK((*machine)->resume());
        const auto until = after(10s);
        while ((*machine)->health() && std::chrono::steady_clock::now() < until)
            std::this_thread::sleep_for(1ms);
        KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
        const Status refused = before ? source.log_dirty_pages(true) : source.stop();
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code, state::ErrorCode::kGuest);
        EXPECT_TRUE(source.log_dirty_pages(false));
    }
}

TEST_F(MigrationOnKvm, ADestinationThatLacksACpuFeatureRefusesItByName) {
    const VmConfig config{.vcpus = 1, .memory_bytes = 32 << 20};
    auto cpuid = host_cpuid(host_->system, config);
    ASSERT_OK(cpuid);
    kvm::CpuidEntry* features = kvm::find_cpuid(*cpuid, 1);
    ASSERT_NE(features, nullptr);
    if (features->ecx == ~0u) GTEST_SKIP() << "this host has every feature there is";
    features->ecx = ~0u;
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const auto created = destination.create(encode_shape(config, *cpuid));
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(created.error().where, "CPUID 0x1.0 ECX");
    EXPECT_EQ(destination.machine(), nullptr);
}

TEST_F(MigrationOnKvm, AnMsrThatTheDestinationRefusesIsNamed) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    const auto msrs = host_->system.msr_index_list();
    ASSERT_OK(msrs);
    auto state = save_state(**machine, *msrs);
    ASSERT_OK(state);
    constexpr std::uint32_t kNoSuchMsr = 0xdead'beef;
    if ((*machine)->vcpus()[1].set_msr(kNoSuchMsr, 1)) GTEST_SKIP() << "KVM ignores unknown MSRs";
    state->vcpus[1].msrs.push_back({kNoSuchMsr, 0x123});
    auto other = VirtualMachine::create(host_->system, (*machine)->config(), (*machine)->cpuid());
    ASSERT_OK(other);
    const auto loaded = load_state(**other, *state);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, state::ErrorCode::kKernel);
    EXPECT_EQ(loaded.error().where, "vCPU 1: KVM_SET_MSRS of MSR 0xdeadbeef to 0x123");
}

// ---- Death with real VMs: two processes, and the survivor's guest must go on ----

struct Word {
    std::atomic<int> done{0};
    std::atomic<int> well{0};
};

/// In the survivor: its guest makes progress and its memory is whole.
int check_survivor(VirtualMachine* machine) {
    if (machine == nullptr || !run_loops(*machine, 100) || !machine->stop()) return 0;
    return verify_workload(machine->memory(), machine->config().vcpus) ? 1 : 0;
}

StepObserver die_at(Step step) {
    return [step](Step now) {
        if (now == step) ::raise(SIGKILL);
    };
}

[[noreturn]] void receiving_process(Word& word, const Address& address, int ready,
                                    std::optional<Step> die) {
    const auto host = examine_this_host();
    auto receiver = Receiver::open(address);
    if (!host || !receiver) _exit(3);
    if (::write(ready, "r", 1) != 1) _exit(4);
    MigrationOptions options;
    if (die) options.observer = die_at(*die);
    KvmDestinationVm vm{host->system, host->findings, {}};
    const auto outcome = (*receiver)->receive(vm, options, 10s);
    if (outcome && std::holds_alternative<Arrived>(*outcome))
        word.well = check_survivor(vm.machine());
    word.done = 1;
    for (;;)
        ::pause();
}

[[noreturn]] void sending_process(Word& word, const Address& address, std::optional<Step> die) {
    const auto host = examine_this_host();
    if (!host) _exit(3);
    auto machine = boot(*host, 2);
    auto connection = connect_to(address, 2s);
    if (!machine || !connection) _exit(4);
    MigrationOptions options;
    if (die) options.observer = die_at(*die);
    KvmSourceVm vm{host->system, std::move(*machine), host->findings};
    const auto outcome = send_vm(
        std::move(*connection), vm, [&] { return connect_to(address, 1s); }, options);
    if (std::holds_alternative<Kept>(outcome)) word.well = check_survivor(vm.machine());
    word.done = 1;
    for (;;)
        ::pause();
}

class DeathOnKvm : public testing::TestWithParam<Step> {};

TEST_P(DeathOnKvm, TheSurvivorsGuestGoesOn) {
    if (auto system = kvm::System::open(); !system)
        GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
    const Step step = GetParam();
    const bool source_dies = step < Step::kDestinationWelcome;
    void* shared = ::mmap(nullptr, 2 * sizeof(Word), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    auto* words = new (shared) Word[2];
    const Address address =
        *parse_address("unix:/tmp/continuo-death-" + std::to_string(::getpid()));
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const auto die = [&](bool source) {
        return source == source_dies ? std::optional{step} : std::nullopt;
    };
    const pid_t destination = ::fork();
    if (destination == 0) receiving_process(words[1], address, ready[1], die(false));
    pollfd wait{ready[0], POLLIN, 0};
    ASSERT_EQ(::poll(&wait, 1, 20'000), 1);
    const pid_t source = ::fork();
    if (source == 0) sending_process(words[0], address, die(true));

    const pid_t victim = source_dies ? source : destination;
    const pid_t survivor = source_dies ? destination : source;
    Word& word = source_dies ? words[1] : words[0];
    const auto until = after(40s);
    while (word.done == 0 && std::chrono::steady_clock::now() < until)
        std::this_thread::sleep_for(5ms);
    int status = 0;
    while (::waitpid(victim, &status, WNOHANG) == 0 && std::chrono::steady_clock::now() < until)
        std::this_thread::sleep_for(5ms);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the step was never reached";
    EXPECT_EQ(word.well, 1) << "the survivor's guest does not run";
    ::kill(victim, SIGKILL);
    ::kill(survivor, SIGKILL);
    ::waitpid(survivor, nullptr, 0);
    ::unlink(address.path.c_str());
    ::munmap(shared, 2 * sizeof(Word));
    ::close(ready[0]);
    ::close(ready[1]);
}

INSTANTIATE_TEST_SUITE_P(Steps, DeathOnKvm,
                         testing::Values(Step::kSourceAwaitReady, Step::kSourceCommit,
                                         Step::kSourceAwaitRunning, Step::kDestinationReceive,
                                         Step::kDestinationLoad, Step::kDestinationReady,
                                         Step::kDestinationRun, Step::kDestinationRunning),
                         [](const auto& step) {
                             std::string text{name(step.param)};
                             for (char& c : text)
                                 c = c == '-' ? '_' : c;
                             return text;
                         });

}  // namespace
}  // namespace continuo::vmm
