#include "witness_boot.h"

#include "continuo/vmm/core_registers.h"
#include "continuo/vmm/witness_machine.h"

namespace continuo::vmm {

namespace {

using namespace witness;

// Block descriptors of level 1: one GiB each.
constexpr std::uint64_t kBlock = 1;
constexpr std::uint64_t kBlockBytes = 1ull << 30;
constexpr std::uint64_t kAttributeDevice = 1ull
                                           << 2;  ///< index into MAIR_EL1, as the payload sets it
constexpr std::uint64_t kInnerShareable = 3ull << 8;
constexpr std::uint64_t kAccessed = 1ull << 10;
constexpr std::uint64_t kNeverExecute = 3ull << 53;

}  // namespace

void put_tables(GuestWriter& out, std::span<const std::byte>) {
    out.put(kTranslationTable, kBlock | kInnerShareable | kAccessed);
    out.put(kTranslationTable + 8 * (arm64::kDevices / kBlockBytes),
            arm64::kDevices | kBlock | kAttributeDevice | kAccessed | kNeverExecute);
}

void put_vcpu_tables(GuestWriter&, std::uint32_t) {}

Status set_entry(kvm::Vcpu& vcpu, std::uint64_t entry) {
    const std::pair<std::uint64_t, std::uint64_t> values[] = {
        {general_register(0), report_gpa(vcpu.id())},
        {general_register(1), kControl},
        {kRegisterSpEl1, stack_top(vcpu.id())},
        {kRegisterPstate, kPstateEl1hMasked},
        {kRegisterPc, entry},
    };
    for (const auto& [id, value] : values) {
        if (auto set = vcpu.set_one_reg(id, value); !set) return set;
    }
    return vcpu.set_mp_state(kvm_mp_state{KVM_MP_STATE_RUNNABLE});
}

Status fill_machine_control(VirtualMachine& machine, const WitnessConfig&, Control& control) {
    if (machine.vm().counter_offset()) control.flags |= kFlagOneOffset;
    return {};
}

}  // namespace continuo::vmm
