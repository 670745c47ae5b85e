// The arm64 state as bytes; runs on every architecture.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "continuo/abi/arm64.h"
#include "continuo/vmm/arm64_state.h"

namespace continuo::vmm::arm64 {
namespace {

using state::ErrorCode;

constexpr std::uint64_t kMpidr = abi::arm64_sysreg(3, 0, 0, 0, 5);
constexpr std::uint64_t kVector0 = 0x6040'0000'0010'0054;  ///< a 128-bit core register
constexpr std::uint64_t kFpsr = 0x6020'0000'0010'00d4;     ///< a 32-bit one

Register make_register(std::uint64_t id, unsigned char fill) {
    return {id, std::vector<std::byte>(register_bytes(id), std::byte{fill})};
}

VmState sample(std::uint32_t vcpus) {
    VmState state;
    for (std::uint32_t i = 0; i < vcpus; ++i) {
        VcpuState vcpu;
        vcpu.mp_state = i % 2;
        vcpu.events.serror_pending = 1;
        vcpu.events.serror_esr = 0x1234'5678'9abc + i;
        vcpu.registers = {make_register(kVector0, 7), make_register(kFpsr, 8),
                          make_register(kMpidr, static_cast<unsigned char>(i)),
                          make_register(abi::kKVM_REG_ARM_TIMER_CVAL, 9)};
        state.vcpus.push_back(vcpu);
    }
    return state;
}

// docs/formats/migration.md: a header of 16 bytes; an item's head of 16, then its bytes.
constexpr std::size_t kFirstItem = 16;
constexpr std::size_t kEvents = kFirstItem + 16 + 4;
constexpr std::size_t kRegisters = kEvents + 16 + 64;
constexpr std::size_t kFirstId = kRegisters + 16;

TEST(Arm64StateCodec, ComesBackAsItWas) {
    const VmState state = sample(3);
    const auto bytes = encode_state(state);
    const auto back = decode_state(bytes);
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(*back, state);
    EXPECT_EQ(encode_state(*back), bytes);
}

TEST(Arm64StateCodec, RegistersHaveTheSizeThatTheirIdSays) {
    EXPECT_EQ(register_bytes(kMpidr), 8u);
    EXPECT_EQ(register_bytes(kVector0), 16u);
    EXPECT_EQ(register_bytes(kFpsr), 4u);
    EXPECT_EQ(register_bytes(0x6080'0000'0015'0000), 256u);
    EXPECT_EQ(register_bytes(0x6000'0000'0000'0000), 1u);
}

TEST(Arm64StateCodec, EveryTruncationIsTyped) {
    const auto bytes = encode_state(sample(2));
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        const auto back = decode_state(std::span{bytes}.first(length));
        ASSERT_FALSE(back) << length;
        EXPECT_EQ(back.error().code, ErrorCode::kTruncated)
            << length << ": " << back.error().message();
    }
}

TEST(Arm64StateCodec, FlippedBitsNeverCrash) {
    const auto good = encode_state(sample(2));
    std::mt19937_64 random{11};
    for (int round = 0; round < 20000; ++round) {
        auto bytes = good;
        for (int flips = 0; flips < 3; ++flips) {
            const std::size_t at = random() % (round % 2 == 0 ? 160 : bytes.size());
            bytes[at] ^= static_cast<std::byte>(1u << (random() % 8));
        }
        const auto back = decode_state(bytes);
        if (!back) continue;
        EXPECT_LE(back->vcpus.size(), 64u);
        for (const VcpuState& vcpu : back->vcpus)
            for (const Register& one : vcpu.registers)
                EXPECT_EQ(one.value.size(), register_bytes(one.id));
    }
}

template <class T>
void expect_refused(std::size_t at, T value, ErrorCode code) {
    auto bytes = encode_state(sample(1));
    std::memcpy(bytes.data() + at, &value, sizeof value);
    const auto back = decode_state(bytes);
    ASSERT_FALSE(back) << at;
    EXPECT_EQ(back.error().code, code) << back.error().message();
}

TEST(Arm64StateCodec, RefusesWhatItDoesNotKnow) {
    expect_refused(8, 2u, ErrorCode::kVersion);
    expect_refused(12, 0u, ErrorCode::kMalformed);
    expect_refused(12, 64u, ErrorCode::kTruncated);
    expect_refused(12, 65u, ErrorCode::kMalformed);
    expect_refused(kFirstItem, 1u, ErrorCode::kVersion);  // an item of x86-64
    expect_refused(kFirstItem, 67u, ErrorCode::kVersion);
    expect_refused(kFirstItem, 0x80000040u, ErrorCode::kTruncated);  // skipped, then missing
    expect_refused(kFirstItem, 65u, ErrorCode::kMalformed);          // another size, or twice
    expect_refused(kFirstItem + 4, 1u, ErrorCode::kMalformed);
    expect_refused(kFirstItem + 12, 1u, ErrorCode::kMalformed);
    expect_refused(kEvents + 16 + 3, std::uint8_t{1}, ErrorCode::kMalformed);
    expect_refused(kEvents + 16 + 60, 1u, ErrorCode::kMalformed);
}

TEST(Arm64StateCodec, RefusesRegistersThatAreNone) {
    expect_refused(kFirstId, std::uint64_t{0x2030'0000'0000'0001}, ErrorCode::kMalformed);
    // Its value would have 512 bytes, or 32 KiB.
    expect_refused(kFirstId, std::uint64_t{0x6090'0000'0010'0054}, ErrorCode::kMalformed);
    expect_refused(kFirstId, std::uint64_t{0x60f0'0000'0010'0054}, ErrorCode::kMalformed);
    // Wider than it is: everything behind is out of step.
    expect_refused(kFirstId, std::uint64_t{0x6080'0000'0010'0054}, ErrorCode::kMalformed);
}

TEST(Arm64StateCodec, RefusesTheSameRegisterTwice) {
    VmState state = sample(1);
    state.vcpus[0].registers.push_back(make_register(kMpidr, 3));
    EXPECT_EQ(decode_state(encode_state(state)).error().code, ErrorCode::kMalformed);
}

TEST(Arm64StateCodec, RefusesTheCountersThatTheClockRecordOwns) {
    for (const std::uint64_t id : {abi::kKVM_REG_ARM_TIMER_CNT, abi::kKVM_REG_ARM_PTIMER_CNT}) {
        VmState state = sample(1);
        state.vcpus[0].registers.push_back(make_register(id, 3));
        EXPECT_EQ(decode_state(encode_state(state)).error().code, ErrorCode::kMalformed);
    }
    EXPECT_FALSE(owned_by_clock_record(abi::kKVM_REG_ARM_TIMER_CVAL));
    EXPECT_TRUE(belongs_to_timer(abi::kKVM_REG_ARM_TIMER_CVAL));
    EXPECT_TRUE(belongs_to_timer(abi::kKVM_REG_ARM_PTIMER_CTL));
    EXPECT_FALSE(belongs_to_timer(kMpidr));
}

}  // namespace
}  // namespace continuo::vmm::arm64
