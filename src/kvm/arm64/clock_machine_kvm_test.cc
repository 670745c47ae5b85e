// What is ClockMachine's own on arm64, beyond the contract of every machine: one offset for the
// virtual and the physical counter of all vCPUs, seen with the guest's own eyes; moves from one VM
// to another; and the way by value.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>

#include "continuo/abi/arm64.h"
#include "continuo/kvm/clock_machine.h"
#include "continuo/kvm/doctor.h"
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

using machine::BracketedTsc;
using state::Policy;
using time::TscMap;

constexpr std::size_t kVcpus = 3;

/// A stopped VM and its machine.
struct Subject {
    Subject(const System& system, const DoctorReport& report, CounterOwner counter)
        : probe{std::move(*ProbeVm::create(system, kVcpus, counter))},
          machine{probe->vm(), probe->vcpu_pointers(), probe->memory(), *report.host,
                  ClockMachineOptions{report.quirks, {}}} {}

    std::unique_ptr<ProbeVm> probe;
    ClockMachine machine;
};

class ClockMachineOnKvm : public testing::Test {
  protected:
    void SetUp() override {
        auto system = System::open();
        if (!system) GTEST_SKIP() << "no usable /dev/kvm: " << system.error().message();
        system_.emplace(std::move(*system));
        static const Result<DoctorReport> report = examine(*system_);
        ASSERT_TRUE(report) << report.error().message();
        report_ = &*report;
        host_ = *report->host;
        ours_.emplace(*system_, *report_, CounterOwner::kUs);
    }
    bool offset_works() const { return report_->verdict == Verdict::kExact; }
    bool physical_works() const {
        return !state::has(report_->quirks, state::Quirk::kPhysicalCounterFixed);
    }

    ProbeVm& probe() { return *ours_->probe; }
    ClockMachine& machine() { return ours_->machine; }

    std::optional<System> system_;
    HostClock host_;
    std::optional<Subject> ours_;
    const DoctorReport* report_ = nullptr;
};

#define NEEDS_OFFSET() \
    if (!offset_works()) GTEST_SKIP() << "this host: " << name(report_->verdict)

/// The reading is on the map, give or take `bound` ticks.
testing::AssertionResult on_line(const Result<BracketedTsc>& read, const TscMap& map,
                                 std::uint64_t bound = 0) {
    if (!read) return testing::AssertionFailure() << read.error().message();
    const std::int64_t low = (read->value - map.at(read->before)).raw();
    const std::int64_t high = (map.at(read->after) - read->value).raw();
    const auto slack = static_cast<std::int64_t>(bound);
    if (low >= -slack && high >= -slack) return testing::AssertionSuccess();
    return testing::AssertionFailure() << low << " ticks after its bracket opened, " << high
                                       << " before it closed, bound " << bound;
}

state::Plan plan_of(ClockMachine& machine, const state::Record& record, Policy policy) {
    const auto destination = machine::destination_for(machine, record);
    EXPECT_TRUE(destination) << destination.error().message();
    state::PlanOptions options;
    options.policy = policy;
    const auto plan = state::plan(record, *destination, options);
    EXPECT_TRUE(plan) << (plan ? "" : plan.error().front().message);
    return *plan;
}

TEST_F(ClockMachineOnKvm, TheVirtualCounterOfEveryVcpuIsOnTheMap) {
    NEEDS_OFFSET();
    for (const std::uint64_t offset : {0ULL, 1ULL << 40, ~0ULL << 40, 1ULL << 63}) {
        ASSERT_OK(machine().anchor());
        for (std::size_t i = 0; i < kVcpus; ++i)
            ASSERT_OK(machine().set_tsc_offset(i, offset));
        for (std::size_t i = 0; i < kVcpus; ++i) {
            const auto map = machine().tsc_map(i);
            ASSERT_TRUE(map) << map.error().message();
            EXPECT_EQ(map->offset(), offset);
            EXPECT_TRUE(on_line(probe().guest_cntvct(i), *map)) << "vCPU " << i;
        }
    }
}

TEST_F(ClockMachineOnKvm, ThePhysicalCounterOfEveryVcpuIsOnTheSameMap) {
    NEEDS_OFFSET();
    if (!physical_works()) GTEST_SKIP() << "this host: the guest's CNTPCT_EL0 is not offset";
    for (const std::uint64_t offset : {0ULL, 1ULL << 40, ~0ULL << 40, 1ULL << 63}) {
        ASSERT_OK(machine().set_tsc_offset(0, offset));
        for (std::size_t i = 0; i < kVcpus; ++i)
            EXPECT_TRUE(on_line(probe().guest_cntpct(i), TscMap{offset})) << "vCPU " << i;
    }
}

TEST_F(ClockMachineOnKvm, OffsetsThatDisagreeAreRefusedAndNothingMoves) {
    NEEDS_OFFSET();
    ASSERT_OK(machine().set_tsc_offset(0, 1000));
    const auto refused = machine().set_tsc_offset(2, 1007);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, state::ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().where.find("vCPU 0 and vCPU 2"), std::string::npos);
    EXPECT_NE(refused.error().what.find("7 ticks apart"), std::string::npos)
        << refused.error().what;
    EXPECT_EQ(machine().tsc_map(2)->offset(), 1000u);
    EXPECT_FALSE(machine().set_tsc_offset(2, 1007)) << "asked again, the answer is the same";
    ASSERT_OK(machine().set_tsc_offset(2, 1000));
    // The next plan begins with an anchor.
    ASSERT_OK(machine().anchor());
    ASSERT_OK(machine().set_tsc_offset(2, 1007));
    EXPECT_EQ(machine().tsc_map(0)->offset(), 1007u);
}

TEST_F(ClockMachineOnKvm, AMoveToAnotherVmHasNoSeam) {
    NEEDS_OFFSET();
    ASSERT_OK(machine().set_tsc_offset(0, 0x1234'5678'9abc));
    const auto record = machine::capture(machine());
    ASSERT_TRUE(record) << record.error().message();
    EXPECT_EQ(record->architecture, state::Architecture::kArm64);
    EXPECT_FALSE(record->kvmclock);
    for (const Policy policy : {Policy::kAdvance, Policy::kFreeze}) {
        Subject there{*system_, *report_, CounterOwner::kUs};
        const auto plan = plan_of(there.machine, *record, policy);
        const auto applied = machine::apply(there.machine, plan);
        ASSERT_TRUE(applied) << applied.error().message();
        const auto certificate = machine::verify(there.machine, plan, *applied);
        ASSERT_TRUE(certificate);
        EXPECT_TRUE(certificate->holds());
        for (std::size_t i = 0; i < kVcpus; ++i) {
            EXPECT_EQ(certificate->clocks[i].seam, 0);
            EXPECT_EQ(certificate->clocks[i].bound.total(), 0u);
            EXPECT_EQ(applied->maps[i], plan.tsc[i].map);
            EXPECT_TRUE(on_line(there.probe->guest_cntvct(i), plan.tsc[i].map));
            if (physical_works()) {
                EXPECT_TRUE(on_line(there.probe->guest_cntpct(i), plan.tsc[i].map));
            }
        }
        if (policy == Policy::kAdvance) {
            EXPECT_EQ(applied->maps[0].offset(), 0x1234'5678'9abcu);
        } else {
            EXPECT_EQ(applied->maps[0].at(plan.resume_at), record->vcpus[0].counter);
        }
    }
}

TEST_F(ClockMachineOnKvm, WritesOfTheRegisterDoNothingOnceAnOffsetWasSet) {
    NEEDS_OFFSET();
    const auto map = machine().tsc_map(0);
    ASSERT_TRUE(map);
    EXPECT_TRUE(state::has(machine().host_facts()->quirks, state::Quirk::kTscWriteIgnored));
    EXPECT_EQ(machine().write_tsc_by_value(0, {}).error().code, state::ErrorCode::kUnsupported);
    ASSERT_OK(probe().vcpu(0).set_one_reg(abi::kKVM_REG_ARM_TIMER_CNT, std::uint64_t{1} << 50));
    EXPECT_TRUE(on_line(probe().guest_cntvct(0), *map));
}

TEST_F(ClockMachineOnKvm, AVcpuThatRunsMakesTheOffsetBusy) {
    NEEDS_OFFSET();
    std::atomic<Vm*> vm{nullptr};
    std::thread guest{[&] {
        auto probe = ProbeVm::create(*system_, 1);
        if (!probe) return;
        vm = &(*probe)->vm();
        // Far longer than the limit of a run, which ends it.
        [[maybe_unused]] const auto ended = (*probe)->cntvct_ticks(0, std::uint64_t{1} << 60);
        while (vm.load() != nullptr)
            std::this_thread::yield();
    }};
    Status set;
    for (int i = 0; i < 1000 && set; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
        if (Vm* running = vm.load()) set = running->set_counter_offset(5);
    }
    vm = nullptr;
    guest.join();
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code, state::ErrorCode::kBusy);
}

TEST_F(ClockMachineOnKvm, ByValueOneWriteMovesAllVcpusAndTheBoundHolds) {
    Subject there{*system_, *report_, CounterOwner::kKernel};
    const auto facts = there.machine.host_facts();
    ASSERT_TRUE(facts);
    EXPECT_TRUE(state::has(facts->quirks, state::Quirk::kNoTscOffset));
    EXPECT_TRUE(state::has(facts->quirks, state::Quirk::kPhysicalCounterFixed));
    EXPECT_FALSE(there.machine.vcpu_state(0)->map);
    EXPECT_EQ(there.machine.tsc_map(0).error().code, state::ErrorCode::kUnsupported);
    const auto record = machine::capture(there.machine);
    ASSERT_TRUE(record) << record.error().message();
    EXPECT_GT(record->vcpus[0].counter_bound_ticks, 0u);
    const auto plan = plan_of(there.machine, *record, Policy::kFreeze);
    for (std::size_t i = 1; i < kVcpus; ++i)
        EXPECT_EQ(plan.tsc[i].map, plan.tsc[0].map) << "one counter";
    const auto applied = machine::apply(there.machine, plan);
    ASSERT_TRUE(applied) << applied.error().message();
    const auto certificate = machine::verify(there.machine, plan, *applied);
    ASSERT_TRUE(certificate);
    EXPECT_TRUE(certificate->holds());
    for (std::size_t i = 0; i < kVcpus; ++i)
        EXPECT_TRUE(
            on_line(there.probe->guest_cntvct(i), applied->maps[i], applied->map_bound_ticks[i]))
            << "vCPU " << i;
    std::printf("by value: seam %lld ticks, bound %llu\n",
                static_cast<long long>(certificate->clocks[0].seam),
                static_cast<unsigned long long>(certificate->clocks[0].seam_bound));
}

TEST_F(ClockMachineOnKvm, ByValueValuesOfTwoLinesAreRefused) {
    Subject there{*system_, *report_, CounterOwner::kKernel};
    const auto value = time::Count<time::GuestCounter>::from_raw(std::uint64_t{1} << 50);
    ASSERT_OK(there.machine.write_tsc_by_value(0, value));
    const auto far = time::Count<time::GuestCounter>::from_raw(std::uint64_t{1} << 51);
    const auto refused = there.machine.write_tsc_by_value(1, far);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, state::ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().where.find("vCPU 0 and vCPU 1"), std::string::npos);
    EXPECT_LT(there.machine.read_tsc_by_value(1)->value.raw(), std::uint64_t{1} << 51);
}

TEST_F(ClockMachineOnKvm, AnotherFrequencyIsRefusedToTheHz) {
    const auto record = machine::capture(machine());
    ASSERT_TRUE(record);
    auto destination = machine::destination_for(machine(), *record);
    ASSERT_TRUE(destination);
    EXPECT_EQ(destination->anchor.frequency, host_.frequency());
    destination->anchor.frequency = *time::Hz::from_hz(host_.frequency().hz() + 1);
    const auto plan = state::plan(*record, *destination, state::PlanOptions{});
    ASSERT_FALSE(plan);
    EXPECT_EQ(plan.error().front().reason, state::RefusalReason::kFrequency);
    EXPECT_EQ(*probe().guest_cntfrq(0), host_.frequency().hz());
    ASSERT_OK(machine().set_tsc_khz(0, host_.frequency().floor_khz()));
    EXPECT_EQ(machine().set_tsc_khz(0, 1).error().code, state::ErrorCode::kUnsupported);
}

TEST_F(ClockMachineOnKvm, WhatIsX86AloneSaysSo) {
    EXPECT_EQ(machine().kvmclock().error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(machine().set_kvmclock({}).error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(machine().set_tsc_adjust(0, 0).error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(machine().signal_guest_stopped(0).error().code, state::ErrorCode::kUnsupported);
    EXPECT_FALSE(*machine().pvclock_page(0));
    ASSERT_OK(machine().settle());
}

TEST_F(ClockMachineOnKvm, NoCallForAVcpuUsesTheHeap) {
    NEEDS_OFFSET();
    ASSERT_TRUE(machine().tsc_map(0));
    const std::uint64_t before = allocations.load();
    bool fine = true;
    for (std::size_t i = 0; i < kVcpus; ++i) {
        const auto map = machine().tsc_map(i);
        fine = fine && map && machine().vcpu_state(i) && machine().read_tsc_by_value(i) &&
               machine().pvclock_page(i) && machine().set_tsc_offset(i, map->offset());
    }
    fine = fine && machine().settle() && machine().anchor();
    EXPECT_EQ(allocations.load(), before);
    EXPECT_TRUE(fine);
}

}  // namespace
}  // namespace continuo::kvm
