// Live migrations of the witness guest on a real /dev/kvm: what only arm64 has.
#include <algorithm>

#include "continuo/vmm/core_registers.h"
#include "migration_kvm_fixture.h"

namespace continuo::vmm {

Status lead_astray(kvm::Vcpu& vcpu) {
    return vcpu.set_one_reg(kRegisterPc, std::uint64_t{1} << 40);  // outside its translation table
}

namespace {

TEST_F(MigrationOnKvm, ADestinationOfAnotherFrequencyRefusesIt) {
    const VmConfig config{.vcpus = 1, .memory_bytes = 32 << 20};
    auto model = host_cpu_model(host_->system, config);
    ASSERT_OK(model);
    EXPECT_EQ(model->counter_hz, host_->findings.host.frequency().hz());
    model->counter_hz += 1;
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const auto created = destination.create(encode_shape({config, *model}));
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code, state::ErrorCode::kUnsupported);
    EXPECT_EQ(created.error().where, "CNTFRQ_EL0");
    EXPECT_EQ(destination.machine(), nullptr);
}

TEST_F(MigrationOnKvm, ARegisterThatTheDestinationRefusesIsNamed) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    ASSERT_OK((*machine)->stop());
    auto state = save_state(**machine, host_->system);
    ASSERT_OK(state);
    constexpr std::uint64_t kNoSuchRegister = 0x6030'0000'0013'ffff;
    state->vcpus[1].registers.push_back({kNoSuchRegister, Bytes(8, std::byte{1})});
    auto other =
        VirtualMachine::create(host_->system, (*machine)->config(), (*machine)->cpu_model());
    ASSERT_OK(other);
    const auto loaded = load_state(**other, *state);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, state::ErrorCode::kKernel);
    EXPECT_EQ(loaded.error().where,
              "vCPU 1: KVM_SET_ONE_REG of 0x603000000013ffff to 0x101010101010101");
}

TEST_F(MigrationOnKvm, ByValueTheCountersLandWhenTheyLandAndTheCertificateSaysSo) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    ArrivalOptions arrival;
    arrival.by_value = true;
    KvmDestinationVm destination{host_->system, host_->findings, arrival};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    ASSERT_TRUE(std::holds_alternative<Moved>(*ends.source));
    for (const state::ClockCertificate& clock : destination.certificate()->clocks) {
        std::printf("%s of vCPU %u: %lld ticks off by value\n",
                    std::string{state::name(clock.clock)}.c_str(), clock.vcpu.value_or(0),
                    static_cast<long long>(clock.seam));
        EXPECT_EQ(clock.clock, state::ClockKind::kVirtualCounter);
        EXPECT_LT(clock.seam, 0) << "no account of the time that passed";
    }
    ASSERT_OK(await_epoch(*destination.machine(), *destination.epoch(), std::chrono::seconds{10}));
}

TEST_F(MigrationOnKvm, NothingIsCertifiedOfAPhysicalCounterThatDoesNotFollow) {
    auto machine = boot(*host_, 2);
    ASSERT_OK(machine);
    KvmSourceVm source{host_->system, std::move(*machine), host_->findings};
    KvmDestinationVm destination{host_->system, host_->findings, {}};
    const Ends ends = migrate(source, destination, address());
    if (const auto* kept = std::get_if<Kept>(&*ends.source)) FAIL() << kept->reason.message();
    const auto& clocks = destination.certificate()->clocks;
    const auto rows = std::count_if(clocks.begin(), clocks.end(), [](const auto& clock) {
        return clock.clock == state::ClockKind::kPhysicalCounter;
    });
    const bool fixed = state::has(host_->findings.quirks, state::Quirk::kPhysicalCounterFixed);
    EXPECT_EQ(rows, fixed ? 0 : 2);
}

}  // namespace
}  // namespace continuo::vmm
