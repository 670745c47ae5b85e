// The devices of an x86-64 VM that KVM does not have itself, and the ports at which they are: a
// serial console (COM1), ACPI's PM1 block and the reset ports, the exit port of test payloads, and,
// where the VM has them, the devices that tell the guest of the time: their interrupt with the port
// that says what it was for, the line that wakes programs (COM2), and the register by which a guest
// places its notice page itself. Ports and memory where nothing is read as ones, as on a PC.
#pragma once

#include <linux/kvm.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "continuo/vmm/console.h"
#include "continuo/vmm/generation_device.h"
#include "continuo/vmm/guest_request.h"
#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/vmclock_device.h"
#include "serial.h"

namespace continuo::vmm {

inline constexpr std::uint16_t kPortSerial = 0x3f8;
inline constexpr std::uint32_t kSerialIrq = 4;
/// The code in 1, 2 or 4 bytes; at QEMU's isa-debug-exit, the device of public test payloads.
inline constexpr std::uint16_t kPortExit = 0xf4;

/// GPA of the notice page: 32 bits each, the high half last; a write there places the page, and
/// reads back as zero where no memory is.
inline constexpr std::uint16_t kPortNoticePage = 0x610;

/// Where devices have their pages.
struct GuestPages {
    kvm::GuestMemory& memory;
    std::function<void(std::uint64_t gpa)> mark_dirty;
};

/// Any method, any thread; devices are added before the vCPUs run.
class Devices {
  public:
    /// `set_line` moves an input of the interrupt controllers.
    Devices(Console& console, std::function<void(std::uint32_t gsi, bool on)> set_line);

    /// The VM has a notice device from here on: with its page at `page`, for a guest that starts;
    /// or as it comes, after the interrupt controllers and the memory.
    state::Status add_notice(const GuestPages& pages, std::uint64_t page,
                             std::uint64_t release_after_ns);
    state::Status load_notice(const GuestPages& pages, const NoticeState& state,
                              const SerialState& wake);
    /// The same of a VM generation ID.
    state::Status add_generation(const GuestPages& pages, std::uint64_t page);
    state::Status load_generation(const GuestPages& pages, std::uint64_t page);
    GenerationDevice* generation() { return generation_.get(); }
    /// Null where the VM has none; so is the line.
    NoticeDevice* notice() { return notice_.get(); }
    const SerialPort& wake() const { return wake_; }
    /// A vmclock device, for a guest that starts or as it comes; writes nothing.
    state::Status add_vmclock(const GuestPages& pages, const VmclockDeviceState& state);
    /// Null where the VM has none.
    VmclockDevice* vmclock() { return vmclock_.get(); }
    /// What the devices' interrupt stands for and the guest has not asked yet (acpi::kEvent…).
    std::uint8_t events() const;
    void load_events(std::uint8_t events);

    /// Deals with an exit to a port or to memory where nothing is mapped; nullopt for other exits.
    /// `run` is of the calling thread's vCPU.
    std::optional<DeviceAccess> access(kvm_run& run);

    SerialPort& serial() { return serial_; }
    const SerialPort& serial() const { return serial_; }
    /// ACPI's PM1 enable register: all the state that the PM1 block has.
    std::uint16_t pm1_enable() const { return pm1_enable_.load(std::memory_order_relaxed); }
    void set_pm1_enable(std::uint16_t value) {
        pm1_enable_.store(value, std::memory_order_relaxed);
    }

  private:
    void read_port(std::uint16_t port, std::span<std::byte> into);
    DeviceAccess write_port(std::uint16_t port, std::span<const std::byte> from);
    SerialPort* serial_at(std::uint16_t port, std::uint16_t& offset);
    NoticeDevice::Wiring wiring(const GuestPages& pages);
    void announce_notice();
    void raise_event(std::uint8_t event);
    std::uint8_t take_events();
    std::uint32_t read_notice_page(bool high) const;
    void write_notice_page(bool high, std::uint32_t value);

    std::function<void(std::uint32_t gsi, bool on)> set_line_;
    SerialPort serial_;
    std::atomic<std::uint16_t> pm1_enable_{0};

    Console nobody_;  ///< what a guest prints on the line that wakes it
    SerialPort wake_;
    std::unique_ptr<NoticeDevice> notice_;
    std::unique_ptr<GenerationDevice> generation_;
    std::unique_ptr<VmclockDevice> vmclock_;
    std::atomic<std::uint32_t> notice_page_low_{0};  ///< written, and waits for its high half
    mutable std::mutex events_mutex_;
    std::uint8_t events_ = 0;
};

}  // namespace continuo::vmm
