// The shape of a VM as a source describes it: foreign bytes, and promises of CPU features that a
// destination may not be able to keep.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "continuo/vmm/kvm_migration.h"

namespace continuo::vmm {
namespace {

using state::ErrorCode;

kvm::CpuidEntry leaf(std::uint32_t function, std::uint32_t index = 0) {
    kvm::CpuidEntry entry{};
    entry.function = function;
    entry.index = index;
    entry.flags = function == 7 || function == 0xd ? abi::kKVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
    return entry;
}

Bytes sample() {
    kvm::CpuidEntries cpuid{leaf(0), leaf(1), leaf(7)};
    cpuid[1].ecx = 0x1234'5678;
    return encode_shape({{.vcpus = 5, .memory_bytes = 8u << 20, .invariant_tsc = false}, cpuid});
}

/// The sample with a number put over it.
template <class T>
Result<VmShape> with(std::size_t at, T value) {
    Bytes bytes = sample();
    std::memcpy(bytes.data() + at, &value, sizeof value);
    return decode_shape(bytes);
}

// docs/formats/migration.md: where each field of the shape lies.
constexpr std::size_t kArchitectureAt = 0;
constexpr std::size_t kVcpus = 4;
constexpr std::size_t kMemory = 8;
constexpr std::size_t kFlags = 16;
constexpr std::size_t kEntries = 24;
constexpr std::size_t kZero = 28;
constexpr std::size_t kHead = 32;

TEST(VmShapeCodec, ComesBackAsItWas) {
    const auto shape = decode_shape(sample());
    ASSERT_TRUE(shape) << shape.error().message();
    EXPECT_EQ(shape->config, (VmConfig{5, 8u << 20, false, 0}));
    ASSERT_EQ(shape->model.size(), 3u);
    EXPECT_EQ(shape->model[1].ecx, 0x1234'5678u);
    EXPECT_EQ(encode_shape(*shape), sample());
}

TEST(VmShapeCodec, EveryTruncationAndEveryExcessIsTyped) {
    const Bytes bytes = sample();
    ASSERT_EQ(bytes.size(), kHead + 3 * 40);
    for (std::size_t length = 0; length < bytes.size(); ++length)
        EXPECT_EQ(decode_shape(std::span{bytes}.first(length)).error().code, ErrorCode::kMalformed)
            << length;
    Bytes longer = bytes;
    longer.push_back(std::byte{0});
    EXPECT_EQ(decode_shape(longer).error().code, ErrorCode::kMalformed);
}

TEST(VmShapeCodec, HostileNumbersAreRefused) {
    for (const std::uint32_t vcpus : {0u, 65u, 0x8000'0000u, 0xffff'ffffu})
        EXPECT_EQ(with(kVcpus, vcpus).error().code, ErrorCode::kInvalidArgument) << vcpus;
    EXPECT_TRUE(with(kVcpus, 64u));
    for (const std::uint64_t memory :
         {std::uint64_t{0}, (std::uint64_t{4} << 20) - 4096, (std::uint64_t{4} << 20) + 1,
          kMemoryMax + 4096, std::uint64_t{1} << 63, ~std::uint64_t{0}})
        EXPECT_EQ(with(kMemory, memory).error().code, ErrorCode::kInvalidArgument) << memory;
    EXPECT_TRUE(with(kMemory, kMemoryMax));
    for (const std::uint32_t flags : {2u, 0x8000'0000u, 0xffff'ffffu})
        EXPECT_EQ(with(kFlags, flags).error().code, ErrorCode::kMalformed) << flags;
    EXPECT_EQ(with(kZero, 1u).error().code, ErrorCode::kMalformed);
    // 0x6666'6667 x 40 wraps to 24 in 32 bits.
    for (const std::uint32_t entries : {0u, 2u, 4u, 257u, 0x6666'6667u, 0xffff'ffffu})
        EXPECT_EQ(with(kEntries, entries).error().code, ErrorCode::kMalformed) << entries;
}

TEST(VmShapeCodec, AnotherArchitectureIsRefusedByName) {
    const auto arm64 = with(kArchitectureAt, 2u);
    ASSERT_FALSE(arm64);
    EXPECT_EQ(arm64.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(arm64.error().what, "the VM's is arm64, this host's is x86-64");
    EXPECT_EQ(with(kArchitectureAt, 0u).error().what,
              "the VM's is unknown (0), this host's is x86-64");
}

TEST(VmShapeCodec, FlippedBitsAreRefusedOrAShapeThatCanBe) {
    std::mt19937_64 random{23};
    for (int round = 0; round < 20000; ++round) {
        Bytes bytes = sample();
        for (int flips = 0; flips < 3; ++flips)
            bytes[random() % kHead] ^= static_cast<std::byte>(1u << (random() % 8));
        const auto shape = decode_shape(bytes);
        EXPECT_TRUE(!shape || check(shape->config));
    }
}

TEST(Cpuid, AFeatureThatTheDestinationLacksIsNamed) {
    kvm::CpuidEntries host{leaf(0), leaf(1), leaf(7), leaf(0xd)};
    host[1].ecx = 0xff;
    host[2].ebx = 0x10;
    kvm::CpuidEntries guest = host;
    EXPECT_TRUE(check_cpu_model(guest, host));
    guest[1].ebx = ~0u;  // numbers, not features: APIC id, cache line
    guest[1].ecx = 0x0f;
    EXPECT_TRUE(check_cpu_model(guest, host)) << "fewer are fine";
    guest[2].ebx = 0x30;
    auto refused = check_cpu_model(guest, host);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(refused.error().where, "CPUID 0x7.0 EBX");
    EXPECT_NE(refused.error().what.find("0x20"), std::string::npos) << refused.error().what;
    guest = host;
    guest.push_back(leaf(0x80000001));
    EXPECT_TRUE(check_cpu_model(guest, host)) << "an empty leaf promises nothing";
    guest.back().edx = 1u << 29;
    EXPECT_EQ(check_cpu_model(guest, host).error().where, "CPUID 0x80000001.0 EDX");
}

}  // namespace
}  // namespace continuo::vmm
