#include "continuo/kvm/vm.h"

#include <sys/ioctl.h>

#include <cerrno>

namespace continuo::kvm {

namespace {

/// An ioctl without an answer: success or its Error.
Status call(int fd, unsigned long request, void* arg, const char* name) {
    return checked_ioctl(fd, request, arg, name).map([](int) {});
}

Status call(int fd, unsigned long request, unsigned long arg, const char* name) {
    return checked_ioctl(fd, request, arg, name).map([](int) {});
}

}  // namespace

Result<Vm> Vm::create(const System& system) {
    const auto fd = checked_ioctl(system.fd(), KVM_CREATE_VM, 0UL, "KVM_CREATE_VM");
    if (!fd) return tl::unexpected(fd.error());
    Vm vm;
    vm.fd_ = Fd{*fd};
    vm.vcpu_mmap_size_ = system.vcpu_mmap_size();
    return vm;
}

Result<int> Vm::check_extension(int capability) const {
    return checked_ioctl(fd(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(capability),
                         "KVM_CHECK_EXTENSION (VM)");
}

Status Vm::enable_capability(std::uint32_t capability, std::uint64_t arg0) {
    kvm_enable_cap cap{};
    cap.cap = capability;
    cap.args[0] = arg0;
    return call(fd(), KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP (VM)");
}

Status Vm::set_memory(std::uint32_t slot, const GuestMemory& memory, bool log_dirty) {
    kvm_userspace_memory_region region{};
    region.slot = slot;
    region.flags = log_dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0;
    region.guest_phys_addr = memory.base();
    region.memory_size = memory.size();
    region.userspace_addr = reinterpret_cast<std::uint64_t>(memory.host());
    return call(fd(), KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
}

Status Vm::get_dirty_log(std::uint32_t slot, std::span<std::uint64_t> bitmap) const {
    kvm_dirty_log log{};
    log.slot = slot;
    log.dirty_bitmap = bitmap.data();
    return call(fd(), KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG");
}

Status Vm::set_tss_address(std::uint64_t gpa) {
    return call(fd(), KVM_SET_TSS_ADDR, static_cast<unsigned long>(gpa), "KVM_SET_TSS_ADDR");
}

Status Vm::set_identity_map_address(std::uint64_t gpa) {
    return call(fd(), KVM_SET_IDENTITY_MAP_ADDR, &gpa, "KVM_SET_IDENTITY_MAP_ADDR");
}

Status Vm::create_irqchip() {
    return call(fd(), KVM_CREATE_IRQCHIP, 0UL, "KVM_CREATE_IRQCHIP");
}

Status Vm::create_pit() {
    kvm_pit_config config{};
    return call(fd(), KVM_CREATE_PIT2, &config, "KVM_CREATE_PIT2");
}

Result<kvm_irqchip> Vm::get_irqchip(std::uint32_t chip) const {
    kvm_irqchip state{};
    state.chip_id = chip;
    return call(fd(), KVM_GET_IRQCHIP, &state, "KVM_GET_IRQCHIP").map([&] { return state; });
}

Status Vm::set_irqchip(const kvm_irqchip& chip) {
    kvm_irqchip state = chip;
    return call(fd(), KVM_SET_IRQCHIP, &state, "KVM_SET_IRQCHIP");
}

Result<kvm_pit_state2> Vm::get_pit() const {
    kvm_pit_state2 pit{};
    return call(fd(), KVM_GET_PIT2, &pit, "KVM_GET_PIT2").map([&] { return pit; });
}

Status Vm::set_pit(const kvm_pit_state2& pit) {
    kvm_pit_state2 state = pit;
    return call(fd(), KVM_SET_PIT2, &state, "KVM_SET_PIT2");
}

Result<kvm_clock_data> Vm::get_clock() const {
    kvm_clock_data clock{};
    return call(fd(), KVM_GET_CLOCK, &clock, "KVM_GET_CLOCK").map([&] { return clock; });
}

Status Vm::set_clock(const kvm_clock_data& clock) {
    kvm_clock_data data = clock;
    return call(fd(), KVM_SET_CLOCK, &data, "KVM_SET_CLOCK");
}

Result<std::uint32_t> Vm::tsc_khz() const {
    return checked_ioctl(fd(), KVM_GET_TSC_KHZ, 0UL, "KVM_GET_TSC_KHZ (VM)").map([](int khz) {
        return static_cast<std::uint32_t>(khz);
    });
}

Status Vm::set_tsc_khz(std::uint32_t khz) {
    return call(fd(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz), "KVM_SET_TSC_KHZ (VM)");
}

bool Vm::has_attribute(std::uint32_t group, std::uint64_t attribute) const {
    kvm_device_attr attr{};
    attr.group = group;
    attr.attr = attribute;
    return ::ioctl(fd(), KVM_HAS_DEVICE_ATTR, &attr) == 0;
}

}  // namespace continuo::kvm
