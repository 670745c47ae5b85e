#include "continuo/vmm/vm_state.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace continuo::vmm {
namespace {

template <class T>
void fill(T& value, std::mt19937_64& random) {
    auto* bytes = reinterpret_cast<unsigned char*>(&value);
    for (std::size_t i = 0; i < sizeof(T); ++i)
        bytes[i] = static_cast<unsigned char>(random());
}

VmState sample(std::uint32_t vcpus) {
    std::mt19937_64 random{7};
    VmState state;
    for (std::uint32_t chip = 0; chip < 3; ++chip) {
        fill(state.irqchips[chip], random);
        state.irqchips[chip].chip_id = chip;
    }
    fill(state.pit, random);
    for (std::uint32_t i = 0; i < vcpus; ++i) {
        VcpuState vcpu;
        fill(vcpu.mp_state, random);
        fill(vcpu.regs, random);
        fill(vcpu.sregs, random);
        fill(vcpu.lapic, random);
        fill(vcpu.events, random);
        fill(vcpu.xcrs.emplace(), random);
        if (i % 2 == 0) fill(vcpu.debugregs.emplace(), random);
        vcpu.xsave.assign(4096 + 64 * i, std::byte{static_cast<unsigned char>(i)});
        vcpu.msrs = {{0x174, 1}, {0x6e0, ~0ull}, {0x4b564d01, 0x21001}};
        if (i == 2) vcpu.nested.assign(128 + 4096, std::byte{0x5a});
        state.vcpus.push_back(vcpu);
    }
    return state;
}

TEST(VmStateCodec, ComesBackAsItWas) {
    const VmState state = sample(3);
    const auto bytes = encode_state(state);
    const auto back = decode_state(bytes);
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(encode_state(*back), bytes);
    ASSERT_EQ(back->vcpus.size(), 3u);
    EXPECT_EQ(back->vcpus[2].regs.rip, state.vcpus[2].regs.rip);
    EXPECT_EQ(back->vcpus[1].msrs, state.vcpus[1].msrs);
    EXPECT_TRUE(back->vcpus[0].debugregs);
    EXPECT_FALSE(back->vcpus[1].debugregs);
    EXPECT_EQ(back->vcpus[2].nested, state.vcpus[2].nested);
    EXPECT_TRUE(back->vcpus[1].nested.empty());
}

TEST(VmStateCodec, NestedStateOfAnImpossibleSizeIsRefused) {
    for (const std::size_t bytes : {std::size_t{1}, std::size_t{127}, (std::size_t{1} << 16) + 1}) {
        VmState state = sample(1);
        state.vcpus[0].nested.assign(bytes, std::byte{1});
        const auto back = decode_state(encode_state(state));
        ASSERT_FALSE(back) << bytes;
        EXPECT_EQ(back.error().code, state::ErrorCode::kMalformed);
    }
}

TEST(VmStateCodec, EveryTruncationIsTyped) {
    const auto bytes = encode_state(sample(1));
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        const auto back = decode_state(std::span{bytes}.first(length));
        ASSERT_FALSE(back) << length;
        EXPECT_TRUE(back.error().code == state::ErrorCode::kTruncated ||
                    back.error().code == state::ErrorCode::kMalformed)
            << length << ": " << back.error().message();
    }
}

TEST(VmStateCodec, FlippedHeadersNeverCrash) {
    const auto good = encode_state(sample(2));
    std::mt19937_64 random{11};
    for (int round = 0; round < 20000; ++round) {
        auto bytes = good;
        for (int flips = 0; flips < 3; ++flips) {
            const std::size_t at = random() % (round % 2 == 0 ? 64 : bytes.size());
            bytes[at] ^= static_cast<std::byte>(1u << (random() % 8));
        }
        const auto back = decode_state(bytes);
        if (back) {
            EXPECT_LE(back->vcpus.size(), kVcpusMax);
        }
    }
}

VmState with_devices() {
    VmState state = sample(2);
    state.serial = {0x05, 0x01, 0x13, 0x0b, 0x5a, 1, 0x0c01, {'a', 'b', 'c'}};
    state.pm1_enable = 0x20;
    return state;
}

VmState with_time_devices() {
    VmState state = sample(1);
    state.notice = NoticeState{0xd0000, 5'000, {7, 1'000, 2'000, 3, 400, true}};
    state.wake = {0x05, 0x01, 0x13, 0x0b, 0x5a, 1, 0x0c01, {'n', '\n'}};
    state.events = 1;
    state.vmclock = VmclockDeviceState{0xd1000, {3, 0x1234, 8}};
    return state;
}

TEST(VmStateCodec, TimeDevicesComeBack) {
    const VmState state = with_time_devices();
    const auto bytes = encode_state(state);
    const auto back = decode_state(bytes);
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(back->notice, state.notice);
    EXPECT_EQ(back->wake, state.wake);
    EXPECT_EQ(back->events, 1);
    EXPECT_EQ(back->vmclock, state.vmclock);
    EXPECT_EQ(encode_state(*back), bytes);
    EXPECT_FALSE(decode_state(encode_state(sample(1)))->notice);
}

TEST(VmStateCodec, TimeDevicesAreNotBelieved) {
    const auto bytes = encode_state(with_time_devices());
    const std::size_t notice = 16 + 3 * (16 + sizeof(kvm_irqchip)) + 16 + sizeof(kvm_pit_state2);
    for (std::size_t length = notice; length < bytes.size(); ++length)
        ASSERT_FALSE(decode_state(std::span{bytes}.first(length))) << length;
    const auto refused = [&](std::size_t at, std::byte value) {
        auto damaged = bytes;
        damaged[at] = value;
        return decode_state(damaged).error().code == state::ErrorCode::kMalformed;
    };
    EXPECT_TRUE(refused(notice + 16 + 56, std::byte{2})) << "released, or not";
    EXPECT_TRUE(refused(notice + 16 + 60, std::byte{1})) << "reserved";
    const std::size_t vmclock = notice + (16 + 64) + (16 + 8 + 2);
    EXPECT_TRUE(refused(vmclock + 16 + 28, std::byte{1})) << "reserved";
    const std::size_t events = vmclock + (16 + 32);
    EXPECT_TRUE(refused(events + 16 + 3, std::byte{1})) << "reserved";
    EXPECT_TRUE(refused(events, std::byte{5})) << "the notice device twice";
    VmState line_alone = with_time_devices();
    line_alone.notice.reset();
    EXPECT_EQ(decode_state(encode_state(line_alone)).error().code, state::ErrorCode::kMalformed);
}

TEST(VmStateCodec, AGenerationPageComesBack) {
    VmState state = sample(1);
    const std::size_t without = encode_state(state).size();
    state.generation_page = 0xd2000;
    const auto bytes = encode_state(state);
    EXPECT_EQ(bytes.size(), without + 16 + 8);
    const auto back = decode_state(bytes);
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(back->generation_page, 0xd2000u);
    EXPECT_FALSE(decode_state(encode_state(sample(1)))->generation_page);
}

TEST(VmStateCodec, DevicesComeBackAndThoseAtResetTakeNoBytes) {
    const VmState state = with_devices();
    const auto back = decode_state(encode_state(state));
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(back->serial, state.serial);
    EXPECT_EQ(back->pm1_enable, 0x20);
    EXPECT_EQ(encode_state(state).size(), encode_state(sample(2)).size() + 16 + 8 + 3 + 16 + 4);
    const auto none = decode_state(encode_state(sample(2)));
    ASSERT_TRUE(none);
    EXPECT_EQ(none->serial, SerialState{});
}

TEST(VmStateCodec, DevicesAreCutOffNamedAndOnlyOnce) {
    const auto bytes = encode_state(with_devices());
    for (std::size_t length = 0; length < bytes.size(); length += 3)
        ASSERT_FALSE(decode_state(std::span{bytes}.first(length))) << length;
    VmState long_one = with_devices();
    long_one.serial.received.assign(SerialState::kReceivedMax + 1, 0);
    EXPECT_EQ(decode_state(encode_state(long_one)).error().code, state::ErrorCode::kMalformed);
    const std::size_t serial = 16 + 3 * (16 + sizeof(kvm_irqchip)) + 16 + sizeof(kvm_pit_state2);
    auto twice = bytes;
    twice.insert(twice.end(), bytes.begin() + static_cast<std::ptrdiff_t>(serial),
                 bytes.begin() + static_cast<std::ptrdiff_t>(serial) + 16 + 8 + 3);
    EXPECT_EQ(decode_state(twice).error().code, state::ErrorCode::kMalformed);
    auto reserved = bytes;
    reserved[serial + 16 + 8 + 3 + 16 + 2] = std::byte{1};
    EXPECT_EQ(decode_state(reserved).error().code, state::ErrorCode::kMalformed);
}

void expect_refused(std::vector<std::byte> bytes, std::size_t at, std::uint32_t word,
                    state::ErrorCode code) {
    std::memcpy(bytes.data() + at, &word, sizeof word);
    const auto back = decode_state(bytes);
    ASSERT_FALSE(back);
    EXPECT_EQ(back.error().code, code) << back.error().message();
}

TEST(VmStateCodec, RefusesWhatItDoesNotKnow) {
    const auto bytes = encode_state(sample(1));
    expect_refused(bytes, 8, 2, state::ErrorCode::kVersion);
    expect_refused(bytes, 12, 0, state::ErrorCode::kMalformed);
    expect_refused(bytes, 12, 64, state::ErrorCode::kTruncated);
    expect_refused(bytes, 12, 65, state::ErrorCode::kMalformed);
    expect_refused(bytes, 12, 0xffffffff, state::ErrorCode::kMalformed);
    expect_refused(bytes, 16, 15, state::ErrorCode::kVersion);            // unknown mandatory tag
    expect_refused(bytes, 16, 0x8000000f, state::ErrorCode::kMalformed);  // skipped, then missing
    expect_refused(bytes, 24, 0xffffffff, state::ErrorCode::kTruncated);
    expect_refused(bytes, 28, 1, state::ErrorCode::kMalformed);
}

TEST(VmStateCodec, SkipsUnknownOptionalItems) {
    auto bytes = encode_state(sample(1));
    const std::uint32_t item[] = {0x80000123, 0xffffffff, 4, 0, 42};
    const auto* raw = reinterpret_cast<const std::byte*>(item);
    bytes.insert(bytes.end(), raw, raw + sizeof item);
    EXPECT_TRUE(decode_state(bytes));
}

TEST(VmStateCodec, RefusesTheSameItemTwice) {
    auto bytes = encode_state(sample(1));
    const std::vector<std::byte> chip{bytes.begin() + 16,
                                      bytes.begin() + 16 + 16 + sizeof(kvm_irqchip)};
    bytes.insert(bytes.end(), chip.begin(), chip.end());
    EXPECT_EQ(decode_state(bytes).error().code, state::ErrorCode::kMalformed);
}

TEST(VmStateCodec, RefusesTheClockRecordsMsrs) {
    VmState state = sample(1);
    state.vcpus[0].msrs.push_back({0x10, 5});
    EXPECT_EQ(decode_state(encode_state(state)).error().code, state::ErrorCode::kMalformed);
}

}  // namespace
}  // namespace continuo::vmm
