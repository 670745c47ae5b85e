// The serial port as a driver meets it: detection, transmission with flow control, reception, and
// the interrupt line.
#include "serial.h"

#include <gtest/gtest.h>

#include <string>

namespace continuo::vmm {
namespace {

class Serial : public testing::Test {
  protected:
    void type(const std::string& text) {
        EXPECT_EQ(port_.receive(std::as_bytes(std::span{text})), text.size());
    }
    /// Interrupts on, through the PC's gate.
    void enable(std::uint8_t interrupts) {
        port_.write(4, 0x0b);
        port_.write(1, interrupts);
    }

    int notices_ = 0;
    bool line_ = false;
    int moves_ = 0;
    Console console_{[this] { ++notices_; }};
    SerialPort port_{console_, [this](bool on) {
                         line_ = on;
                         ++moves_;
                     }};
};

TEST_F(Serial, IsFoundToBeA16550A) {
    // What drivers look at: the scratch register, the loopback of the modem lines, the FIFO's bits.
    port_.write(7, 0x5a);
    EXPECT_EQ(port_.read(7), 0x5a);
    port_.write(4, 0x1a);
    EXPECT_EQ(port_.read(6) & 0xf0, 0x90);
    port_.write(4, 0x00);
    EXPECT_EQ(port_.read(6) & 0xf0, 0xb0);
    EXPECT_EQ(port_.read(2), 0x01);
    port_.write(2, 0x01);
    EXPECT_EQ(port_.read(2), 0xc1);
    port_.write(1, 0xff);
    EXPECT_EQ(port_.read(1), 0x0f);
    EXPECT_EQ(port_.read(5), 0x60);
}

TEST_F(Serial, TheDivisorHidesDataAndInterrupts) {
    port_.write(1, 0x01);
    port_.write(3, 0x83);
    port_.write(0, 0x34);
    port_.write(1, 0x12);
    EXPECT_EQ(port_.read(0), 0x34);
    EXPECT_EQ(port_.read(1), 0x12);
    port_.write(3, 0x03);
    EXPECT_EQ(port_.read(1), 0x01);
    EXPECT_EQ(port_.read(0), 0x00);
    EXPECT_EQ(console_.text(), "");
}

TEST_F(Serial, LoopedBackBytesComeBackAndAreNotPrinted) {
    port_.write(4, 0x10);
    port_.write(0, 'x');
    EXPECT_EQ(console_.text(), "");
    EXPECT_EQ(port_.read(5) & 0x01, 0x01);
    EXPECT_EQ(port_.read(0), 'x');
    EXPECT_EQ(port_.read(5) & 0x01, 0x00);
}

TEST_F(Serial, PrintsAndAsksForMore) {
    enable(0x02);
    EXPECT_TRUE(line_) << "the transmitter is empty at once";
    EXPECT_EQ(port_.read(2) & 0x0f, 0x02);
    EXPECT_FALSE(line_) << "seen";
    port_.write(0, 'h');
    EXPECT_TRUE(line_);
    EXPECT_EQ(port_.read(2) & 0x0f, 0x02);
    port_.write(0, 'i');
    EXPECT_EQ(console_.take(), "hi");
    EXPECT_EQ(console_.text(), "");
    EXPECT_EQ(notices_, 2);
}

TEST_F(Serial, WithoutThePcsGateThereIsNoInterrupt) {
    port_.write(1, 0x03);
    type("x");
    EXPECT_FALSE(line_);
    port_.write(4, 0x08);
    EXPECT_TRUE(line_);
    port_.write(4, 0x18);
    EXPECT_FALSE(line_) << "looped back";
}

TEST_F(Serial, WaitsWhileNobodyTakesTheText) {
    enable(0x02);
    (void)port_.read(2);
    for (std::size_t i = 0; i < Console::kBytesMax; ++i) {
        ASSERT_EQ(port_.read(5), 0x60) << i;
        port_.write(0, 'x');
        if (i + 1 < Console::kBytesMax) {
            ASSERT_EQ(port_.read(2) & 0x0f, 0x02) << i;
        }
    }
    EXPECT_EQ(port_.read(5), 0x00) << "busy";
    EXPECT_EQ(port_.read(2) & 0x0f, 0x01);
    EXPECT_FALSE(line_);
    port_.write(0, 'y');
    EXPECT_EQ(console_.lost_bytes(), 1u) << "a driver that does not wait loses what it prints";
    EXPECT_EQ(console_.take().size(), Console::kBytesMax);
    port_.on_room();
    EXPECT_TRUE(line_);
    EXPECT_EQ(port_.read(2) & 0x0f, 0x02);
    EXPECT_EQ(port_.read(5), 0x60);
    port_.on_room();
    EXPECT_FALSE(line_) << "nobody waits any more";
}

TEST_F(Serial, HandsOverWhatIsTyped) {
    enable(0x03);
    (void)port_.read(2);
    type("ok");
    EXPECT_TRUE(line_);
    EXPECT_EQ(port_.read(2) & 0x0f, 0x04);
    EXPECT_EQ(port_.read(0), 'o');
    EXPECT_TRUE(line_);
    EXPECT_EQ(port_.read(0), 'k');
    EXPECT_FALSE(line_);
    EXPECT_EQ(port_.read(0), 0);
}

TEST_F(Serial, TakesNoMoreThanItHasRoomFor) {
    const std::string much(SerialPort::kReceivedMax + 1, 'x');
    EXPECT_EQ(port_.receive(std::as_bytes(std::span{much})), SerialPort::kReceivedMax);
    EXPECT_EQ(port_.receive(std::as_bytes(std::span{much})), 0u);
    (void)port_.read(0);
    EXPECT_EQ(port_.receive(std::as_bytes(std::span{much})), 1u);
}

TEST_F(Serial, ClearingTheFifoDropsWhatARealOneWouldHold) {
    type(std::string(16, 'x') + "y");
    port_.write(2, 0x03);
    EXPECT_EQ(port_.read(0), 'y');
    port_.write(2, 0x03);
    EXPECT_EQ(port_.read(5) & 0x01, 0x00);
}

TEST_F(Serial, GoesOnElsewhereAsItWas) {
    port_.write(3, 0x83);
    port_.write(0, 0x01);
    port_.write(3, 0x13);
    port_.write(2, 0x01);
    port_.write(7, 0x77);
    enable(0x01);
    type("abc");
    (void)port_.read(0);
    const SerialState state = port_.state();

    bool line = false;
    Console console{[] {}};
    SerialPort other{console, [&](bool on) { line = on; }};
    other.load(state);
    EXPECT_TRUE(line);
    EXPECT_EQ(other.state().received, (std::vector<std::uint8_t>{'b', 'c'}));
    EXPECT_EQ(other.read(3), 0x13);
    EXPECT_EQ(other.read(7), 0x77);
    EXPECT_EQ(other.read(2), 0xc4);
    EXPECT_EQ(other.read(0), 'b');
    EXPECT_EQ(other.read(0), 'c');
    EXPECT_FALSE(line);
}

TEST_F(Serial, LoadedStateMovesTheLineWhereItWas) {
    SerialState quiet;
    moves_ = 0;
    port_.load(quiet);
    EXPECT_EQ(moves_, 1) << "the controller's own state may say otherwise";
    EXPECT_FALSE(line_);
    SerialState long_one;
    long_one.received.assign(SerialPort::kReceivedMax + 5, 1);
    port_.load(long_one);
    EXPECT_EQ(port_.state().received.size(), SerialPort::kReceivedMax);
}

}  // namespace
}  // namespace continuo::vmm
