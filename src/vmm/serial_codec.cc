#include "serial_codec.h"

#include <cstring>

namespace continuo::vmm {

namespace {

/// What was received and not read follows.
struct WireSerial {
    std::uint8_t interrupt_enable;
    std::uint8_t fifo_control;
    std::uint8_t line_control;
    std::uint8_t modem_control;
    std::uint8_t scratch;
    std::uint8_t transmitter_empty_pending;
    std::uint16_t divisor;
};
static_assert(sizeof(WireSerial) == 8);

}  // namespace

void encode_serial(StateWriter& out, std::uint32_t tag, const SerialState& serial) {
    if (serial == SerialState{}) return;
    const WireSerial wire{serial.interrupt_enable, serial.fifo_control,
                          serial.line_control,     serial.modem_control,
                          serial.scratch,          serial.transmitter_empty_pending,
                          serial.divisor};
    std::vector<std::byte> body;
    for (const std::byte byte : std::as_bytes(std::span{&wire, 1}))
        body.push_back(byte);
    for (const std::uint8_t byte : serial.received)
        body.push_back(std::byte{byte});
    out.item(tag, kWholeVm, std::span<const std::byte>{body});
}

state::Status decode_serial(const StateItem& item, SerialState& into) {
    WireSerial wire;
    if (item.body.size() < sizeof wire ||
        item.body.size() - sizeof wire > SerialState::kReceivedMax)
        return damaged_state(item.offset, "a serial port has 8 to 4104 bytes");
    std::memcpy(&wire, item.body.data(), sizeof wire);
    into = {wire.interrupt_enable, wire.fifo_control,
            wire.line_control,     wire.modem_control,
            wire.scratch,          wire.transmitter_empty_pending,
            wire.divisor,          {}};
    for (const std::byte byte : item.body.subspan(sizeof wire))
        into.received.push_back(std::to_integer<std::uint8_t>(byte));
    return {};
}

}  // namespace continuo::vmm
