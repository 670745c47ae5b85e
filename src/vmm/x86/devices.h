// The devices of an x86-64 VM that KVM does not have itself, and the ports at which they are: a
// serial console (COM1), ACPI's PM1 block and the reset ports, and the exit port of test payloads.
// Ports and memory where nothing is read as ones, as on a PC.
#pragma once

#include <linux/kvm.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "continuo/vmm/console.h"
#include "continuo/vmm/guest_request.h"
#include "serial.h"

namespace continuo::vmm {

inline constexpr std::uint16_t kPortSerial = 0x3f8;
inline constexpr std::uint32_t kSerialIrq = 4;
/// The code in 1, 2 or 4 bytes; at QEMU's isa-debug-exit, the device of public test payloads.
inline constexpr std::uint16_t kPortExit = 0xf4;

/// Any method, any thread.
class Devices {
  public:
    /// `set_serial_interrupt` moves the interrupt line of the serial port.
    Devices(Console& console, std::function<void(bool)> set_serial_interrupt)
        : serial_{console, std::move(set_serial_interrupt)} {}

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

    SerialPort serial_;
    std::atomic<std::uint16_t> pm1_enable_{0};
};

}  // namespace continuo::vmm
