// The machine's contract on the model of KVM, and whole migrations from one such host to another.
#include "continuo/model/kvm_machine.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>

#include "contract_tests.h"

namespace continuo::model {
namespace {

using machine::ContractFactory;
using machine::ContractSubject;
using machine::MachineContract;
using state::PlanOptions;
using state::Policy;
using time::Count;
using time::HostCounter;

/// A host, a VM on it whose guest uses kvmclock, and its machine.
class KvmSubject final : public ContractSubject {
  public:
    KvmSubject(std::uint32_t khz, const KernelRules& rules, std::uint32_t jitter_ticks,
               std::size_t vcpus, std::uint32_t guest_khz, std::uint64_t seed = 1)
        : host{khz}, random{seed}, vm{started(), rules, 0}, machine_{vm} {
        host.take_time(&random, jitter_ticks);
        EXPECT_TRUE(vm.set_vm_tsc_khz(guest_khz));
        for (std::size_t i = 0; i < vcpus; ++i) {
            EXPECT_TRUE(vm.create_vcpu());
            const auto vcpu = static_cast<unsigned>(i);
            EXPECT_TRUE(vm.guest_write_msr(vcpu, abi::kMSR_KVM_SYSTEM_TIME_NEW, 64 * vcpu | 1));
        }
        enter_all();
        for (unsigned i = 0; i < vm.vcpu_count(); ++i)
            vm.exit(i);
    }
    machine::Machine& machine() override { return machine_; }
    void sleep_ns(std::uint64_t ns) override { host.sleep_ns(ns); }

    /// And enter again where one's masterclock update kicked another out.
    void enter_all() {
        for (int pass = 0; pass < 3; ++pass)
            for (unsigned i = 0; i < vm.vcpu_count(); ++i)
                if (!vm.in_guest(i)) vm.enter(i);
    }

    HostPlatform host;
    Random random;
    KvmVm vm;

  private:
    HostPlatform& started() {
        host.counter = 7'777'777'777;
        return host;
    }
    KvmMachine machine_;
};

ContractFactory kvm(std::string name, std::uint32_t khz, KernelRules rules, std::uint32_t jitter,
                    std::uint32_t guest_khz) {
    return {std::move(name), [=](std::size_t vcpus) {
                return std::make_unique<KvmSubject>(khz, rules, jitter, vcpus, guest_khz);
            }};
}

const KernelRules kOld = KernelRules::linux(6, 1);
const KernelRules kMiddle = KernelRules::linux(6, 12);
const KernelRules kNew = KernelRules::linux(7, 2);

KernelRules ignored() {
    KernelRules rules = kNew;
    rules.offset_stays_zero = true;
    return rules;
}

INSTANTIATE_TEST_SUITE_P(
    Kvm, MachineContract,
    testing::Values(kvm("linux_6_1", 2'000'000, kOld, 0, 2'000'000),
                    kvm("linux_6_12", 2'000'000, kMiddle, 0, 2'000'000),
                    kvm("linux_7_2", 2'000'000, kNew, 0, 2'000'000),
                    kvm("linux_6_1_jitter", 2'596'101, kOld, 100, 2'596'101),
                    kvm("linux_6_12_jitter", 2'596'101, kMiddle, 100, 2'596'101),
                    kvm("linux_7_2_jitter", 2'596'101, kNew, 100, 2'596'101),
                    kvm("svm_scaled", 2'100'123, kMiddle.with_scaling(32), 40, 3'456'789),
                    kvm("vmx_scaled", 3'000'000, kNew.with_scaling(48), 40, 1'999'999),
                    kvm("tolerated", 2'000'000, kMiddle, 40, 2'000'400),
                    kvm("linux_5_10_by_value", 2'000'000, KernelRules::linux(5, 10), 40, 2'000'000),
                    kvm("offset_ignored", 2'000'000, ignored(), 40, 2'000'000)),
    [](const auto& instance) { return instance.param.name; });

/// A guest that moves between two hosts that count true time at their stated kHz.
struct Move {
    std::uint32_t from_khz = 2'000'000;
    std::uint32_t to_khz = 2'000'000;
    std::uint32_t guest_khz = 2'000'000;
    KernelRules from_rules = kMiddle;
    KernelRules to_rules = kMiddle;
    std::uint32_t jitter_ticks = 0;
    std::uint64_t seed = 1;
    Policy policy = Policy::kFreeze;
    std::uint64_t gap_ns = 2'000'000'000;
    bool usual_way = false;  ///< what VMMs do today, instead of apply()
};

struct Moved {
    state::Record record;
    state::Plan plan;
    machine::Applied applied;
    state::Certificate certificate;
};

constexpr std::size_t kVcpus = 4;

/// Captures on the source, and restores on the destination as a VMM does: new VM, the guest's
/// MSRs, then the plan.
class Migration {
  public:
    explicit Migration(const Move& move)
        : move_{move},
          from{move.from_khz, move.from_rules, move.jitter_ticks,
               kVcpus,        move.guest_khz,  move.seed},
          to{move.to_khz,
             move.to_rules,
             move.jitter_ticks,
             kVcpus,
             move.to_rules.scaling_frac_bits ? move.guest_khz : move.to_khz,
             move.seed + 1} {}

    void run() {
        from.sleep_ns(500'000'000);
        to.sleep_ns(900'000'000);
        auto record = capture(from.machine());
        RC_ASSERT(record.has_value());
        result.record = *record;
        // The destination's REALTIME is the source's, gap_ns later; both round down.
        const auto at_stop = from.host.realtime_ns(record->anchor.counter.raw());
        to.host.real.ns += at_stop + static_cast<std::int64_t>(move_.gap_ns) -
                           to.host.realtime_ns(to.host.counter);
        state::HostIdentity other{{2}, "destination"};
        KvmMachine destination{to.vm, KvmMachineHost{other}};
        const auto here = destination_for(destination, *record);
        RC_ASSERT(here.has_value());
        PlanOptions options;
        options.policy = move_.policy;
        auto plan = state::plan(*record, *here, options);
        RC_ASSERT(plan.has_value());
        result.plan = *plan;
        auto applied = move_.usual_way ? apply_by_value(destination, *record, *plan)
                                       : apply(destination, *plan);
        if (!applied) RC_FAIL(applied.error().message());
        result.applied = *applied;
        auto certificate = verify(destination, *plan, *applied);
        RC_ASSERT(certificate.has_value());
        result.certificate = *certificate;
    }

  private:
    Move move_;

  public:
    KvmSubject from;
    KvmSubject to;
    Moved result;
};

Move generated() {
    Move move;
    const auto any_rules = [] { return *rc::gen::element(kOld, kMiddle, kNew); };
    move.from_rules = any_rules();
    move.to_rules = any_rules();
    move.guest_khz = *rc::gen::inRange<std::uint32_t>(900'000, 4'900'000);
    move.from_khz = move.guest_khz;
    move.to_khz = move.guest_khz;
    if (*rc::gen::arbitrary<bool>()) {
        move.to_khz = *rc::gen::inRange<std::uint32_t>(900'000, 4'900'000);
        move.to_rules = move.to_rules.with_scaling(*rc::gen::element(32, 48));
    }
    move.jitter_ticks = *rc::gen::element<std::uint32_t>(0, 3, 40);
    move.seed = *rc::gen::arbitrary<std::uint64_t>();
    move.policy = *rc::gen::element(Policy::kFreeze, Policy::kAdvance);
    return move;
}

// What apply() prescribes is what KVM then has: the counters to the tick, kvmclock within the
// trim's target and the rounding of one page, whatever the kernel and the jitter.
RC_GTEST_PROP(KvmMigration, TheRealisedLinesAreThePrescribedOnes, ()) {
    Migration migration{generated()};
    migration.run();
    const Moved& moved = migration.result;
    RC_LOG() << "trim: " << moved.applied.trim.rounds << " rounds, residual "
             << moved.applied.trim.residual_ns << " ns, seam "
             << moved.certificate.clocks.back().seam << " ns";
    RC_ASSERT(moved.certificate.holds());
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu)
        RC_ASSERT(migration.to.vm.tsc_map(vcpu) == moved.plan.tsc[vcpu].map);
    migration.to.enter_all();
    RC_ASSERT(migration.to.vm.masterclock());
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const auto page = abi::pvclock_line(migration.to.vm.page(vcpu));
        RC_ASSERT(page.has_value());
        const auto tsc = migration.to.vm.tsc_map(vcpu).at(
            Count<HostCounter>::from_raw(migration.to.host.counter));
        const auto off = page->at(tsc) - moved.plan.kvmclock->line.at(tsc);
        RC_ASSERT(off.magnitude() <= 2U);
    }
}

/// A kernel without the attribute: 5.10's other rules, or those of one of ours.
KernelRules without_offset(KernelRules rules) {
    rules.has_offset_attribute = false;
    return rules;
}

// By value each counter is where the certificate says, whatever the kernel takes for an attempt to
// synchronise; the vCPUs of one line get one offset, and the masterclock is there.
RC_GTEST_PROP(KvmMigration, ByValueTheTruthIsInsideTheBound, ()) {
    Move move = generated();
    move.from_rules = without_offset(move.from_rules);
    move.to_rules = without_offset(
        *rc::gen::element(KernelRules::linux(5, 10).with_scaling(48), move.to_rules));
    Migration migration{move};
    migration.run();
    const Moved& moved = migration.result;
    RC_ASSERT(moved.certificate.holds());
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) {
        const TscMap& truth = migration.to.vm.tsc_map(vcpu);
        const auto off =
            moved.applied.maps[vcpu].at(moved.plan.resume_at) - truth.at(moved.plan.resume_at);
        RC_ASSERT(off.magnitude() <= moved.applied.map_bound_ticks[vcpu]);
        const auto seam = truth.at(moved.plan.resume_at) - moved.plan.tsc[vcpu].at_resume;
        RC_ASSERT(seam.magnitude() <=
                  moved.certificate.clocks[vcpu].seam_bound + moved.applied.map_bound_ticks[vcpu]);
        RC_ASSERT(truth == migration.to.vm.tsc_map(0));
    }
    migration.to.enter_all();
    RC_ASSERT(migration.to.vm.masterclock());
}

// What VMMs do today: four counters 0.3 s apart are written one after the other, and all take the
// line of the first (tsc_write_snaps): vCPU 3 loses 0.9 s, 1'800'000'000 ticks.
TEST(KvmMigration, TheUsualRestoreByValueLosesWhatIsBelowASecond) {
    for (const bool usual : {true, false}) {
        Move move;
        move.usual_way = usual;
        move.jitter_ticks = 3;
        Migration migration{move};
        for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu)
            ASSERT_TRUE(migration.from.vm.guest_write_msr(
                vcpu, abi::kMSR_IA32_TSC, (1ULL << 40) + std::uint64_t{600'000'000} * vcpu));
        migration.run();
        const KvmVm& vm = migration.to.vm;
        const std::uint64_t apart = vm.tsc_map(3).offset() - vm.tsc_map(0).offset();
        const auto before =
            migration.result.record.vcpus[3].counter - migration.result.record.vcpus[0].counter;
        EXPECT_LE(std::abs(before.raw() - 1'800'000'000), 100);  // jitter of the guest's writes
        EXPECT_EQ(apart, usual ? 0 : static_cast<std::uint64_t>(before.raw()));
    }
}

TEST(KvmMigration, TheSameSeedTwiceIsTheSameRun) {
    Move move;
    move.jitter_ticks = 40;
    move.seed = 99;
    Migration first{move};
    Migration second{move};
    first.run();
    second.run();
    EXPECT_EQ(first.result.record, second.result.record);
    EXPECT_EQ(first.to.host.counter, second.to.host.counter);
    EXPECT_EQ(first.to.vm.arch().kvmclock_offset, second.to.vm.arch().kvmclock_offset);
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu)
        EXPECT_EQ(first.to.vm.page(vcpu), second.to.vm.page(vcpu));
    move.seed = 100;
    Migration other{move};
    other.run();
    EXPECT_NE(first.to.host.counter, other.to.host.counter);
}

}  // namespace
}  // namespace continuo::model
