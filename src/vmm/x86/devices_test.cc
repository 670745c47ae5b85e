// The ports of an x86-64 VM's time devices as a guest meets them: the interrupt and what it was
// for, the line that wakes programs, the register of the notice page; and a VM without them.
#include "devices.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "acpi.h"

namespace continuo::vmm {
namespace {

class TimeDevicePorts : public testing::Test {
  protected:
    GuestPages pages() {
        return {memory_, [](std::uint64_t) {}};
    }
    void add_notice() { ASSERT_TRUE(devices_.add_notice(pages(), 0xd0000, 5'000)); }

    template <class T>
    T in(std::uint16_t port) {
        T value{};
        access(port, &value, sizeof value, KVM_EXIT_IO_IN);
        return value;
    }
    template <class T>
    void out(std::uint16_t port, T value) {
        access(port, &value, sizeof value, KVM_EXIT_IO_OUT);
    }
    void access(std::uint16_t port, void* value, std::size_t size, std::uint8_t direction) {
        alignas(kvm_run) std::byte room[sizeof(kvm_run) + 8] = {};
        auto& run = *reinterpret_cast<kvm_run*>(room);
        run.exit_reason = KVM_EXIT_IO;
        run.io.port = port;
        run.io.size = static_cast<std::uint8_t>(size);
        run.io.count = 1;
        run.io.direction = direction;
        run.io.data_offset = sizeof(kvm_run);
        std::memcpy(room + sizeof(kvm_run), value, size);
        ASSERT_TRUE(devices_.access(run));
        std::memcpy(value, room + sizeof(kvm_run), size);
    }

    kvm::GuestMemory memory_ = std::move(*kvm::GuestMemory::create(2 << 20));
    Console console_{[] {}};
    std::map<std::uint32_t, bool> lines_;
    Devices devices_{console_, [this](std::uint32_t gsi, bool on) { lines_[gsi] = on; }};
};

TEST_F(TimeDevicePorts, AMachineWithoutThemReadsAsOnes) {
    EXPECT_EQ(in<std::uint8_t>(acpi::kEventPort), 0xff);
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage), 0xffffffffu);
    EXPECT_EQ(in<std::uint8_t>(acpi::kWakePort + 5), 0xff);
    out<std::uint32_t>(kPortNoticePage + 4, 0);
    EXPECT_EQ(devices_.notice(), nullptr);
}

TEST_F(TimeDevicePorts, TheInterruptStandsUntilTheGuestHasAskedWhatItWasFor) {
    add_notice();
    devices_.notice()->announce();
    EXPECT_TRUE(lines_[acpi::kEventIrq]);
    EXPECT_EQ(in<std::uint8_t>(acpi::kEventPort), acpi::kEventNotice);
    EXPECT_FALSE(lines_[acpi::kEventIrq]);
    EXPECT_EQ(in<std::uint8_t>(acpi::kEventPort), 0);
}

TEST_F(TimeDevicePorts, TheLineBecomesReadableOnceAnAnnouncement) {
    add_notice();
    out<std::uint8_t>(acpi::kWakePort + 4, 0x0b);  // interrupts through the PC's gate
    out<std::uint8_t>(acpi::kWakePort + 1, 0x01);  // of received bytes
    EXPECT_FALSE(lines_[acpi::kWakeIrq]);
    devices_.notice()->announce();
    devices_.notice()->announce();
    EXPECT_TRUE(lines_[acpi::kWakeIrq]);
    std::string line;
    while ((in<std::uint8_t>(acpi::kWakePort + 5) & 1) != 0)
        line += static_cast<char>(in<std::uint8_t>(acpi::kWakePort));
    EXPECT_EQ(line, "notice\n") << "one that nobody has read wakes still";
    EXPECT_FALSE(lines_[acpi::kWakeIrq]);
}

TEST_F(TimeDevicePorts, WhateverIsPrintedOnTheLineIsTaken) {
    add_notice();
    for (std::size_t i = 0; i <= Console::kBytesMax; ++i)
        out<std::uint8_t>(acpi::kWakePort, 'x');
    EXPECT_NE(in<std::uint8_t>(acpi::kWakePort + 5) & 0x20, 0) << "its transmitter is never full";
    EXPECT_TRUE(console_.text().empty());
}

TEST_F(TimeDevicePorts, APagePlacedWhereNoMemoryIsReadsBackAsZero) {
    add_notice();
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage), 0xd0000u);
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage + 4), 0u);
    out<std::uint32_t>(kPortNoticePage, 0x3000);
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage), 0xd0000u) << "only its high half places it";
    out<std::uint32_t>(kPortNoticePage + 4, 1);
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage), 0u) << "4 GiB has no memory";
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage + 4), 0u);
    out<std::uint32_t>(kPortNoticePage + 4, 0);
    EXPECT_EQ(in<std::uint32_t>(kPortNoticePage), 0x3000u);
    EXPECT_EQ(*memory_.load<std::uint32_t>(0x3000), abi::kTimeTravelMagic);
}

TEST_F(TimeDevicePorts, WhatIsPendingGoesAlong) {
    add_notice();
    devices_.notice()->announce();
    EXPECT_EQ(devices_.events(), acpi::kEventNotice);
    std::map<std::uint32_t, bool> lines;
    Devices there{console_, [&](std::uint32_t gsi, bool on) { lines[gsi] = on; }};
    ASSERT_TRUE(there.load_notice(pages(), devices_.notice()->save(), devices_.wake().state()));
    there.load_events(devices_.events());
    EXPECT_TRUE(lines[acpi::kEventIrq]);
    EXPECT_EQ(there.wake().state().received.size(), 7u);
    EXPECT_EQ(there.notice()->page(), 0xd0000u);
}

TEST_F(TimeDevicePorts, AGenerationIsInMemoryBeforeItsInterruptAsks) {
    const auto found = [this] { return memory_.read_object<Generation>(0xd2000)->id; };
    ASSERT_TRUE(devices_.add_generation(pages(), 0xd2000));
    const auto first = found();
    EXPECT_NE(first, Generation{}.id) << "a guest that starts has one";
    EXPECT_FALSE(lines_[acpi::kEventIrq]);
    const Generation second = new_generation();
    devices_.generation()->set(second);
    devices_.generation()->announce();
    EXPECT_EQ(found(), second.id);
    EXPECT_TRUE(lines_[acpi::kEventIrq]);
    EXPECT_EQ(in<std::uint8_t>(acpi::kEventPort), acpi::kEventGeneration);
    EXPECT_FALSE(lines_[acpi::kEventIrq]);

    Devices there{console_, [](std::uint32_t, bool) {}};
    ASSERT_TRUE(there.load_generation(pages(), devices_.generation()->page()));
    EXPECT_EQ(found(), second.id) << "a move is the same life";
    for (const std::uint64_t page :
         {std::uint64_t{0xd2008}, std::uint64_t{2} << 20, ~std::uint64_t{0xfff}}) {
        EXPECT_EQ(there.load_generation(pages(), page).error().code, state::ErrorCode::kMalformed);
        EXPECT_EQ(there.add_generation(pages(), page).error().code,
                  state::ErrorCode::kInvalidArgument);
    }
}

}  // namespace
}  // namespace continuo::vmm
