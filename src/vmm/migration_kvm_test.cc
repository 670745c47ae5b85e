// Live migrations of the witness guest on a real /dev/kvm, whatever the architecture.
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>

#include "migration_kvm_fixture.h"

namespace continuo::vmm {
namespace {

using namespace std::chrono_literals;

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
        const long long page_seam = vcpu.kvmclock_seam_ns.value_or(0);
        std::printf("vCPU %u: first read %lld ns after the instant, kvmclock seam %lld ns\n",
                    vcpu.vcpu, static_cast<long long>(vcpu.after_resume_ns), page_seam);
        EXPECT_GE(vcpu.after_resume_ns, 0) << "no vCPU reads before the common instant";
        EXPECT_LE(std::abs(page_seam), 3) << "the guest's own page";
        EXPECT_EQ(vcpu.kvmclock_seam_ns.has_value(), kX86);
    }
    const state::Certificate& certificate = *destination.certificate();
    for (const state::ClockCertificate& clock : certificate.clocks) {
        EXPECT_TRUE(clock.holds()) << state::name(clock.clock) << " seam " << clock.seam;
        // Only a kernel that has no offset to be set leaves a counter where its value has landed.
        if (clock.unit == "ticks" &&
            !state::has(host_->findings.quirks, state::Quirk::kNoTscOffset)) {
            EXPECT_EQ(clock.seam, 0) << state::name(clock.clock);
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
        if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
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
        if (((*notice)->page.migration_sequence & 1) == 0 && (*notice)->answers == answers)
            return **notice;
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
    EXPECT_EQ(first->page.migration_sequence, 2u);
    EXPECT_EQ(first->told_gap_ns, gap);
    EXPECT_EQ(first->told_delta_realtime_ns, 0u) << "its clocks advanced";

    // Stopped before it has answered another: as if that had come with the stop.
    std::unique_ptr<VirtualMachine> here = destination.release();
    ASSERT_OK(here->stop());
    state::Notice unanswered;
    unanswered.gap = decltype(unanswered.gap)::from_raw(123'456);
    unanswered.delta_realtime = decltype(unanswered.gap)::from_raw(7);
    ASSERT_OK(publish_notice(*here, **read_notice(here->memory()), unanswered, 10));
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
    EXPECT_EQ((*end)->page.migration_sequence, 6u);
    EXPECT_EQ((*end)->answers, 2u);
    EXPECT_EQ((*end)->told_gap_ns,
              gap + 123'456 + static_cast<std::uint64_t>(onward.plan()->gap.raw()));
    EXPECT_EQ((*end)->told_delta_realtime_ns, 7u);
}

TEST_F(MigrationOnKvm, AGuestThatHasDiedIsNotMoved) {
    for (const bool before : {true, false}) {
        auto machine = boot(*host_, 1);
        ASSERT_OK(machine);
        ASSERT_OK((*machine)->stop());
        ASSERT_OK(lead_astray((*machine)->vcpus()[0]));
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
