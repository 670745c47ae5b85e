// The devices of an arm64 VM that tell its guest of the time (notice_device.h, vmclock_device.h),
// as far as they are the board's: an interrupt each, by its edge.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/vmclock_device.h"

namespace continuo::vmm::arm64 {

/// Where devices have their pages.
struct GuestPages {
    kvm::GuestMemory& memory;
    std::function<void(std::uint64_t gpa)> mark_dirty;
};
GuestPages pages_of(VirtualMachine& machine);

/// Any method, any thread; devices are added before the vCPUs run.
class TimeDevices {
  public:
    /// `set_line` moves an input of the interrupt controller.
    explicit TimeDevices(std::function<void(std::uint32_t interrupt, bool on)> set_line)
        : set_line_{std::move(set_line)} {}

    /// What a device is made with; it does not outlive this.
    NoticeDevice::Wiring notice_wiring(const GuestPages& pages);
    VmclockDevice::Wiring vmclock_wiring(const GuestPages& pages);
    void add(std::unique_ptr<NoticeDevice> device) { notice_ = std::move(device); }
    void add(std::unique_ptr<VmclockDevice> device) { vmclock_ = std::move(device); }

    /// nullptr: the VM has none.
    NoticeDevice* notice() { return notice_.get(); }
    VmclockDevice* vmclock() { return vmclock_.get(); }

  private:
    void pulse(std::uint32_t interrupt);

    std::function<void(std::uint32_t interrupt, bool on)> set_line_;
    std::unique_ptr<NoticeDevice> notice_;
    std::unique_ptr<VmclockDevice> vmclock_;
};

}  // namespace continuo::vmm::arm64
