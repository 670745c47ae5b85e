// The layouts as bytes, and the numbers. Offsets and sizes are asserted where the layouts stand.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "continuo/abi/arm64.h"
#include "continuo/abi/bytes.h"
#include "continuo/abi/clock_pairing.h"
#include "continuo/abi/cpuid.h"
#include "continuo/abi/hyperv.h"
#include "continuo/abi/kvm_clock.h"
#include "continuo/abi/kvm_x86.h"
#include "continuo/abi/msr.h"
#include "continuo/abi/pvclock.h"
#include "continuo/abi/steal_time.h"
#include "continuo/abi/vmclock.h"

namespace continuo::abi {
namespace {

static_assert(ioc(IocDirection::write, 0xae, 0x7b, 48) == 0x4030ae7b);
static_assert(ioc(IocDirection::read_write, 0xff, 0xff, 0x3fff) == 0xffff'ffff);
static_assert(kvm_io(0x80) == 0xae80);

/// 00 01 02 ...: every field's value says which bytes it was read from.
std::vector<std::byte> counting(std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i)
        bytes[i] = static_cast<std::byte>(i);
    return bytes;
}

TEST(Decode, PvclockFieldsComeFromTheirBytes) {
    const auto page = decode<pvclock_vcpu_time_info>(counting(32));
    ASSERT_TRUE(page.has_value());
    EXPECT_EQ(page->version, 0x0302'0100U);
    EXPECT_EQ(page->pad0, 0x0706'0504U);
    EXPECT_EQ(page->tsc_timestamp, 0x0f0e'0d0c'0b0a'0908U);
    EXPECT_EQ(page->system_time, 0x1716'1514'1312'1110U);
    EXPECT_EQ(page->tsc_to_system_mul, 0x1b1a'1918U);
    EXPECT_EQ(page->tsc_shift, 0x1c);
    EXPECT_EQ(page->flags, 0x1d);
    EXPECT_EQ(page->pad[0], 0x1e);
    EXPECT_EQ(page->pad[1], 0x1f);
}

TEST(Decode, WallClockFieldsComeFromTheirBytes) {
    const auto page = decode<pvclock_wall_clock>(counting(12));
    ASSERT_TRUE(page.has_value());
    EXPECT_EQ(page->version, 0x0302'0100U);
    EXPECT_EQ(page->sec, 0x0706'0504U);
    EXPECT_EQ(page->nsec, 0x0b0a'0908U);
}

TEST(Decode, KvmClockDataFieldsComeFromTheirBytes) {
    const auto data = decode<kvm_clock_data>(counting(48));
    ASSERT_TRUE(data.has_value());
    EXPECT_EQ(data->clock, 0x0706'0504'0302'0100U);
    EXPECT_EQ(data->flags, 0x0b0a'0908U);
    EXPECT_EQ(data->pad0, 0x0f0e'0d0cU);
    EXPECT_EQ(data->realtime, 0x1716'1514'1312'1110U);
    EXPECT_EQ(data->host_tsc, 0x1f1e'1d1c'1b1a'1918U);
    EXPECT_EQ(data->pad[3], 0x2f2e'2d2cU);
}

TEST(Decode, HypervAndPairingFieldsComeFromTheirBytes) {
    const auto page = decode<ms_hyperv_tsc_page>(counting(4096));
    ASSERT_TRUE(page.has_value());
    EXPECT_EQ(page->tsc_sequence, 0x0302'0100U);
    EXPECT_EQ(page->reserved1, 0x0706'0504U);
    EXPECT_EQ(page->tsc_scale, 0x0f0e'0d0c'0b0a'0908U);
    EXPECT_EQ(page->tsc_offset, 0x1716'1514'1312'1110);
    const auto pairing = decode<kvm_clock_pairing>(counting(64));
    ASSERT_TRUE(pairing.has_value());
    EXPECT_EQ(pairing->sec, 0x0706'0504'0302'0100);
    EXPECT_EQ(pairing->nsec, 0x0f0e'0d0c'0b0a'0908);
    EXPECT_EQ(pairing->tsc, 0x1716'1514'1312'1110U);
    EXPECT_EQ(pairing->flags, 0x1b1a'1918U);
    EXPECT_EQ(pairing->pad[8], 0x3f3e'3d3cU);
}

TEST(Decode, VmclockFieldsComeFromTheirBytes) {
    const auto page = decode<vmclock_abi>(counting(4096));
    ASSERT_TRUE(page.has_value());
    EXPECT_EQ(page->magic, 0x0302'0100U);
    EXPECT_EQ(page->size, 0x0706'0504U);
    EXPECT_EQ(page->version, 0x0908);
    EXPECT_EQ(page->counter_id, 0x0a);
    EXPECT_EQ(page->time_type, 0x0b);
    EXPECT_EQ(page->seq_count, 0x0f0e'0d0cU);
    EXPECT_EQ(page->disruption_marker, 0x1716'1514'1312'1110U);
    EXPECT_EQ(page->flags, 0x1f1e'1d1c'1b1a'1918U);
    EXPECT_EQ(page->pad[1], 0x21);
    EXPECT_EQ(page->clock_status, 0x22);
    EXPECT_EQ(page->leap_second_smearing_hint, 0x23);
    EXPECT_EQ(page->tai_offset_sec, 0x2524);
    EXPECT_EQ(page->leap_indicator, 0x26);
    EXPECT_EQ(page->counter_period_shift, 0x27);
    EXPECT_EQ(page->counter_value, 0x2f2e'2d2c'2b2a'2928U);
    EXPECT_EQ(page->counter_period_frac_sec, 0x3736'3534'3332'3130U);
    EXPECT_EQ(page->counter_period_esterror_rate_frac_sec, 0x3f3e'3d3c'3b3a'3938U);
    EXPECT_EQ(page->counter_period_maxerror_rate_frac_sec, 0x4746'4544'4342'4140U);
    EXPECT_EQ(page->time_sec, 0x4f4e'4d4c'4b4a'4948U);
    EXPECT_EQ(page->time_frac_sec, 0x5756'5554'5352'5150U);
    EXPECT_EQ(page->time_esterror_nanosec, 0x5f5e'5d5c'5b5a'5958U);
    EXPECT_EQ(page->time_maxerror_nanosec, 0x6766'6564'6362'6160U);
    EXPECT_EQ(page->vm_generation_counter, 0x6f6e'6d6c'6b6a'6968U);
}

TEST(Decode, SignedBytesKeepTheirSign) {
    std::vector<std::byte> bytes(32, std::byte{0xff});
    EXPECT_EQ(decode<pvclock_vcpu_time_info>(bytes)->tsc_shift, -1);
    bytes.assign(4096, std::byte{0xff});
    EXPECT_EQ(decode<vmclock_abi>(bytes)->tai_offset_sec, -1);
    EXPECT_EQ(decode<ms_hyperv_tsc_page>(bytes)->tsc_offset, -1);
}

template <class T>
class DecodeOf : public testing::Test {};
using Layouts =
    testing::Types<pvclock_vcpu_time_info, pvclock_wall_clock, kvm_clock_data, ms_hyperv_tsc_page,
                   kvm_clock_pairing, kvm_steal_time, vmclock_abi, kvm_msr_entry, kvm_cpuid_entry2>;
TYPED_TEST_SUITE(DecodeOf, Layouts);

TYPED_TEST(DecodeOf, EncodeGivesTheBytesBackAndAShortReadIsRefused) {
    const auto bytes = counting(sizeof(TypeParam) + 1);
    const std::span<const std::byte> all{bytes};
    // One byte off, so that nothing is aligned.
    const auto value = decode<TypeParam>(all.subspan(1));
    ASSERT_TRUE(value.has_value());
    const auto back = encode(*value);
    EXPECT_TRUE(std::ranges::equal(back, all.subspan(1, sizeof(TypeParam))));
    EXPECT_TRUE(*decode<TypeParam>(back) == *value);
    for (std::size_t size = 0; size < sizeof(TypeParam); ++size)
        EXPECT_FALSE(decode<TypeParam>(all.first(size)).has_value()) << size;
}

TEST(Kvm, EntriesFollowTheirHead) {
    KvmMsrs<2> msrs;
    msrs.entries[1] = {kMSR_IA32_TSC, 0, 0x1122'3344'5566'7788};
    EXPECT_EQ(msrs.head.nmsrs, 2U);
    std::array<std::byte, sizeof(msrs)> bytes{};
    std::memcpy(bytes.data(), &msrs, sizeof(msrs));
    EXPECT_EQ(*decode<kvm_msr_entry>(std::span{bytes}.subspan(8 + 16)), msrs.entries[1]);

    KvmCpuid2<2> cpuid;
    cpuid.entries[1].function = kKVM_CPUID_FEATURES;
    EXPECT_EQ(cpuid.head.nent, 2U);
    std::array<std::byte, sizeof(cpuid)> leaves{};
    std::memcpy(leaves.data(), &cpuid, sizeof(cpuid));
    EXPECT_EQ(*decode<kvm_cpuid_entry2>(std::span{leaves}.subspan(8 + 40)), cpuid.entries[1]);
}

TEST(Cpuid, SignatureIsItsThreeRegisters) {
    const std::array<std::uint32_t, 3> words{kKVM_SIGNATURE_EBX, kKVM_SIGNATURE_ECX,
                                             kKVM_SIGNATURE_EDX};
    ASSERT_EQ(kKVM_SIGNATURE.size(), sizeof(words));
    EXPECT_EQ(std::memcmp(kKVM_SIGNATURE.data(), words.data(), sizeof(words)), 0);
}

static_assert(has_bit(0x0100'0000, kKVM_FEATURE_CLOCKSOURCE_STABLE_BIT));
static_assert(!has_bit(0xfeff'ffff, kKVM_FEATURE_CLOCKSOURCE_STABLE_BIT));
static_assert(has_bit(0x8000'0000, 31) && !has_bit(0x7fff'ffff, 31));

static_assert(is_kvm_msr(kMSR_KVM_SYSTEM_TIME_NEW) && is_kvm_msr(0x4b564dff));
static_assert(!is_kvm_msr(0x4b564cff) && !is_kvm_msr(0x4b564e00) && !is_kvm_msr(kMSR_IA32_TSC));
static_assert(system_time_enabled(0x1234'5001) && !system_time_enabled(0x1234'5000));
static_assert(system_time_gpa(0xffff'ffff'ffff'ffff) == 0xffff'ffff'ffff'fffe);
static_assert(system_time_gpa(0x1234'5041) == 0x1234'5040);

// "VCLK" as bytes.
TEST(Vmclock, MagicSpellsVclk) {
    vmclock_abi page{};
    page.magic = kVMCLOCK_MAGIC;
    const auto bytes = encode(page);
    EXPECT_EQ(std::memcmp(bytes.data(), "VCLK", 4), 0);
}

}  // namespace
}  // namespace continuo::abi
