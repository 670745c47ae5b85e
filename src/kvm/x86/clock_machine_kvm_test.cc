// What is ClockMachine's own, beyond the contract of every machine: what it does with pages that a
// guest has damaged, with frequencies that the host cannot give, and that settle() has KVM publish
// without running the guest.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "continuo/abi/msr.h"
#include "continuo/abi/pvclock.h"
#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/settle.h"
#include "continuo/machine/migration.h"
#include "probe_vm.h"

namespace {
std::atomic<std::uint64_t> allocations{0};
}

// Counts what the whole program takes from the heap; NoCallForAVcpuUsesTheHeap reads it.
void* operator new(std::size_t size) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    if (void* at = std::malloc(size)) return at;
    throw std::bad_alloc{};
}
void operator delete(void* at) noexcept {
    std::free(at);
}
void operator delete(void* at, std::size_t) noexcept {
    std::free(at);
}

namespace continuo::kvm {
namespace {

#define ASSERT_OK(expression)                                \
    do {                                                     \
        auto outcome_ = (expression);                        \
        ASSERT_TRUE(outcome_) << outcome_.error().message(); \
    } while (false)

using abi::pvclock_vcpu_time_info;

class ClockMachineOnKvm : public testing::Test {
  protected:
    static constexpr std::size_t kVcpus = 3;

    void SetUp() override {
        auto system = System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        system_.emplace(std::move(*system));
        auto host = examine_host(*system_);
        ASSERT_TRUE(host) << host.error().message();
        host_ = *host;
        auto probe = ProbeVm::create(*system_, kVcpus);
        ASSERT_TRUE(probe) << probe.error().message();
        probe_ = std::move(*probe);
        machine_.emplace(probe_->vm(), probe_->vcpu_pointers(), probe_->memory(), host_);
    }

    pvclock_vcpu_time_info page(std::size_t vcpu) {
        return *probe_->memory().read_object<pvclock_vcpu_time_info>(probe_->pvclock_gpa(vcpu));
    }
    void put_page(std::size_t vcpu, const pvclock_vcpu_time_info& page) {
        ASSERT_OK(probe_->memory().write_object(probe_->pvclock_gpa(vcpu), page));
    }
    std::uint32_t mp_state(std::size_t vcpu) { return probe_->vcpu(vcpu).mp_state()->mp_state; }

    std::optional<System> system_;
    HostClock host_;
    std::unique_ptr<ProbeVm> probe_;
    std::optional<ClockMachine> machine_;
};

TEST_F(ClockMachineOnKvm, SettlePublishesPagesAndRunsNoGuestCode) {
    for (std::size_t i = 0; i < kVcpus; ++i)
        ASSERT_OK(probe_->enable_pvclock(i));
    const auto halted = kvm_mp_state{KVM_MP_STATE_HALTED};
    const auto waiting = kvm_mp_state{KVM_MP_STATE_UNINITIALIZED};
    ASSERT_OK(probe_->vcpu(1).set_mp_state(halted));
    ASSERT_OK(probe_->vcpu(2).set_mp_state(waiting));
    std::uint64_t rip[kVcpus];
    for (std::size_t i = 0; i < kVcpus; ++i) {
        EXPECT_EQ(page(i).version, 0u);
        rip[i] = probe_->vcpu(i).regs()->rip;
    }
    ASSERT_OK(machine_->settle());
    for (std::size_t i = 0; i < kVcpus; ++i) {
        EXPECT_EQ(page(i).version % 2, 0u);
        EXPECT_GT(page(i).version, 0u) << "vCPU " << i;
        EXPECT_EQ(probe_->vcpu(i).regs()->rip, rip[i]);
        EXPECT_TRUE(*machine_->pvclock_page(i));
    }
    EXPECT_EQ(mp_state(0), std::uint32_t{KVM_MP_STATE_RUNNABLE});
    EXPECT_EQ(mp_state(1), halted.mp_state);
    EXPECT_EQ(mp_state(2), waiting.mp_state);
}

TEST_F(ClockMachineOnKvm, SettleLeavesTheCallersSignalsAsTheyWere) {
    sigset_t before;
    sigset_t after;
    sigset_t pending;
    pthread_sigmask(SIG_SETMASK, nullptr, &before);
    ASSERT_OK(machine_->settle());
    pthread_sigmask(SIG_SETMASK, nullptr, &after);
    sigpending(&pending);
    for (int signal = 1; signal <= SIGRTMAX; ++signal) {
        EXPECT_EQ(sigismember(&before, signal), sigismember(&after, signal)) << signal;
        EXPECT_FALSE(sigismember(&pending, signal)) << signal;
    }
    EXPECT_EQ(probe_->vcpu(0).run_page().immediate_exit, 0);
    ASSERT_OK(probe_->guest_rdtsc(0));  // the vCPU runs as before
}

TEST_F(ClockMachineOnKvm, AfterSettleTheLineStaysWhereItIs) {
    for (std::size_t i = 0; i < kVcpus; ++i)
        ASSERT_OK(probe_->enable_pvclock(i));
    ASSERT_OK(machine_->settle());
    const auto reading = machine_->kvmclock();
    ASSERT_TRUE(reading);
    if (!reading->stable) GTEST_SKIP() << "no masterclock on this host";
    ASSERT_OK(machine_->set_kvmclock(time::Instant<time::Kvmclock>::from_raw(5'000'000'000)));
    ASSERT_OK(machine_->settle());
    const auto first = page(0);
    EXPECT_EQ(first.system_time, 5'000'000'000u);
    for (int i = 0; i < 3; ++i) {
        ASSERT_OK(machine_->settle());
        EXPECT_EQ(page(0).tsc_timestamp, first.tsc_timestamp);
        EXPECT_EQ(page(0).system_time, first.system_time);
    }
    for (std::size_t i = 1; i < kVcpus; ++i)
        EXPECT_EQ(page(i).tsc_timestamp, first.tsc_timestamp);
}

TEST_F(ClockMachineOnKvm, APageThatIsNotEnabledIsNone) {
    const auto line = machine_->pvclock_page(0);
    ASSERT_TRUE(line);
    EXPECT_FALSE(*line);
    EXPECT_EQ(machine_->vcpu_state(0)->system_time_msr, 0u);
    EXPECT_EQ(machine_->signal_guest_stopped(0).error().code, state::ErrorCode::kGuest);
}

TEST_F(ClockMachineOnKvm, ADamagedPageIsTheGuestsErrorAndNotALine) {
    ASSERT_OK(probe_->enable_pvclock(0));
    ASSERT_OK(machine_->settle());
    const auto good = page(0);
    ASSERT_TRUE(machine_->pvclock_page(0) && *machine_->pvclock_page(0));
    const auto refuses = [&](auto&& damage) {
        auto bad = good;
        damage(bad);
        put_page(0, bad);
        const auto line = machine_->pvclock_page(0);
        return !line && line.error().code == state::ErrorCode::kGuest;
    };
    EXPECT_TRUE(refuses([](auto& p) { p.version |= 1; }));
    EXPECT_TRUE(refuses([](auto& p) { p.version = 0; }));
    EXPECT_TRUE(refuses([](auto& p) { p.tsc_shift = 64; }));
    EXPECT_TRUE(refuses([](auto& p) { p.tsc_shift = -64; }));
    EXPECT_TRUE(refuses([](auto& p) { p.tsc_to_system_mul = 0; }));
    EXPECT_FALSE(refuses([](auto&) {}));
}

TEST_F(ClockMachineOnKvm, APageOutsideMemoryIsTheGuestsError) {
    // KVM takes some of these addresses and refuses others; the page is never read outside.
    for (const std::uint64_t gpa : {0x6002ULL, 0x6ff4ULL, 0x40000ULL, 0xffff'ffff'ffff'f000ULL}) {
        if (!probe_->vcpu(0).set_msr(abi::kMSR_KVM_SYSTEM_TIME_NEW, gpa | abi::kKVM_MSR_ENABLED))
            continue;
        const auto line = machine_->pvclock_page(0);
        ASSERT_FALSE(line) << std::hex << gpa;
        EXPECT_EQ(line.error().code, state::ErrorCode::kGuest);
        EXPECT_TRUE(machine_->vcpu_state(0));
    }
}

TEST_F(ClockMachineOnKvm, GuestStoppedIsPendingUntilTheGuestHasSeenIt) {
    ASSERT_OK(probe_->enable_pvclock(0));
    ASSERT_OK(machine_->settle());
    EXPECT_FALSE(machine_->vcpu_state(0)->guest_stopped_pending);
    ASSERT_OK(machine_->signal_guest_stopped(0));
    EXPECT_EQ(page(0).flags & abi::kPVCLOCK_GUEST_STOPPED, 0) << "not published yet";
    EXPECT_TRUE(machine_->vcpu_state(0)->guest_stopped_pending);
    ASSERT_OK(machine_->settle());
    auto published = page(0);
    EXPECT_NE(published.flags & abi::kPVCLOCK_GUEST_STOPPED, 0);
    EXPECT_TRUE(machine_->vcpu_state(0)->guest_stopped_pending);
    // The guest sees it and clears it.
    published.flags &= static_cast<std::uint8_t>(~abi::kPVCLOCK_GUEST_STOPPED);
    put_page(0, published);
    EXPECT_FALSE(machine_->vcpu_state(0)->guest_stopped_pending);
}

TEST_F(ClockMachineOnKvm, AFrequencyThatTheHostCannotGiveIsRefusedAndLeavesNoTrace) {
    if (host_.scaling_frac_bits) GTEST_SKIP() << "this host scales";
    const auto before = probe_->vcpu(0).tsc_khz();
    ASSERT_TRUE(before);
    for (const std::uint64_t khz : {std::uint64_t{0}, std::uint64_t{*before} / 2,
                                    std::uint64_t{*before} * 2, std::uint64_t{1} << 32}) {
        const auto refused = machine_->set_tsc_khz(0, khz);
        ASSERT_FALSE(refused) << khz;
        EXPECT_EQ(refused.error().code, state::ErrorCode::kUnsupported);
        EXPECT_EQ(*probe_->vcpu(0).tsc_khz(), *before);
    }
    EXPECT_TRUE(machine_->set_tsc_khz(0, *before));
}

/// A whole move onto the same VM, on any host: also where nothing moves the TSC, an advancing plan
/// has nothing to move. The witness is the guest: its RDTSC and its own pages.
TEST_F(ClockMachineOnKvm, AdvancingOnOneHostTheGuestSeesNoSeam) {
    for (std::size_t i = 0; i < kVcpus; ++i)
        ASSERT_OK(probe_->enable_pvclock(i));
    ASSERT_OK(machine_->settle());
    if (!machine_->kvmclock()->stable) GTEST_SKIP() << "no masterclock on this host";
    if (!probe_->vcpu(0).has_tsc_offset()) GTEST_SKIP() << "no TSC offset attribute";
    const auto record = machine::capture(*machine_);
    ASSERT_TRUE(record) << record.error().message();
    const auto destination = machine::destination_for(*machine_, *record);
    ASSERT_TRUE(destination && destination->same_boot);
    const auto plan = state::plan(*record, *destination, state::PlanOptions{});
    ASSERT_TRUE(plan) << plan.error().front().message;
    ASSERT_TRUE(record->anchor.suspended_ns) << "known, and the host was awake: by its counter";
    EXPECT_EQ(plan->elapsed_by, state::ElapsedBy::kHostCounter);
    const auto applied = machine::apply(*machine_, *plan);
    ASSERT_TRUE(applied) << applied.error().message();
    const auto certificate = machine::verify(*machine_, *plan, *applied);
    ASSERT_TRUE(certificate);
    EXPECT_TRUE(certificate->holds());
    ASSERT_TRUE(plan->kvmclock);
    for (std::size_t i = 0; i < kVcpus; ++i) {
        EXPECT_EQ(applied->maps[i], plan->tsc[i].map);
        const auto read = probe_->guest_rdtsc(i);
        ASSERT_TRUE(read) << read.error().message();
        EXPECT_GE((read->value - plan->tsc[i].map.at(read->before)).raw(), 0);
        EXPECT_GE((plan->tsc[i].map.at(read->after) - read->value).raw(), 0);
        const auto line = machine_->pvclock_page(i);
        ASSERT_TRUE(line && *line);
        const auto seam = (*line)->at(read->value) - plan->kvmclock->line.at(read->value);
        // The target of 1 ns and the floors of the two lines.
        EXPECT_LE(seam.magnitude(), 2u) << "vCPU " << i;
    }
}

TEST_F(ClockMachineOnKvm, NoCallForAVcpuUsesTheHeap) {
    for (std::size_t i = 0; i < kVcpus; ++i)
        ASSERT_OK(probe_->enable_pvclock(i));
    ASSERT_OK(machine_->settle());
    ASSERT_TRUE(machine_->tsc_map(0));
    const std::uint64_t before = allocations.load();
    bool fine = true;
    for (std::size_t i = 0; i < kVcpus; ++i) {
        const auto map = machine_->tsc_map(i);
        fine = fine && map && machine_->vcpu_state(i) && machine_->read_tsc_by_value(i) &&
               machine_->pvclock_page(i) && machine_->set_tsc_offset(i, map->offset()) &&
               machine_->set_tsc_adjust(i, 0) && machine_->signal_guest_stopped(i);
    }
    fine = fine && machine_->settle() && machine_->kvmclock() && machine_->anchor();
    EXPECT_EQ(allocations.load(), before);
    EXPECT_TRUE(fine);
}

TEST_F(ClockMachineOnKvm, FactsAreThoseOfTheHost) {
    const auto facts = machine_->host_facts();
    ASSERT_TRUE(facts);
    EXPECT_EQ(facts->counter_frequency.floor_khz(), host_.tsc_khz());
    EXPECT_EQ(facts->identity, host_identity());
    EXPECT_EQ(machine_->vcpu_count(), kVcpus);
}

TEST_F(ClockMachineOnKvm, TheClockTripleIsOneInstantInsideTheCall) {
    ASSERT_OK(machine_->settle());  // a new VM has no masterclock before its first update
    const auto before = machine_->now();
    const auto reading = machine_->kvmclock();
    const auto after = machine_->now();
    ASSERT_TRUE(reading);
    if (!reading->host) GTEST_SKIP() << "this kernel gives no host_tsc";
    EXPECT_GE((*reading->host - before).raw(), 0);
    EXPECT_GE((after - *reading->host).raw(), 0);
}

}  // namespace
}  // namespace continuo::kvm
