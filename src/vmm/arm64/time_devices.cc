#include "time_devices.h"

#include "continuo/vmm/arm64_board.h"

namespace continuo::vmm::arm64 {

GuestPages pages_of(VirtualMachine& machine) {
    return {machine.memory(), [&machine](std::uint64_t gpa) { machine.mark_dirty(gpa); }};
}

void TimeDevices::pulse(std::uint32_t interrupt) {
    set_line_(interrupt, true);
    set_line_(interrupt, false);
}

NoticeDevice::Wiring TimeDevices::notice_wiring(const GuestPages& pages) {
    return {pages.memory, pages.mark_dirty, [this] { pulse(kNoticeInterrupt); }};
}

VmclockDevice::Wiring TimeDevices::vmclock_wiring(const GuestPages& pages) {
    return {pages.memory, pages.mark_dirty, [this] { pulse(kVmclockInterrupt); }};
}

}  // namespace continuo::vmm::arm64
