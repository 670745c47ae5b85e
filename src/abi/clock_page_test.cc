// Readings of the pvclock page, the wall clock and Hyper-V's page.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdint>
#include <limits>

#include "continuo/abi/hyperv.h"
#include "continuo/abi/pvclock.h"
#include "edge_gen.h"
#include "exact_oracle.h"

namespace continuo::abi {
namespace {

using time::oracle::Big;
using time::oracle::big;

constexpr std::uint64_t kMax64 = std::numeric_limits<std::uint64_t>::max();

constexpr time::Count<time::GuestCounter> guest(std::uint64_t raw) {
    return time::Count<time::GuestCounter>::from_raw(raw);
}
constexpr time::Instant<time::Kvmclock> kvm(std::uint64_t raw) {
    return time::Instant<time::Kvmclock>::from_raw(raw);
}

/// 2.6 GHz: mul 0xc4ec4ec4, shift -1.
constexpr pvclock_vcpu_time_info kPage{4, 0, 1'000'000, 5'000'000'000, 0xc4ec'4ec4, -1, 1, {0, 0}};
static_assert(pvclock_line(kPage)->at(guest(1'000'000)) == kvm(5'000'000'000));
// 2600 ticks later: 1300 * 3303820996 >> 32 = 999.99...: 999 ns
static_assert(pvclock_line(kPage)->at(guest(1'002'600)) == kvm(5'000'000'999));
static_assert(pvclock_line(kPage)->scale() == time::PvclockScale::make(0xc4ec'4ec4, -1));
static_assert(pvclock_page(*pvclock_line(kPage), 4, 1) == kPage);

constexpr pvclock_vcpu_time_info shifted_by(std::int8_t shift) {
    pvclock_vcpu_time_info page = kPage;
    page.tsc_shift = shift;
    return page;
}
static_assert(pvclock_line(shifted_by(31)) && !pvclock_line(shifted_by(32)));
static_assert(pvclock_line(shifted_by(-63)) && !pvclock_line(shifted_by(-64)));
static_assert(!pvclock_line(shifted_by(127)) && !pvclock_line(shifted_by(-128)));

static_assert(update_in_progress(1) && update_in_progress(0xffff'ffff));
static_assert(!update_in_progress(0) && !update_in_progress(0xffff'fffe));

RC_GTEST_PROP(PvclockPage, SaysItsLineAndNothingElse, ()) {
    pvclock_vcpu_time_info page{};
    page.version = *time::gen::u32();
    page.tsc_timestamp = *time::gen::u64();
    page.system_time = *time::gen::u64();
    page.tsc_to_system_mul = *time::gen::u32();
    page.tsc_shift = static_cast<std::int8_t>(*rc::gen::inRange(-128, 128));
    page.flags = static_cast<std::uint8_t>(*rc::gen::inRange(0, 256));
    const auto line = pvclock_line(page);
    RC_ASSERT(line.has_value() == (-63 <= page.tsc_shift && page.tsc_shift <= 31));
    if (line) RC_ASSERT(pvclock_page(*line, page.version, page.flags) == page);
}

constexpr std::uint64_t wall_ns(std::uint32_t sec, std::uint32_t nsec) {
    return realtime_at_kvmclock_zero({2, sec, nsec})->raw();
}
static_assert(wall_ns(0, 0) == 0 && wall_ns(1, 1) == 1'000'000'001);
// The last second before 2106-02-07 06:28:16: (2^32 - 1) * 10^9 + 999999999
static_assert(wall_ns(0xffff'ffff, 999'999'999) == 4'294'967'295'999'999'999);
static_assert(!realtime_at_kvmclock_zero({2, 1, 1'000'000'000}));
static_assert(!realtime_at_kvmclock_zero({2, 1, 0xffff'ffff}));

constexpr ms_hyperv_tsc_page kHyperv{1, 0, std::uint64_t{1} << 55, -3};
static_assert(*hyperv_reference_time(kHyperv, guest(1025)) == kMax64);   // 2 - 3
static_assert(*hyperv_reference_time(kHyperv, guest(1536)) == 0);        // 3 - 3
static_assert(*hyperv_reference_time(kHyperv, guest(0)) == kMax64 - 2);  // 0 - 3
static_assert(*hyperv_reference_time(kHyperv, guest(kMax64)) == (std::uint64_t{1} << 55) - 4);
static_assert(!hyperv_reference_time({0, 0, 1, 1}, guest(0)));
// (2^64 - 1)^2 >> 64 = 2^64 - 2
static_assert(*hyperv_reference_time({1, 0, kMax64, 0}, guest(kMax64)) == kMax64 - 1);

RC_GTEST_PROP(HypervPage, IsTheHighHalfOfTheProductPlusTheOffset, ()) {
    const ms_hyperv_tsc_page page{1, 0, *time::gen::u64(), *time::gen::i64()};
    const std::uint64_t tsc = *time::gen::u64();
    const Big exact =
        big(tsc) * big(page.tsc_scale) / time::oracle::pow2(64) + big(page.tsc_offset);
    RC_ASSERT(hyperv_reference_time(page, guest(tsc)) == time::oracle::wrap64(exact));
}

}  // namespace
}  // namespace continuo::abi
