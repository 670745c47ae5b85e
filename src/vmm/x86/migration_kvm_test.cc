// Live migrations of the witness guest on a real /dev/kvm: what only x86-64 has.
#include "acpi.h"
#include "devices.h"
#include "migration_kvm_fixture.h"

namespace continuo::vmm {

Status lead_astray(kvm::Vcpu& vcpu) {
    auto regs = vcpu.regs();
    if (!regs) return tl::unexpected(std::move(regs.error()));
    regs->rip = std::uint64_t{1} << 40;  // outside its page tables
    return vcpu.set_regs(*regs);
}

namespace {

using namespace std::chrono_literals;

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
        EXPECT_LE(std::abs(vcpu.kvmclock_seam_ns.value_or(99)), 3) << "vCPU " << vcpu.vcpu;
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

TEST_F(MigrationOnKvm, ADestinationThatLacksACpuFeatureRefusesItByName) {
    const VmConfig config{.vcpus = 1, .memory_bytes = 32 << 20};
    auto cpuid = host_cpu_model(host_->system, config);
    ASSERT_OK(cpuid);
    kvm::CpuidEntry* features = kvm::find_cpuid(*cpuid, 1);
    ASSERT_NE(features, nullptr);
    if (features->ecx == ~0u) GTEST_SKIP() << "this host has every feature there is";
    features->ecx = ~0u;
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const auto created = destination.create(encode_shape({config, *cpuid}));
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(created.error().where, "CPUID 0x1.0 ECX");
    EXPECT_EQ(destination.machine(), nullptr);
}

TEST_F(MigrationOnKvm, TheNoticeDeviceIsRaisedBeforeTheGuestRuns) {
    constexpr std::uint64_t kPage = 0xd0000;
    auto machine = boot(*host_, 1);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    VirtualMachine& first = **machine;
    ASSERT_OK(first.board().devices().add_notice(
        {first.memory(), [&first](std::uint64_t gpa) { first.mark_dirty(gpa); }}, kPage, 5'000));
    ASSERT_OK(first.resume());
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    ArrivalOptions options;
    options.plan.policy = state::Policy::kAdvanceAndNotify;
    KvmDestinationVm destination{host_->system, host_->findings, options};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    VirtualMachine& moved = *destination.machine();
    const auto page = moved.memory().read_object<abi::time_travel_page>(kPage);
    ASSERT_OK(page);
    EXPECT_EQ(page->migration_sequence, 1u);
    EXPECT_EQ(page->release_after_ns, 5'000u);
    EXPECT_EQ(page->gap_ns, static_cast<std::uint64_t>(destination.plan()->notice->gap.raw()))
        << "of the plan that counted, however often the instant was missed";
    EXPECT_GT(page->gap_ns, 0u);
    EXPECT_EQ(page->time_travelled_ns, 0u) << "REALTIME advanced";
    EXPECT_EQ(destination.certificate()->notice->sequence, 1u);
    EXPECT_EQ(moved.board().devices().events(), acpi::kEventNotice);
    EXPECT_EQ(moved.board().notice()->status().counts.raised, 1u);
    ASSERT_OK(moved.stop());
}

TEST_F(MigrationOnKvm, AnMsrThatTheDestinationRefusesIsNamed) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    auto state = save_state(**machine, host_->system);
    ASSERT_OK(state);
    constexpr std::uint32_t kNoSuchMsr = 0xdead'beef;
    if ((*machine)->vcpus()[1].set_msr(kNoSuchMsr, 1)) GTEST_SKIP() << "KVM ignores unknown MSRs";
    state->vcpus[1].msrs.push_back({kNoSuchMsr, 0x123});
    auto other =
        VirtualMachine::create(host_->system, (*machine)->config(), (*machine)->cpu_model());
    ASSERT_OK(other);
    const auto loaded = load_state(**other, *state);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, state::ErrorCode::kKernel);
    EXPECT_EQ(loaded.error().where, "vCPU 1: KVM_SET_MSRS of MSR 0xdeadbeef to 0x123");
}

}  // namespace
}  // namespace continuo::vmm
