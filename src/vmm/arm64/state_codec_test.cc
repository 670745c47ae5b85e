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

/// The same, on a board with an interrupt controller and a serial port.
VmState sample_with_devices(std::uint32_t vcpus) {
    VmState state = sample(vcpus);
    GicState& gic = state.gic.emplace();
    gic.distributor.implementer = 0x4b00'343b;
    gic.distributor.route[31] = 0x101;
    for (std::uint32_t i = 0; i < vcpus; ++i) {
        GicVcpuState& vcpu = gic.vcpus.emplace_back();
        vcpu.redistributor.pending = i + 1;
        vcpu.cpu_interface.control = 4 << 8;  // 5 bits of priority
        vcpu.cpu_interface.active_priorities[1][0] = 0x8000;
    }
    state.serial.interrupt_enable = 3;
    state.serial.received = {1, 2, 3};
    state.notice = NoticeState{0x3'0000, 5'000'000'000, {7, 300, 400, 5, 100, true}};
    state.vmclock = VmclockDeviceState{0x3'1000, {3, 1, 22}};
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

TEST(Arm64StateCodec, ABoardsDevicesComeBackAsTheyWere) {
    const VmState state = sample_with_devices(3);
    const auto bytes = encode_state(state);
    const auto back = decode_state(bytes);
    ASSERT_TRUE(back) << back.error().message();
    EXPECT_EQ(*back, state);
    EXPECT_EQ(encode_state(*back), bytes);
    const auto bare = decode_state(encode_state(sample(1)));
    EXPECT_FALSE(bare->gic || bare->notice || bare->vmclock) << "one without devices has none";
}

TEST(Arm64StateCodec, RegistersHaveTheSizeThatTheirIdSays) {
    EXPECT_EQ(register_bytes(kMpidr), 8u);
    EXPECT_EQ(register_bytes(kVector0), 16u);
    EXPECT_EQ(register_bytes(kFpsr), 4u);
    EXPECT_EQ(register_bytes(0x6080'0000'0015'0000), 256u);
    EXPECT_EQ(register_bytes(0x6000'0000'0000'0000), 1u);
}

TEST(Arm64StateCodec, EveryTruncationIsTyped) {
    for (const auto& bytes : {encode_state(sample(2)), encode_state(sample_with_devices(2))}) {
        for (std::size_t length = 0; length < bytes.size(); ++length) {
            const auto back = decode_state(std::span{bytes}.first(length));
            ASSERT_FALSE(back) << length;
            EXPECT_EQ(back.error().code, ErrorCode::kTruncated)
                << length << ": " << back.error().message();
        }
    }
}

TEST(Arm64StateCodec, FlippedBitsNeverCrash) {
    const std::vector<std::byte> good[] = {encode_state(sample(2)),
                                           encode_state(sample_with_devices(2))};
    std::mt19937_64 random{11};
    for (int round = 0; round < 20000; ++round) {
        auto bytes = good[random() % 2];
        for (int flips = 0; flips < 3; ++flips) {
            const std::size_t at = random() % (round % 2 == 0 ? 160 : bytes.size());
            bytes[at] ^= static_cast<std::byte>(1u << (random() % 8));
        }
        const auto back = decode_state(bytes);
        if (!back) continue;
        EXPECT_LE(back->vcpus.size(), 64u);
        if (back->gic) {
            EXPECT_EQ(back->gic->vcpus.size(), back->vcpus.size());
        }
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
    expect_refused(kFirstItem, 69u, ErrorCode::kVersion);
    expect_refused(kFirstItem, 0x80000040u, ErrorCode::kTruncated);  // skipped, then missing
    expect_refused(kFirstItem, 65u, ErrorCode::kMalformed);          // another size, or twice
    expect_refused(kFirstItem + 4, 1u, ErrorCode::kMalformed);
    expect_refused(kFirstItem + 12, 1u, ErrorCode::kMalformed);
    expect_refused(kEvents + 16 + 3, std::uint8_t{1}, ErrorCode::kMalformed);
    expect_refused(kEvents + 16 + 60, 1u, ErrorCode::kMalformed);
}

TEST(Arm64StateCodec, RefusesAnInterruptControllerThatCannotBe) {
    using Change = void (*)(VmState&);
    const Change changes[] = {
        [](VmState& state) { state.gic->vcpus[0].cpu_interface.control = 3 << 8; },
        [](VmState& state) { state.gic->vcpus[0].cpu_interface.control = 7 << 8; },
        [](VmState& state) { state.gic->vcpus[0].cpu_interface.active_priorities[0][1] = 1; },
        [](VmState& state) {
            state.gic->vcpus[0].cpu_interface.control = 5 << 8;
            state.gic->vcpus[0].cpu_interface.active_priorities[1][2] = 1;
        },
        [](VmState& state) { state.serial.received.resize(SerialState::kReceivedMax + 1); },
    };
    for (const Change change : changes) {
        VmState state = sample_with_devices(1);
        change(state);
        EXPECT_EQ(decode_state(encode_state(state)).error().code, ErrorCode::kMalformed);
    }
}

TEST(Arm64StateCodec, RefusesATimeDeviceWithReservedWords) {
    const VmState state = sample_with_devices(1);
    const auto good = encode_state(state);
    const std::size_t serial = kFirstItem + 16 + sizeof(GicDistributor);
    const std::size_t notice = serial + 16 + 8 + state.serial.received.size();
    const std::size_t vmclock = notice + 16 + 64;
    for (const std::size_t at : {notice + 16 + 56, notice + 16 + 60, vmclock + 16 + 28}) {
        auto bytes = good;
        bytes[at] = std::byte{2};
        EXPECT_EQ(decode_state(bytes).error().code, ErrorCode::kMalformed) << at;
    }
}

TEST(Arm64StateCodec, RefusesHalfAnInterruptController) {
    // The distributor's is the first item; skipped, the rest lacks it.
    auto bytes = encode_state(sample_with_devices(1));
    const std::uint32_t skipped = 0x80000050;
    std::memcpy(bytes.data() + kFirstItem, &skipped, sizeof skipped);
    EXPECT_EQ(decode_state(bytes).error().code, ErrorCode::kTruncated);
    // The CPU interface's is the last; it alone is missing.
    bytes = encode_state(sample_with_devices(1));
    bytes.resize(bytes.size() - 16 - sizeof(GicCpuInterface));
    EXPECT_EQ(decode_state(bytes).error().code, ErrorCode::kTruncated);
    // Another size.
    bytes = encode_state(sample_with_devices(1));
    const std::uint32_t longer = sizeof(GicDistributor) + 1;
    std::memcpy(bytes.data() + kFirstItem + 8, &longer, sizeof longer);
    EXPECT_EQ(decode_state(bytes).error().code, ErrorCode::kMalformed);
    // Of a vCPU, and twice.
    bytes = encode_state(sample_with_devices(1));
    const std::uint32_t first = 0;
    std::memcpy(bytes.data() + kFirstItem + 4, &first, sizeof first);
    EXPECT_EQ(decode_state(bytes).error().code, ErrorCode::kVersion);
    bytes = encode_state(sample_with_devices(1));
    const auto item = std::vector<std::byte>(
        bytes.begin() + kFirstItem,
        bytes.begin() + kFirstItem + 16 + static_cast<std::ptrdiff_t>(sizeof(GicDistributor)));
    bytes.insert(bytes.end(), item.begin(), item.end());
    EXPECT_EQ(decode_state(bytes).error().code, ErrorCode::kMalformed);
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
