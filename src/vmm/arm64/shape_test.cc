// The shape of an arm64 VM as a source describes it: foreign bytes, and what a destination must be
// able to give.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "continuo/vmm/kvm_migration.h"

namespace continuo::vmm {
namespace {

using state::ErrorCode;

VmShape sample() {
    return {{.vcpus = 5, .memory_bytes = 8u << 20},
            {5, {4, 0, 0, 0, 0, 0, 1}, 62'500'000, InterruptController::kGicV3}};
}

template <class T>
Result<VmShape> with(std::size_t at, T value) {
    Bytes bytes = encode_shape(sample());
    std::memcpy(bytes.data() + at, &value, sizeof value);
    return decode_shape(bytes);
}

// docs/formats/migration.md: where each field of the shape lies.
constexpr std::size_t kArchitectureAt = 0;
constexpr std::size_t kVcpus = 4;
constexpr std::size_t kMemory = 8;
constexpr std::size_t kInterrupts = 56;  // here the shape of a release without them ends
constexpr std::size_t kZero = 60;

TEST(Arm64ShapeCodec, ComesBackAsItWas) {
    const Bytes bytes = encode_shape(sample());
    EXPECT_EQ(bytes.size(), 64u);
    const auto shape = decode_shape(bytes);
    ASSERT_TRUE(shape) << shape.error().message();
    EXPECT_EQ(shape->config, sample().config);
    EXPECT_EQ(shape->model, sample().model);
    EXPECT_EQ(encode_shape(*shape), bytes);
}

TEST(Arm64ShapeCodec, EveryTruncationAndEveryExcessIsTyped) {
    const Bytes bytes = encode_shape(sample());
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        if (length == kInterrupts) continue;
        EXPECT_EQ(decode_shape(std::span{bytes}.first(length)).error().code, ErrorCode::kMalformed)
            << length;
    }
    Bytes longer = bytes;
    longer.push_back(std::byte{0});
    EXPECT_EQ(decode_shape(longer).error().code, ErrorCode::kMalformed);
}

TEST(Arm64ShapeCodec, AReleaseWithoutInterruptControllersSaidNothingOfThem) {
    const Bytes bytes = encode_shape(sample());
    const auto shape = decode_shape(std::span{bytes}.first(kInterrupts));
    ASSERT_TRUE(shape) << shape.error().message();
    EXPECT_EQ(shape->model.interrupts, InterruptController::kNone);
    EXPECT_EQ(shape->model.counter_hz, sample().model.counter_hz);
}

TEST(Arm64ShapeCodec, HostileNumbersAndAnotherArchitectureAreRefused) {
    for (const std::uint32_t vcpus : {0u, 65u, 0xffff'ffffu})
        EXPECT_EQ(with(kVcpus, vcpus).error().code, ErrorCode::kInvalidArgument) << vcpus;
    for (const std::uint64_t memory : {std::uint64_t{0}, (std::uint64_t{4} << 20) + 1,
                                       std::uint64_t{1} << 63, ~std::uint64_t{0}})
        EXPECT_EQ(with(kMemory, memory).error().code, ErrorCode::kInvalidArgument) << memory;
    for (const std::uint32_t interrupts : {1u, 2u, 4u, 0xffff'ffffu})
        EXPECT_EQ(with(kInterrupts, interrupts).error().code, ErrorCode::kMalformed) << interrupts;
    EXPECT_EQ(with(kZero, 1u).error().code, ErrorCode::kMalformed);
    const auto x86 = with(kArchitectureAt, 1u);
    ASSERT_FALSE(x86);
    EXPECT_EQ(x86.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(x86.error().what, "the VM's is x86-64, this host's is arm64");
}

TEST(Arm64ShapeCodec, FlippedBitsAreRefusedOrAShapeThatCanBe) {
    std::mt19937_64 random{23};
    for (int round = 0; round < 2000; ++round) {
        Bytes bytes = encode_shape(sample());
        for (int flips = 0; flips < 3; ++flips)
            bytes[random() % bytes.size()] ^= static_cast<std::byte>(1u << (random() % 8));
        const auto shape = decode_shape(bytes);
        EXPECT_TRUE(!shape || check(shape->config));
    }
}

TEST(Arm64CpuModel, WhatTheDestinationCannotGiveIsNamed) {
    const CpuModel host = sample().model;
    EXPECT_TRUE(check_cpu_model(host, host));
    CpuModel guest = host;
    guest.counter_hz = 1'000'000'000;
    EXPECT_EQ(check_cpu_model(guest, host).error().where, "CNTFRQ_EL0");
    EXPECT_EQ(check_cpu_model(guest, host).error().code, ErrorCode::kUnsupported);
    guest = host;
    guest.target = 4;
    EXPECT_EQ(check_cpu_model(guest, host).error().where, "KVM_ARM_VCPU_INIT");
    guest = host;
    guest.features[0] = 0;
    EXPECT_EQ(check_cpu_model(guest, host).error().where, "KVM_ARM_VCPU_INIT");
    CpuModel bare = host;
    bare.interrupts = InterruptController::kNone;
    EXPECT_TRUE(check_cpu_model(bare, host)) << "a guest without one runs anywhere";
    EXPECT_EQ(check_cpu_model(host, bare).error().where, "KVM_CREATE_DEVICE");
}

}  // namespace
}  // namespace continuo::vmm
