#include "devices.h"

#include <algorithm>
#include <cstring>

#include "acpi.h"

namespace continuo::vmm {

namespace {

constexpr std::uint16_t kKeyboardCommand = 0x64;
constexpr std::uint8_t kKeyboardReset = 0xfe;  // pulses the line that resets the CPU
constexpr std::uint8_t kResetCpu = 1u << 2;    // of the reset port
constexpr std::uint16_t kPm1Status = acpi::kPm1Event;
constexpr std::uint16_t kPm1Enable = acpi::kPm1Event + 2;

bool is_serial(std::uint16_t port) {
    return port >= kPortSerial && port - kPortSerial < SerialPort::kRegisters;
}

/// The value written, zero-extended.
std::uint32_t value_of(std::span<const std::byte> bytes) {
    std::uint32_t value = 0;
    std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
    return value;
}

void put_value(std::span<std::byte> into, std::uint32_t value) {
    std::fill(into.begin(), into.end(), std::byte{0});
    std::memcpy(into.data(), &value, std::min(into.size(), sizeof value));
}

DeviceAccess write_pm1_control(std::uint32_t value) {
    const bool sleep = (value & acpi::kPm1ControlSleep) != 0;
    const bool off = (value & acpi::kPm1ControlType) == acpi::kSoftOffType << 10;
    return {sleep && off ? GuestRequest::kPowerOff : GuestRequest::kNone, 0};
}

DeviceAccess reset_if(bool wanted) {
    return {wanted ? GuestRequest::kReset : GuestRequest::kNone, 0};
}

}  // namespace

void Devices::read_port(std::uint16_t port, std::span<std::byte> into) {
    std::fill(into.begin(), into.end(), std::byte{0xff});
    if (is_serial(port) && into.size() == 1)
        return put_value(into, serial_.read(static_cast<std::uint16_t>(port - kPortSerial)));
    if (port == kPm1Status) {
        // No event ever stands; a read of 32 bits has the enable register in its upper half.
        put_value(into, into.size() == 4 ? std::uint32_t{pm1_enable()} << 16 : 0);
    } else if (port == kPm1Enable) {
        put_value(into, pm1_enable());
    } else if (port == acpi::kPm1Control) {
        put_value(into, acpi::kPm1ControlAcpiOn);
    } else if (port == kKeyboardCommand) {
        // Not busy: who waits until a reset may be asked for need not wait.
        put_value(into, 0);
    }
}

DeviceAccess Devices::write_port(std::uint16_t port, std::span<const std::byte> from) {
    const std::uint32_t value = value_of(from);
    if (is_serial(port) && from.size() == 1) {
        serial_.write(static_cast<std::uint16_t>(port - kPortSerial),
                      static_cast<std::uint8_t>(value));
        return {};
    }
    if (port == kPortExit) return {GuestRequest::kExit, value};
    if (port == acpi::kPm1Control) return write_pm1_control(value);
    if (port == acpi::kResetPort) return reset_if((value & kResetCpu) != 0);
    if (port == kKeyboardCommand) return reset_if((value & 0xff) == kKeyboardReset);
    if (port == kPm1Enable) set_pm1_enable(static_cast<std::uint16_t>(value));
    if (port == kPm1Status && from.size() == 4)
        set_pm1_enable(static_cast<std::uint16_t>(value >> 16));
    return {};
}

std::optional<DeviceAccess> Devices::access(kvm_run& run) {
    if (run.exit_reason == KVM_EXIT_MMIO) {
        if (run.mmio.is_write == 0)
            std::fill_n(run.mmio.data, sizeof run.mmio.data, std::uint8_t{0xff});
        return DeviceAccess{};
    }
    if (run.exit_reason != KVM_EXIT_IO) return std::nullopt;
    auto* data = reinterpret_cast<std::byte*>(&run) + run.io.data_offset;
    // `count` accesses one after the other: a string instruction.
    DeviceAccess asked;
    for (std::uint32_t i = 0; i < run.io.count; ++i, data += run.io.size) {
        if (run.io.direction == KVM_EXIT_IO_IN) {
            read_port(run.io.port, {data, run.io.size});
        } else if (const auto now = write_port(run.io.port, {data, run.io.size});
                   now.request != GuestRequest::kNone) {
            asked = now;
        }
    }
    return asked;
}

}  // namespace continuo::vmm
