#include "serial.h"

#include <algorithm>
#include <utility>

namespace continuo::vmm {

namespace {

constexpr std::uint16_t kData = 0;  ///< also the divisor's low byte
constexpr std::uint16_t kInterruptEnable = 1;
constexpr std::uint16_t kInterruptIdentification = 2;  ///< read; FIFO control, written
constexpr std::uint16_t kLineControl = 3;
constexpr std::uint16_t kModemControl = 4;
constexpr std::uint16_t kLineStatus = 5;
constexpr std::uint16_t kModemStatus = 6;

constexpr std::uint8_t kOnReceived = 0x01;          // interrupt enable
constexpr std::uint8_t kOnTransmitterEmpty = 0x02;  // interrupt enable
constexpr std::uint8_t kNothing = 0x01;             // interrupt identification, by falling priority
constexpr std::uint8_t kReceived = 0x04;
constexpr std::uint8_t kTransmitterEmpty = 0x02;
constexpr std::uint8_t kFifosOn = 0xc0;
constexpr std::uint8_t kFifoEnable = 0x01;  // FIFO control
constexpr std::uint8_t kFifoClearReceived = 0x02;
constexpr std::uint8_t kDivisorLatch = 0x80;   // line control
constexpr std::uint8_t kRequestToSend = 0x02;  // modem control
constexpr std::uint8_t kInterruptsOut = 0x08;  // modem control, OUT2: a PC's gate to the controller
constexpr std::uint8_t kLoopback = 0x10;       // modem control
constexpr std::uint8_t kDataReady = 0x01;      // line status
constexpr std::uint8_t kTransmitterIdle = 0x60;  // holding register and shift register are empty
constexpr std::uint8_t kModemPresent =
    0xb0;  // modem status: carrier, data set ready, clear to send
constexpr std::uint8_t kInterruptsMask = 0x0f;
constexpr std::uint8_t kModemControlMask = 0x1f;
constexpr std::size_t kFifoBytes = 16;

}  // namespace

bool SerialPort::divisor_selected() const {
    return (registers_.line_control & kDivisorLatch) != 0;
}

bool SerialPort::looped_back() const {
    return (registers_.modem_control & kLoopback) != 0;
}

std::uint8_t SerialPort::interrupt_identification() const {
    const std::uint8_t enabled = registers_.interrupt_enable;
    if ((enabled & kOnReceived) != 0 && !received_.empty()) return kReceived;
    if ((enabled & kOnTransmitterEmpty) != 0 && registers_.transmitter_empty_pending != 0)
        return kTransmitterEmpty;
    return kNothing;
}

std::uint8_t SerialPort::line_status() const {
    const bool idle = looped_back() || console_.has_room();
    return static_cast<std::uint8_t>((received_.empty() ? 0 : kDataReady) |
                                     (idle ? kTransmitterIdle : 0));
}

std::uint8_t SerialPort::modem_status() const {
    if (!looped_back()) return kModemPresent;
    // Looped back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
    const std::uint8_t out = registers_.modem_control;
    return static_cast<std::uint8_t>((out & kRequestToSend) << 3 | (out & 0x01) << 5 |
                                     (out & 0x0c) << 4);
}

bool SerialPort::wants_interrupt() const {
    const bool gate = (registers_.modem_control & (kInterruptsOut | kLoopback)) == kInterruptsOut;
    return gate && interrupt_identification() != kNothing;
}

void SerialPort::update_interrupt() {
    const bool wanted = wants_interrupt();
    if (wanted == interrupt_) return;
    interrupt_ = wanted;
    set_interrupt_(wanted);
}

std::uint8_t SerialPort::read_interrupt_identification() {
    const std::uint8_t what = interrupt_identification();
    if (what == kTransmitterEmpty) registers_.transmitter_empty_pending = 0;
    const bool fifos = (registers_.fifo_control & kFifoEnable) != 0;
    return static_cast<std::uint8_t>(what | (fifos ? kFifosOn : 0));
}

std::uint8_t SerialPort::read_received() {
    if (received_.empty()) return 0;
    const std::uint8_t byte = received_.front();
    received_.pop_front();
    return byte;
}

std::uint8_t SerialPort::read(std::uint16_t offset) {
    const std::lock_guard lock{mutex_};
    std::uint8_t value = 0;
    switch (offset) {
        case kData:
            value = divisor_selected() ? static_cast<std::uint8_t>(registers_.divisor)
                                       : read_received();
            break;
        case kInterruptEnable:
            value = divisor_selected() ? static_cast<std::uint8_t>(registers_.divisor >> 8)
                                       : registers_.interrupt_enable;
            break;
        case kInterruptIdentification:
            value = read_interrupt_identification();
            break;
        case kLineControl:
            value = registers_.line_control;
            break;
        case kModemControl:
            value = registers_.modem_control;
            break;
        case kLineStatus:
            value = line_status();
            break;
        case kModemStatus:
            value = modem_status();
            break;
        default:
            value = registers_.scratch;
    }
    update_interrupt();
    return value;
}

void SerialPort::transmit(std::uint8_t byte) {
    if (looped_back()) {
        if (received_.size() < kReceivedMax) received_.push_back(byte);
    } else {
        console_.put(std::as_bytes(std::span{&byte, 1}));
    }
    waits_for_room_ = !looped_back() && !console_.has_room();
    registers_.transmitter_empty_pending = waits_for_room_ ? 0 : 1;
}

void SerialPort::set_interrupt_enable(std::uint8_t value) {
    const bool asks_now = (value & ~registers_.interrupt_enable & kOnTransmitterEmpty) != 0;
    if (asks_now && console_.has_room()) registers_.transmitter_empty_pending = 1;
    registers_.interrupt_enable = value & kInterruptsMask;
}

void SerialPort::set_fifo_control(std::uint8_t value) {
    // The chip's FIFO holds 16 bytes: what waits behind them has not come over the line yet.
    const std::size_t held = std::min(received_.size(), kFifoBytes);
    if ((value & kFifoClearReceived) != 0)
        received_.erase(received_.begin(), received_.begin() + static_cast<std::ptrdiff_t>(held));
    registers_.fifo_control = value & static_cast<std::uint8_t>(~0x06);
}

void SerialPort::write(std::uint16_t offset, std::uint8_t value) {
    const std::lock_guard lock{mutex_};
    const std::uint16_t divisor = registers_.divisor;
    switch (offset) {
        case kData:
            if (divisor_selected())
                registers_.divisor = static_cast<std::uint16_t>((divisor & 0xff00) | value);
            else
                transmit(value);
            break;
        case kInterruptEnable:
            if (divisor_selected())
                registers_.divisor = static_cast<std::uint16_t>((divisor & 0xff) | value << 8);
            else
                set_interrupt_enable(value);
            break;
        case kInterruptIdentification:
            set_fifo_control(value);
            break;
        case kLineControl:
            registers_.line_control = value;
            break;
        case kModemControl:
            registers_.modem_control = value & kModemControlMask;
            break;
        case kLineStatus:
        case kModemStatus:
            break;  // read only
        default:
            registers_.scratch = value;
    }
    update_interrupt();
}

std::size_t SerialPort::receive(std::span<const std::byte> bytes) {
    const std::lock_guard lock{mutex_};
    const std::size_t taken = std::min(bytes.size(), kReceivedMax - received_.size());
    for (const std::byte byte : bytes.first(taken))
        received_.push_back(std::to_integer<std::uint8_t>(byte));
    update_interrupt();
    return taken;
}

void SerialPort::on_room() {
    const std::lock_guard lock{mutex_};
    if (!std::exchange(waits_for_room_, false)) return;
    registers_.transmitter_empty_pending = 1;
    update_interrupt();
}

SerialState SerialPort::state() const {
    const std::lock_guard lock{mutex_};
    SerialState out = registers_;
    out.received.assign(received_.begin(), received_.end());
    return out;
}

void SerialPort::load(const SerialState& state) {
    const std::lock_guard lock{mutex_};
    registers_ = state;
    registers_.interrupt_enable &= kInterruptsMask;
    registers_.modem_control &= kModemControlMask;
    registers_.received.clear();
    const std::size_t taken = std::min(state.received.size(), kReceivedMax);
    received_.assign(state.received.begin(),
                     state.received.begin() + static_cast<std::ptrdiff_t>(taken));
    // A transmitter that waited for room does not wait here, and a guest hears so twice unharmed.
    if ((registers_.interrupt_enable & kOnTransmitterEmpty) != 0)
        registers_.transmitter_empty_pending = 1;
    interrupt_ = wants_interrupt();
    set_interrupt_(interrupt_);
}

}  // namespace continuo::vmm
