#include "seeds.h"

namespace continuo::vmm {

VmState sample_vm_state() {
    VmState state;
    for (std::uint32_t chip = 0; chip < state.irqchips.size(); ++chip)
        state.irqchips[chip].chip_id = chip;
    state.serial.interrupt_enable = 5;
    state.serial.received = {'a', 'b'};
    state.pm1_enable = 0x20;
    VcpuState vcpu;
    vcpu.xcrs.emplace();
    vcpu.xsave.assign(4096, std::byte{0});
    vcpu.msrs = {{0x174, 1}, {0x6e0, 0}};
    state.vcpus.push_back(vcpu);
    return state;
}

VmShape sample_vm_shape() {
    kvm::CpuidEntries cpuid(2);
    cpuid[1].function = 1;
    return {{.vcpus = 1, .memory_bytes = kMemoryMin}, cpuid};
}

}  // namespace continuo::vmm
