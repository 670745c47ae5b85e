// What a serial port is, between two accesses: part of a VM's state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace continuo::vmm {

/// The registers and the bytes that the guest has not read yet.
struct SerialState {
    static constexpr std::size_t kReceivedMax = 4096;

    std::uint8_t interrupt_enable = 0;
    std::uint8_t fifo_control = 0;
    std::uint8_t line_control = 0;
    std::uint8_t modem_control = 0;
    std::uint8_t scratch = 0;
    std::uint8_t transmitter_empty_pending = 0;  ///< its interrupt has not been seen: 0 or 1
    std::uint16_t divisor = 0;
    std::vector<std::uint8_t> received;

    friend bool operator==(const SerialState&, const SerialState&) = default;
};

}  // namespace continuo::vmm
