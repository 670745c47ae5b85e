#include "devices.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "acpi.h"

namespace continuo::vmm {

namespace {

constexpr std::uint16_t kKeyboardCommand = 0x64;
constexpr std::uint8_t kKeyboardReset = 0xfe;  // pulses the line that resets the CPU
constexpr std::uint8_t kResetCpu = 1u << 2;    // of the reset port
constexpr std::uint16_t kPm1Status = acpi::kPm1Event;
constexpr std::uint16_t kPm1Enable = acpi::kPm1Event + 2;

/// Text that wakes whoever reads the line; its end matters to a terminal that hands on whole lines.
constexpr std::string_view kWakeText = "notice\n";

bool is_of(std::uint16_t port, std::uint16_t first) {
    return port >= first && port - first < SerialPort::kRegisters;
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

Devices::Devices(Console& console, std::function<void(std::uint32_t, bool)> set_line)
    : set_line_{std::move(set_line)},
      serial_{console, [this](bool on) { set_line_(kSerialIrq, on); }},
      nobody_{[this] { (void)nobody_.take(); }},
      wake_{nobody_, [this](bool on) { set_line_(acpi::kWakeIrq, on); }} {}

NoticeDevice::Wiring Devices::wiring(const GuestPages& pages) {
    return {pages.memory, pages.mark_dirty, [this] { announce_notice(); }};
}

state::Status Devices::add_notice(const GuestPages& pages, std::uint64_t page,
                                  std::uint64_t release_after_ns) {
    auto device = NoticeDevice::create(wiring(pages), page, release_after_ns);
    if (!device) return tl::unexpected(std::move(device.error()));
    notice_ = std::move(*device);
    return {};
}

state::Status Devices::load_notice(const GuestPages& pages, const NoticeState& state,
                                   const SerialState& wake) {
    auto device = NoticeDevice::restore(wiring(pages), state);
    if (!device) return tl::unexpected(std::move(device.error()));
    notice_ = std::move(*device);
    wake_.load(wake);
    return {};
}

state::Status Devices::add_generation(const GuestPages& pages, std::uint64_t page) {
    return GenerationDevice::create(
               {pages.memory, pages.mark_dirty, [this] { raise_event(acpi::kEventGeneration); }},
               page)
        .map([this](auto&& device) { generation_ = std::move(device); });
}

state::Status Devices::load_generation(const GuestPages& pages, std::uint64_t page) {
    return GenerationDevice::restore(
               {pages.memory, pages.mark_dirty, [this] { raise_event(acpi::kEventGeneration); }},
               page)
        .map([this](auto&& device) { generation_ = std::move(device); });
}

state::Status Devices::add_vmclock(const GuestPages& pages, const VmclockDeviceState& state) {
    auto device = VmclockDevice::create(
        {pages.memory, pages.mark_dirty, [this] { raise_event(acpi::kEventVmclock); }}, state);
    if (!device) return tl::unexpected(std::move(device.error()));
    vmclock_ = std::move(*device);
    return {};
}

void Devices::announce_notice() {
    raise_event(acpi::kEventNotice);
    // Where nobody has read the last line, it wakes its reader still.
    if (wake_.state().received.empty()) wake_.receive(std::as_bytes(std::span{kWakeText}));
}

std::uint8_t Devices::events() const {
    const std::lock_guard lock{events_mutex_};
    return events_;
}

void Devices::load_events(std::uint8_t events) {
    const std::lock_guard lock{events_mutex_};
    events_ = events;
    set_line_(acpi::kEventIrq, events_ != 0);
}

void Devices::raise_event(std::uint8_t event) {
    const std::lock_guard lock{events_mutex_};
    events_ |= event;
    set_line_(acpi::kEventIrq, true);
}

std::uint8_t Devices::take_events() {
    const std::lock_guard lock{events_mutex_};
    set_line_(acpi::kEventIrq, false);
    return std::exchange(events_, std::uint8_t{0});
}

std::uint32_t Devices::read_notice_page(bool high) const {
    return static_cast<std::uint32_t>(notice_->page() >> (high ? 32 : 0));
}

void Devices::write_notice_page(bool high, std::uint32_t value) {
    if (!high) {
        notice_page_low_ = value;
        return;
    }
    (void)notice_->place(std::uint64_t{value} << 32 | notice_page_low_);
}

SerialPort* Devices::serial_at(std::uint16_t port, std::uint16_t& offset) {
    const bool wake = notice_ && is_of(port, acpi::kWakePort);
    if (!wake && !is_of(port, kPortSerial)) return nullptr;
    offset = static_cast<std::uint16_t>(port - (wake ? acpi::kWakePort : kPortSerial));
    return wake ? &wake_ : &serial_;
}

void Devices::read_port(std::uint16_t port, std::span<std::byte> into) {
    std::fill(into.begin(), into.end(), std::byte{0xff});
    std::uint16_t offset = 0;
    if (SerialPort* serial = serial_at(port, offset); serial && into.size() == 1)
        return put_value(into, serial->read(offset));
    const bool notice = notice_ != nullptr;
    if ((notice || generation_ || vmclock_) && port == acpi::kEventPort)
        return put_value(into, take_events());
    if (notice && port == kPortNoticePage) return put_value(into, read_notice_page(false));
    if (notice && port == kPortNoticePage + 4) return put_value(into, read_notice_page(true));
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
    std::uint16_t offset = 0;
    if (SerialPort* serial = serial_at(port, offset); serial && from.size() == 1) {
        serial->write(offset, static_cast<std::uint8_t>(value));
        return {};
    }
    const bool notice = notice_ != nullptr;
    if (notice && port == kPortNoticePage) write_notice_page(false, value);
    if (notice && port == kPortNoticePage + 4) write_notice_page(true, value);
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
