// Each finding is made by one damage to a page without any, and is the only one then.
#include "continuo/abi/findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "continuo/abi/bytes.h"
#include "edge_gen.h"

namespace continuo::abi {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

template <class Page>
std::vector<std::string> fields(const Page& page) {
    std::vector<std::string> names;
    for (const Finding& finding : inconsistencies(page)) {
        EXPECT_FALSE(finding.text.empty());
        names.push_back(finding.field);
    }
    return names;
}

/// The fields that findings name after `damage` to a page.
template <class Page, class Damage>
std::vector<std::string> after(Page page, Damage damage) {
    damage(page);
    return fields(page);
}

TEST(Findings, Pvclock) {
    using Page = pvclock_vcpu_time_info;
    const Page good{2, 0, 1000, 2000, 0x8000'0000, 1, kPVCLOCK_TSC_STABLE_BIT, {0, 0}};
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.flags = kPVCLOCK_GUEST_STOPPED; }), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.version = 3; }), ElementsAre("version"));
    EXPECT_THAT(after(good, [](Page& p) { p.version = 0; }), ElementsAre("version"));
    EXPECT_THAT(after(good, [](Page& p) { p.pad0 = 1; }), ElementsAre("pad0"));
    EXPECT_THAT(after(good, [](Page& p) { p.system_time = std::uint64_t{1} << 63; }),
                ElementsAre("system_time"));
    EXPECT_THAT(after(good, [](Page& p) { p.system_time = (std::uint64_t{1} << 63) - 1; }),
                IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_to_system_mul = 0x7fff'ffff; }),
                ElementsAre("tsc_to_system_mul"));
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_to_system_mul = 0; }),
                ElementsAre("tsc_to_system_mul"));
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_shift = 31; }), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_shift = 32; }), ElementsAre("tsc_shift"));
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_shift = -64; }), ElementsAre("tsc_shift"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags = kPVCLOCK_COUNTS_FROM_ZERO; }),
                ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags = 0x80; }), ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Page& p) { p.pad[1] = 1; }), ElementsAre("pad"));
}

TEST(Findings, WallClock) {
    using Page = pvclock_wall_clock;
    const Page good{2, 1'700'000'000, 999'999'999};
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.version = 1; }), ElementsAre("version"));
    EXPECT_THAT(after(good, [](Page& p) { p.nsec = 1'000'000'000; }), ElementsAre("nsec"));
    EXPECT_THAT(after(good, [](Page& p) { p.sec = 0; }), ElementsAre("sec"));
    EXPECT_THAT(after(good, [](Page& p) { p = {}; }), ElementsAre("version"));
}

TEST(Findings, KvmClockData) {
    using Data = kvm_clock_data;
    const Data good{5, 0xe, 0, 6, 7, {0, 0, 0, 0}};
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(fields(Data{5, 0, 0, 0, 0, {0, 0, 0, 0}}), IsEmpty());
    EXPECT_THAT(after(good, [](Data& d) { d.clock = ~std::uint64_t{0}; }), ElementsAre("clock"));
    EXPECT_THAT(after(good, [](Data& d) { d.flags |= 1; }), ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Data& d) { d.flags = 6; }), ElementsAre("flags", "host_tsc"));
    EXPECT_THAT(after(good, [](Data& d) { d.flags = 2; }), ElementsAre("realtime", "host_tsc"));
    EXPECT_THAT(after(good, [](Data& d) { d.pad0 = 1; }), ElementsAre("pad0"));
    EXPECT_THAT(after(good, [](Data& d) { d.realtime = 0; }), ElementsAre("realtime"));
    EXPECT_THAT(after(good, [](Data& d) { d.host_tsc = 0; }), ElementsAre("host_tsc"));
    EXPECT_THAT(after(good, [](Data& d) { d.pad[3] = 1; }), ElementsAre("pad"));
}

TEST(Findings, Hyperv) {
    using Page = ms_hyperv_tsc_page;
    const Page good{1, 0, 5, -6};
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_sequence = 0; }), ElementsAre("tsc_sequence"));
    EXPECT_THAT(after(good, [](Page& p) { p.reserved1 = 9; }), ElementsAre("reserved1"));
    EXPECT_THAT(after(good, [](Page& p) { p.tsc_scale = 0; }), ElementsAre("tsc_scale"));
}

TEST(Findings, ClockPairing) {
    using Pairing = kvm_clock_pairing;
    const Pairing good{1'700'000'000, 999'999'999, 5, 0, {}};
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(after(good, [](Pairing& p) { p.sec = -1; }), ElementsAre("sec"));
    EXPECT_THAT(after(good, [](Pairing& p) { p.nsec = -1; }), ElementsAre("nsec"));
    EXPECT_THAT(after(good, [](Pairing& p) { p.nsec = 1'000'000'000; }), ElementsAre("nsec"));
    EXPECT_THAT(after(good, [](Pairing& p) { p.flags = 1; }), ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Pairing& p) { p.pad[8] = 1; }), ElementsAre("pad"));
}

TEST(Findings, StealTime) {
    using Page = kvm_steal_time;
    const Page good{5, 2, 0, 1, {}, {}};
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.version = 1; }), ElementsAre("version"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags = 1; }), ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Page& p) { p.u8_pad[2] = 1; }), ElementsAre("u8_pad"));
    EXPECT_THAT(after(good, [](Page& p) { p.pad[10] = 1; }), ElementsAre("pad"));
}

/// TAI by a TSC of 2 GHz: 2^64 / (2 * 10^9) = 9223372036.9, and with shift 30 that keeps its bits.
vmclock_abi good_vmclock() {
    vmclock_abi page{};
    page.magic = kVMCLOCK_MAGIC;
    page.size = kVmclockPageSize;
    page.version = kVmclockVersion;
    page.counter_id = kVMCLOCK_COUNTER_X86_TSC;
    page.time_type = kVMCLOCK_TIME_TAI;
    page.seq_count = 2;
    page.flags = kVMCLOCK_FLAG_TAI_OFFSET_VALID | kVMCLOCK_FLAG_PERIOD_ESTERROR_VALID |
                 kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID | kVMCLOCK_FLAG_TIME_ESTERROR_VALID |
                 kVMCLOCK_FLAG_TIME_MAXERROR_VALID | kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT;
    page.clock_status = kVMCLOCK_STATUS_SYNCHRONIZED;
    page.tai_offset_sec = 37;
    page.counter_period_shift = 30;
    page.counter_period_frac_sec = 9'903'520'314'283'042'199U;  // 2^94 / (2 * 10^9)
    page.counter_period_esterror_rate_frac_sec = 1;
    page.counter_period_maxerror_rate_frac_sec = 2;
    page.time_sec = 1'700'000'037;
    page.time_esterror_nanosec = 10;
    page.time_maxerror_nanosec = 20;
    page.vm_generation_counter = 1;
    return page;
}

TEST(Findings, VmclockHead) {
    using Page = vmclock_abi;
    const Page good = good_vmclock();
    EXPECT_THAT(fields(good), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.magic = 0x4b4c4355; }), ElementsAre("magic"));
    EXPECT_THAT(after(good, [](Page& p) { p.size = 4095; }), ElementsAre("size"));
    EXPECT_THAT(after(good, [](Page& p) { p.size = 112; }), ElementsAre("size"));
    EXPECT_THAT(after(good, [](Page& p) { p.size = 111; }), ElementsAre("size", "size"));
    EXPECT_THAT(after(good, [](Page& p) { p.size = 1 << 16; }), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.version = 2; }), ElementsAre("version"));
    EXPECT_THAT(after(good, [](Page& p) { p.counter_id = 255; }), ElementsAre("counter_id"));
    EXPECT_THAT(after(good, [](Page& p) { p.counter_id = 2; }), ElementsAre("counter_id"));
    EXPECT_THAT(after(good, [](Page& p) { p.counter_id = 0; }), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.seq_count = 3; }), ElementsAre("seq_count"));
}

TEST(Findings, VmclockTimeType) {
    using Page = vmclock_abi;
    const Page good = good_vmclock();
    EXPECT_THAT(after(good, [](Page& p) { p.time_type = kVMCLOCK_TIME_MONOTONIC; }), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.time_type = 3; }), ElementsAre("time_type"));
    EXPECT_THAT(after(good, [](Page& p) { p.time_type = 5; }), ElementsAre("time_type"));
    EXPECT_THAT(after(good, [](Page& p) { p.time_type = kVMCLOCK_TIME_UTC; }),
                ElementsAre("tai_offset_sec"));
    EXPECT_THAT(after(good,
                      [](Page& p) {
                          p.time_type = kVMCLOCK_TIME_UTC;
                          p.flags &= ~kVMCLOCK_FLAG_TAI_OFFSET_VALID;
                          p.tai_offset_sec = 0;
                      }),
                ElementsAre("time_type"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags &= ~kVMCLOCK_FLAG_TAI_OFFSET_VALID; }),
                ElementsAre("tai_offset_sec"));
    // 37 one way and 37 the other: what a Linux guest is wrong by.
    Page utc = good;
    utc.time_type = kVMCLOCK_TIME_UTC;
    EXPECT_THAT(inconsistencies(utc)[0].text, testing::HasSubstr("74 s"));
}

TEST(Findings, VmclockFlagsAndNumbers) {
    using Page = vmclock_abi;
    const Page good = good_vmclock();
    EXPECT_THAT(after(good, [](Page& p) { p.flags |= 1 << 10; }), ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags |= std::uint64_t{1} << 63; }),
                ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags |= kVMCLOCK_FLAG_NOTIFICATION_PRESENT; }),
                IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.flags |= kVMCLOCK_FLAG_DISRUPTION_SOON; }), IsEmpty());
    EXPECT_THAT(after(good, [](Page& p) { p.flags |= 6; }), ElementsAre("flags"));
    EXPECT_THAT(after(good, [](Page& p) { p.pad[0] = 1; }), ElementsAre("pad"));
    EXPECT_THAT(after(good, [](Page& p) { p.clock_status = 4; }), ElementsAre("clock_status"));
    EXPECT_THAT(after(good, [](Page& p) { p.clock_status = 5; }), ElementsAre("clock_status"));
    EXPECT_THAT(after(good, [](Page& p) { p.leap_second_smearing_hint = 3; }),
                ElementsAre("leap_second_smearing_hint"));
    EXPECT_THAT(after(good, [](Page& p) { p.leap_indicator = 6; }), ElementsAre("leap_indicator"));
}

TEST(Findings, VmclockPeriod) {
    using Page = vmclock_abi;
    const Page good = good_vmclock();
    EXPECT_THAT(after(good, [](Page& p) { p.counter_period_frac_sec = 0; }),
                ElementsAre("counter_period_frac_sec"));
    // 1 MHz is 2^64 / 10^6 = 18446744073709.55: one unit more is below it
    EXPECT_THAT(after(good,
                      [](Page& p) {
                          p.counter_period_shift = 0;
                          p.counter_period_frac_sec = 18'446'744'073'709;
                      }),
                IsEmpty());
    EXPECT_THAT(after(good,
                      [](Page& p) {
                          p.counter_period_shift = 0;
                          p.counter_period_frac_sec = 18'446'744'073'710;
                      }),
                ElementsAre("counter_period_frac_sec"));
    // 2^36 Hz is 2^28 at shift 0; one unit less is above it
    EXPECT_THAT(after(good,
                      [](Page& p) {
                          p.counter_period_shift = 0;
                          p.counter_period_frac_sec = 1 << 28;
                      }),
                IsEmpty());
    EXPECT_THAT(after(good,
                      [](Page& p) {
                          p.counter_period_shift = 0;
                          p.counter_period_frac_sec = (1 << 28) - 1;
                      }),
                ElementsAre("counter_period_frac_sec"));
    EXPECT_THAT(after(good, [](Page& p) { p.counter_period_shift = 60; }),
                ElementsAre("counter_period_frac_sec"));
    EXPECT_THAT(after(good, [](Page& p) { p.counter_period_shift = 128; }),
                ElementsAre("counter_period_shift", "counter_period_frac_sec"));
    // A page without a counter has no period to judge.
    EXPECT_THAT(after(good,
                      [](Page& p) {
                          p.counter_id = kVMCLOCK_COUNTER_INVALID;
                          p.counter_period_frac_sec = 0;
                      }),
                ElementsAre("counter_id"));
}

TEST(Findings, VmclockErrors) {
    using Page = vmclock_abi;
    const Page good = good_vmclock();
    EXPECT_THAT(after(good, [](Page& p) { p.counter_period_esterror_rate_frac_sec = 0; }),
                ElementsAre("counter_period_esterror_rate_frac_sec"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags &= ~kVMCLOCK_FLAG_PERIOD_ESTERROR_VALID; }),
                ElementsAre("counter_period_esterror_rate_frac_sec"));
    EXPECT_THAT(after(good, [](Page& p) { p.counter_period_maxerror_rate_frac_sec = 0; }),
                ElementsAre("counter_period_maxerror_rate_frac_sec"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags &= ~kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID; }),
                ElementsAre("counter_period_maxerror_rate_frac_sec"));
    EXPECT_THAT(after(good, [](Page& p) { p.time_esterror_nanosec = 0; }),
                ElementsAre("time_esterror_nanosec"));
    EXPECT_THAT(after(good, [](Page& p) { p.time_esterror_nanosec = 21; }),
                ElementsAre("time_esterror_nanosec"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags &= ~kVMCLOCK_FLAG_TIME_ESTERROR_VALID; }),
                ElementsAre("time_esterror_nanosec"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags &= ~kVMCLOCK_FLAG_TIME_MAXERROR_VALID; }),
                ElementsAre("time_maxerror_nanosec"));
    EXPECT_THAT(after(good, [](Page& p) { p.time_maxerror_nanosec = 0; }),
                ElementsAre("time_maxerror_nanosec", "time_esterror_nanosec"));
    EXPECT_THAT(after(good, [](Page& p) { p.flags &= ~kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT; }),
                ElementsAre("vm_generation_counter"));
}

// Whatever the bytes are, a list comes back and nothing else happens (the sanitizers look on).
template <class Page>
void survives_any_bytes() {
    std::vector<std::byte> bytes(sizeof(Page));
    for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(*time::gen::u64());
    for (const Finding& finding : inconsistencies(*decode<Page>(bytes)))
        RC_ASSERT(!finding.field.empty() && !finding.text.empty());
}
RC_GTEST_PROP(Findings, SurviveAnyVmclock, ()) {
    survives_any_bytes<vmclock_abi>();
}
RC_GTEST_PROP(Findings, SurviveAnyPvclock, ()) {
    survives_any_bytes<pvclock_vcpu_time_info>();
}
RC_GTEST_PROP(Findings, SurviveAnyKvmClockData, ()) {
    survives_any_bytes<kvm_clock_data>();
}

}  // namespace
}  // namespace continuo::abi
