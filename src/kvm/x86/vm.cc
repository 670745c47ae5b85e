#include "continuo/kvm/vm.h"

namespace continuo::kvm {

Result<Vm> Vm::create(const System& system) {
    Vm vm;
    if (auto created = vm.create_vm(system, 0); !created) return tl::unexpected(created.error());
    return vm;
}

Status Vm::set_tss_address(std::uint64_t gpa) {
    return call(KVM_SET_TSS_ADDR, static_cast<unsigned long>(gpa), "KVM_SET_TSS_ADDR");
}

Status Vm::set_identity_map_address(std::uint64_t gpa) {
    return call(KVM_SET_IDENTITY_MAP_ADDR, &gpa, "KVM_SET_IDENTITY_MAP_ADDR");
}

Status Vm::create_irqchip() {
    return call(KVM_CREATE_IRQCHIP, 0UL, "KVM_CREATE_IRQCHIP");
}

Status Vm::create_pit() {
    kvm_pit_config config{};
    config.flags = KVM_PIT_SPEAKER_DUMMY;
    return call(KVM_CREATE_PIT2, &config, "KVM_CREATE_PIT2");
}

Result<kvm_irqchip> Vm::get_irqchip(std::uint32_t chip) const {
    kvm_irqchip state{};
    state.chip_id = chip;
    return call(KVM_GET_IRQCHIP, &state, "KVM_GET_IRQCHIP").map([&] { return state; });
}

Status Vm::set_irqchip(const kvm_irqchip& chip) {
    kvm_irqchip state = chip;
    return call(KVM_SET_IRQCHIP, &state, "KVM_SET_IRQCHIP");
}

Status Vm::set_interrupt_line(std::uint32_t irq, bool on) {
    kvm_irq_level line{};
    line.irq = irq;
    line.level = on ? 1 : 0;
    return call(KVM_IRQ_LINE, &line, "KVM_IRQ_LINE");
}

Result<kvm_pit_state2> Vm::get_pit() const {
    kvm_pit_state2 pit{};
    return call(KVM_GET_PIT2, &pit, "KVM_GET_PIT2").map([&] { return pit; });
}

Status Vm::set_pit(const kvm_pit_state2& pit) {
    kvm_pit_state2 state = pit;
    return call(KVM_SET_PIT2, &state, "KVM_SET_PIT2");
}

Result<kvm_clock_data> Vm::get_clock() const {
    kvm_clock_data clock{};
    return call(KVM_GET_CLOCK, &clock, "KVM_GET_CLOCK").map([&] { return clock; });
}

Status Vm::set_clock(const kvm_clock_data& clock) {
    kvm_clock_data data = clock;
    return call(KVM_SET_CLOCK, &data, "KVM_SET_CLOCK");
}

Result<std::uint32_t> Vm::tsc_khz() const {
    return checked_ioctl(fd(), KVM_GET_TSC_KHZ, 0UL, "KVM_GET_TSC_KHZ (VM)").map([](int khz) {
        return static_cast<std::uint32_t>(khz);
    });
}

Status Vm::set_tsc_khz(std::uint32_t khz) {
    return call(KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz), "KVM_SET_TSC_KHZ (VM)");
}

}  // namespace continuo::kvm
