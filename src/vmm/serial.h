// A 16550A serial port as a PC has it (National Semiconductor's PC16550D data sheet), as far as
// consoles use it: transmission takes no time, there is no line to be at fault, the modem is always
// there. Flow control instead of loss: the transmitter is busy while nobody takes the console's
// text, and what is typed waits in a queue longer than a real chip's 16 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>

#include "continuo/vmm/console.h"
#include "continuo/vmm/serial_state.h"

namespace continuo::vmm {

/// Any method, any thread.
class SerialPort {
  public:
    static constexpr std::uint16_t kRegisters = 8;
    static constexpr std::size_t kReceivedMax = SerialState::kReceivedMax;

    /// `set_interrupt` moves the interrupt line; called where it changes, under the port's lock.
    SerialPort(Console& console, std::function<void(bool)> set_interrupt)
        : console_{console}, set_interrupt_{std::move(set_interrupt)} {}

    /// Precondition: offset < kRegisters.
    std::uint8_t read(std::uint16_t offset);
    void write(std::uint16_t offset, std::uint8_t value);

    /// As if it came over the line; how many bytes there was room for.
    std::size_t receive(std::span<const std::byte> bytes);
    /// The console has room again: a guest that waits for that hears of it.
    void on_room();

    SerialState state() const;
    /// Takes the registers over and moves the line to where it was. kReceivedMax bytes at most are
    /// taken of what was received.
    void load(const SerialState& state);

  private:
    bool divisor_selected() const;
    bool looped_back() const;
    std::uint8_t interrupt_identification() const;
    std::uint8_t line_status() const;
    std::uint8_t modem_status() const;
    std::uint8_t read_interrupt_identification();
    std::uint8_t read_received();
    void transmit(std::uint8_t byte);
    void set_interrupt_enable(std::uint8_t value);
    void set_fifo_control(std::uint8_t value);
    bool wants_interrupt() const;
    void update_interrupt();

    mutable std::mutex mutex_;
    Console& console_;
    std::function<void(bool)> set_interrupt_;
    SerialState registers_;
    std::deque<std::uint8_t> received_;
    bool interrupt_ = false;
    bool waits_for_room_ = false;  ///< a byte has been sent into a full console
};

}  // namespace continuo::vmm
