// The proposals as the threads and patches have them, to the tick: what each one does, and what
// happens without it. The sums stand beside the numbers.
#include <gtest/gtest.h>

#include <cerrno>

#include "kvm_bed.h"

namespace continuo::model {
namespace {

using state::ErrorCode;

KernelRules rules() {
    return KernelRules::linux(6, 12);
}

using Bed = KvmBed;

std::uint64_t realtime(HostPlatform& host) {
    return static_cast<std::uint64_t>(host.realtime_ns(host.counter));
}

TEST(Proposals, NoKernelHasThemUnlessTheRulesSay) {
    Bed bed{rules()};
    EXPECT_EQ(bed.vm->tsc_state(0).error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(bed.vm->set_tsc_state(0, {}).error().sys_errno, ENOTTY);
    EXPECT_EQ(bed.vm->clock_guest(0).error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(bed.vm->set_clock_guest(0, {}).error().sys_errno, ENOTTY);
    EXPECT_EQ(bed.vm->tsc_scale(0).error().sys_errno, ENXIO);
    for (const auto& [major, minor] : {std::pair{6U, 1U}, {6U, 12U}, {7U, 2U}}) {
        const KernelRules of = KernelRules::linux(major, minor);
        EXPECT_FALSE(of.precise_tuple || of.host_access_quirk || of.clock_guest_handover ||
                     of.tsc_scale_attribute || of.pvclock_vclock || of.change_notifier ||
                     of.counts_from_zero);
    }
}

// S3.1, the tuple.

KernelRules with_tuple() {
    KernelRules with = rules();
    with.precise_tuple = true;
    return with;
}

constexpr std::uint64_t kSaved = 5'000'000'000;
constexpr std::uint64_t kWindow = k2Ghz / 10;  // the 100 ms of S3.8

TEST(PreciseTuple, IsInForceFromTheFirstEntryOnAndNotBefore) {
    Bed bed{with_tuple()};
    bed.host.counter += k2Ghz;
    ASSERT_TRUE(bed.vm->set_tsc_state(0, {0, 0, kSaved, 0}));
    bed.host.counter += kWindow;
    EXPECT_EQ(bed.vm->guest_tsc(0), k2Ghz + kWindow) << "what it had since its creation";
    ASSERT_TRUE(bed.vm->enter(0));
    EXPECT_EQ(bed.vm->guest_tsc(0), kSaved);
    bed.host.counter += 3;
    EXPECT_EQ(bed.vm->guest_tsc(0), kSaved + 3);
    bed.vm->exit(0);
    bed.host.counter += 500;
    ASSERT_TRUE(bed.vm->enter(0));
    EXPECT_EQ(bed.vm->guest_tsc(0), kSaved + 503) << "one write, one effect";

    // By value, as today, the window is a jump forward of as much.
    Bed today{rules()};
    today.host.counter += k2Ghz;
    ASSERT_TRUE(today.vm->host_write_msr(0, abi::kMSR_IA32_TSC, kSaved));
    today.host.counter += kWindow;
    ASSERT_TRUE(today.vm->enter(0));
    EXPECT_EQ(today.vm->guest_tsc(0), kSaved + 200'000'000);  // 100 ms * 2 GHz
}

TEST(PreciseTuple, AFollowerOfEntryStepsSeesItBeforeThePage) {
    Bed bed{with_tuple()};
    ASSERT_TRUE(bed.vm->set_tsc_state(0, {0, 0, kSaved, 0}));
    EXPECT_NE(bed.vm->pending(0) & kTscStateWrite, 0);
    EXPECT_EQ(bed.vm->step(0), Step::kTscState);
    EXPECT_EQ(bed.vm->guest_tsc(0), kSaved);
    EXPECT_EQ(bed.vm->pending(0) & kTscStateWrite, 0);
    while (bed.vm->step(0) != Step::kEntered) {
    }
    EXPECT_EQ(bed.vm->page(0).tsc_timestamp, kSaved);
}

TEST(PreciseTuple, ATimestampMakesTheDelayMeanNothing) {
    for (const std::uint64_t delay : {std::uint64_t{0}, std::uint64_t{200}, 2 * kNs, 20 * kNs}) {
        Bed bed{with_tuple()};
        const std::uint64_t now = realtime(bed.host);
        const TscState state{TscState::kTimestampValid, now - 3 * kNs, kSaved, 0};
        ASSERT_TRUE(bed.vm->set_tsc_state(0, state));
        bed.host.counter += delay;
        ASSERT_TRUE(bed.vm->enter(0));
        // 3 s of REALTIME are 6 * 10^9 ticks, and the delay's ticks are those of its ns, twice.
        EXPECT_EQ(bed.vm->guest_tsc(0), kSaved + 3 * k2Ghz + delay);
        EXPECT_EQ(bed.vm->tsc_map(0).offset(), kSaved + 3 * k2Ghz - 1000 * k2Ghz);
    }
    // A source whose REALTIME is ahead of ours: backwards, not cut at 0.
    Bed bed{with_tuple()};
    const TscState ahead{TscState::kTimestampValid, realtime(bed.host) + kNs, kSaved, 0};
    ASSERT_TRUE(bed.vm->set_tsc_state(0, ahead));
    ASSERT_TRUE(bed.vm->enter(0));
    EXPECT_EQ(bed.vm->guest_tsc(0), kSaved - k2Ghz);
}

TEST(PreciseTuple, GoesRoundWithoutASeam) {
    Bed bed{with_tuple()};
    ASSERT_TRUE(bed.vm->guest_write_msr(1, abi::kMSR_IA32_TSC_ADJUST, 77));
    bed.host.counter += 10 * k2Ghz;
    const auto state = bed.vm->tsc_state(1);
    ASSERT_TRUE(state);
    EXPECT_EQ(state->tsc, 10 * k2Ghz + 77);
    EXPECT_EQ(state->tsc_adjust, 77U);
    EXPECT_EQ(state->nsec, realtime(bed.host));
    EXPECT_EQ(state->flags, TscState::kTimestampValid | TscState::kTscAdjustValid);
    Bed other{with_tuple()};
    other.host.counter = bed.host.counter + 4 * k2Ghz;
    ASSERT_TRUE(other.vm->set_tsc_state(1, *state));
    ASSERT_TRUE(other.vm->enter(1));
    EXPECT_EQ(other.vm->guest_tsc(1), 14 * k2Ghz + 77);
    EXPECT_EQ(*other.vm->guest_read_msr(1, abi::kMSR_IA32_TSC_ADJUST), 77U);
    EXPECT_EQ(other.vm->set_tsc_state(1, {4, 0, 0, 0}).error().sys_errno, EINVAL);
}

TEST(PreciseTuple, RunsVcpusApartByWhatRealtimeIsOffTheCounter) {
    // 3 GHz: Linux's REALTIME has mult 5592405 / 2^24 ns a tick. In 3 * 10^9 ticks, 1 s between the
    // entries of two vCPUs, it moves 999 999 940 ns, which are 2 999 999 820 ticks: vCPU 1 is set
    // 180 ticks, 60 ns, behind vCPU 0. The offset attribute leaves both at one offset.
    Bed bed{with_tuple(), 3'000'000};
    bed.enter_all();
    bed.exit_all();
    ASSERT_TRUE(bed.vm->masterclock());
    const TscState state{TscState::kTimestampValid, realtime(bed.host), kSaved, 0};
    for (unsigned i = 0; i < 2; ++i)
        ASSERT_TRUE(bed.vm->set_tsc_state(i, state));
    ASSERT_TRUE(bed.vm->enter(0));
    bed.host.counter += 3 * kNs;
    ASSERT_TRUE(bed.vm->enter(1));
    EXPECT_EQ(bed.apart(), -180);
    // Nothing was synchronised, so KVM still believes in one line for both.
    EXPECT_TRUE(bed.vm->masterclock());
    EXPECT_EQ(bed.vm->page(1).tsc_timestamp + 180, bed.vm->page(0).tsc_timestamp);
    EXPECT_EQ(bed.vm->page(1).system_time, bed.vm->page(0).system_time);

    for (unsigned i = 0; i < 2; ++i)
        ASSERT_TRUE(bed.vm->set_tsc_offset(i, 12345));
    EXPECT_EQ(bed.apart(), 0);
}

TEST(PreciseTuple, ReachesToTheYear2554) {
    // 64 bits of ns since 1970 end on 2554-07-21. Saved 4 s before, entered 3 s later.
    Bed bed{with_tuple()};
    const std::uint64_t saved = ~std::uint64_t{0} - 4 * kNs;
    bed.host.real = {bed.host.counter, static_cast<std::int64_t>(saved), 0, 1U << 23, 24};
    const TscState state{TscState::kTimestampValid, saved, kSaved, 0};
    ASSERT_TRUE(bed.vm->set_tsc_state(0, state));
    bed.host.counter += 3 * k2Ghz;
    ASSERT_TRUE(bed.vm->enter(0));
    EXPECT_EQ(bed.vm->guest_tsc(0), kSaved + 3 * k2Ghz);
}

// S3.2, host writes without heuristics.

KernelRules with_quirk() {
    KernelRules with = rules();
    with.host_access_quirk = true;
    return with;
}

TEST(HostAccessQuirk, ASecondWriteNearTheFirstIsKept) {
    constexpr std::uint64_t third = 600'000'000;  // 0.3 s: inside the window of a second
    for (const bool quirk : {false, true}) {
        Bed bed{quirk ? with_quirk() : rules()};
        ASSERT_TRUE(bed.vm->host_write_msr(0, abi::kMSR_IA32_TSC, 100 * k2Ghz));
        ASSERT_TRUE(bed.vm->host_write_msr(1, abi::kMSR_IA32_TSC, 100 * k2Ghz + third));
        EXPECT_EQ(bed.vm->guest_tsc(0), 100 * k2Ghz);
        EXPECT_EQ(bed.vm->guest_tsc(1), 100 * k2Ghz + (quirk ? third : 0));
        // And 0 is a value, where it is an order to snap otherwise.
        ASSERT_TRUE(bed.vm->host_write_msr(1, abi::kMSR_IA32_TSC, 0));
        EXPECT_EQ(bed.vm->guest_tsc(1), quirk ? 0 : 100 * k2Ghz);
    }
}

TEST(HostAccessQuirk, NothingIsSynchronisedSoTheMasterclockSaysWhatIsNotSo) {
    Bed bed{with_quirk()};
    bed.enter_all();
    bed.exit_all();
    const std::uint64_t generation = bed.vm->generation();
    ASSERT_TRUE(bed.vm->host_write_msr(1, abi::kMSR_IA32_TSC, 1ULL << 40));
    bed.enter_all();
    EXPECT_EQ(bed.vm->generation(), generation);
    EXPECT_TRUE(bed.vm->masterclock()) << "vCPUs 2^40 ticks apart";
    EXPECT_NE(bed.apart(), 0);

    Bed today{rules()};
    today.enter_all();
    today.exit_all();
    ASSERT_TRUE(today.vm->host_write_msr(1, abi::kMSR_IA32_TSC, 1ULL << 40));
    today.enter_all();
    EXPECT_FALSE(today.vm->masterclock());
}

TEST(HostAccessQuirk, NeitherOrderOfTheTwoRegistersRestoresBothAndTheTupleDoes) {
    // Saved: TSC 10^12, TSC_ADJUST 500. The new VM counts 4 * 10^9 by then, TSC_ADJUST 0.
    constexpr std::uint64_t tsc = 1'000'000'000'000;
    constexpr std::uint64_t adjust = 500;
    KernelRules with = with_quirk();
    with.precise_tuple = true;
    const auto adjust_of = [](Bed& bed) {
        return *bed.vm->guest_read_msr(0, abi::kMSR_IA32_TSC_ADJUST);
    };
    Bed first{with};
    first.sleep_s(2);
    ASSERT_TRUE(first.vm->host_write_msr(0, abi::kMSR_IA32_TSC, tsc));
    EXPECT_EQ(adjust_of(first), tsc - 2 * k2Ghz) << "the register follows, as in the processor";
    ASSERT_TRUE(first.vm->host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, adjust));
    EXPECT_EQ(adjust_of(first), adjust);
    EXPECT_EQ(first.vm->guest_tsc(0), 2 * k2Ghz + adjust) << "and the value is gone";

    Bed second{with};
    second.sleep_s(2);
    ASSERT_TRUE(second.vm->host_write_msr(0, abi::kMSR_IA32_TSC_ADJUST, adjust));
    ASSERT_TRUE(second.vm->host_write_msr(0, abi::kMSR_IA32_TSC, tsc));
    EXPECT_EQ(second.vm->guest_tsc(0), tsc);
    EXPECT_EQ(adjust_of(second), tsc - 2 * k2Ghz) << "500 + (10^12 - 4 * 10^9 - 500)";

    Bed third{with};
    third.sleep_s(2);
    ASSERT_TRUE(third.vm->set_tsc_state(0, {TscState::kTscAdjustValid, 0, tsc, adjust}));
    ASSERT_TRUE(third.vm->enter(0));
    EXPECT_EQ(third.vm->guest_tsc(0), tsc);
    EXPECT_EQ(adjust_of(third), adjust);
}

// kvmclock handed over as a line of the guest's TSC.

KernelRules with_handover(std::optional<int> frac_bits = {}) {
    KernelRules with = rules();
    with.clock_guest_handover = true;
    with.tsc_scale_attribute = true;
    with.scaling_frac_bits = frac_bits;
    return with;
}

TEST(ClockGuest, IsThePageOfTheGuestAndNeedsAMasterclock) {
    Bed bed{with_handover()};
    EXPECT_EQ(bed.vm->clock_guest(0).error().sys_errno, EINVAL) << "a new VM has none yet";
    bed.enter_all();
    bed.host.counter += 7 * k2Ghz;
    const auto line = bed.vm->clock_guest(0);
    ASSERT_TRUE(line);
    EXPECT_EQ(abi::pvclock_line(*line)->at({}), abi::pvclock_line(bed.vm->page(0))->at({}));
    EXPECT_EQ(line->tsc_timestamp, bed.vm->page(0).tsc_timestamp);
    EXPECT_EQ(line->flags, abi::kPVCLOCK_TSC_STABLE_BIT);
    bed.exit_all();
    ASSERT_TRUE(bed.vm->set_tsc_offset(1, 1ULL << 40));
    bed.enter_all();
    EXPECT_EQ(bed.vm->clock_guest(0).error().sys_errno, EINVAL);
    EXPECT_EQ(bed.vm->set_clock_guest(0, *line).error().sys_errno, EINVAL);
}

/// A guest of 1 GHz on a host of 3 499 912 kHz, scaled. Its page is for 999 999 kHz: the clock is
/// fast, and 5 s after the last sample a new one moves it by -4801 ns: the raw clock of mult
/// 4793611 / 2^24 says 5 000 000 197 ns for 17 499 560 000 ticks, the page's mul 2147485795, shift
/// 1, says 5 000 004 998 for the guest's 5 000 000 000.
struct Scaled : Bed {
    Scaled() : Bed{with_handover(time::kVmxFracBits), 3'499'912, 1'000'000} {
        enter_all();
        saved = *vm->clock_guest(0);
        host.counter += std::uint64_t{5} * 3'499'912'000;
        exit_all();
    }
    abi::pvclock_vcpu_time_info saved{};
};

TEST(ClockGuest, KeepsTheLineThatANewSampleWouldMove) {
    const auto moved = [](Scaled& bed) {
        bed.enter_all();
        const std::uint64_t tsc = bed.vm->guest_tsc(0);
        const auto was =
            abi::pvclock_line(bed.saved)->at(time::Count<time::GuestCounter>::from_raw(tsc));
        return static_cast<std::int64_t>(bed.clock_at(0, tsc) - was.raw());
    };
    Scaled handed;
    ASSERT_TRUE(handed.vm->set_clock_guest(0, handed.saved));
    EXPECT_EQ(moved(handed), 0);
    EXPECT_EQ(handed.vm->page(1).tsc_timestamp, handed.vm->guest_tsc(1)) << "a sample of now";

    Scaled sampled;  // KVM_SET_CLOCK with what KVM_GET_CLOCK would have given by the raw clock
    abi::kvm_clock_data data{};
    data.clock = handed.saved.system_time + 5'000'000'197;
    ASSERT_TRUE(sampled.vm->set_clock(data));
    EXPECT_EQ(moved(sampled), -4801);
}

TEST(ClockGuest, GoesToAnotherHostAsAFunctionOfTheGuestsTsc) {
    Scaled source;
    const std::uint64_t stopped = source.vm->guest_tsc(0);
    Bed there{with_handover(time::kVmxFracBits), 2'400'000, 1'000'000};
    for (unsigned i = 0; i < 2; ++i)
        ASSERT_TRUE(there.vm->set_tsc_offset(i, 1ULL << 50));
    there.enter_all();
    // 2.4 GHz gives exactly 10^6 * 2^48 / 2.4e6: its page is for 999 999 kHz as well.
    ASSERT_TRUE(there.vm->set_clock_guest(0, source.saved)) << "a new line, through its sample";
    there.enter_all();
    const auto at = time::Count<time::GuestCounter>::from_raw(there.vm->guest_tsc(0));
    EXPECT_GT(at.raw(), stopped);
    EXPECT_EQ(there.clock_at(1, at.raw()), abi::pvclock_line(source.saved)->at(at).raw());
}

TEST(ClockGuest, RefusesADamagedPageAndAnotherFrequency) {
    Bed bed{with_handover()};
    bed.enter_all();
    const auto good = *bed.vm->clock_guest(0);
    const auto refused = [&](auto damage) {
        auto page = good;
        damage(page);
        const Status set = bed.vm->set_clock_guest(0, page);
        return set ? 0 : set.error().sys_errno;
    };
    using Page = abi::pvclock_vcpu_time_info;
    EXPECT_EQ(refused([](Page&) {}), 0);
    EXPECT_EQ(refused([](Page& page) { page.tsc_to_system_mul = 0; }), EINVAL);
    EXPECT_EQ(refused([](Page& page) { page.pad[1] = 1; }), EINVAL);
    EXPECT_EQ(refused([](Page& page) { page.pad0 = 1; }), EINVAL);
    EXPECT_EQ(refused([](Page& page) { page.tsc_shift = 33; }), EINVAL);
    EXPECT_EQ(refused([](Page& page) { page.tsc_shift = -33; }), EINVAL);
    EXPECT_EQ(refused([](Page& page) { page.tsc_shift = 1; }), ERANGE);
    // mul 2^31 is 2 GHz to the Hz; mul 2^31 + 1073 is 999.3 Hz less, 2^31 + 1075 is 1001.2 Hz less.
    EXPECT_EQ(refused([](Page& page) { page.tsc_to_system_mul += 1073; }), 0);
    EXPECT_EQ(refused([](Page& page) { page.tsc_to_system_mul += 1075; }), ERANGE);
}

TEST(TscScale, IsTheRatioInForce) {
    Bed scaled{with_handover(time::kSvmFracBits), 3'000'000, 1'500'000};
    const auto half = scaled.vm->tsc_scale(1);
    ASSERT_TRUE(half);
    EXPECT_EQ(half->tsc_ratio, 0x8000'0000U);  // 2^32 * 1.5 / 3
    EXPECT_EQ(half->tsc_frac_bits, 32U);
    Bed whole{with_handover(time::kVmxFracBits)};
    EXPECT_EQ(whole.vm->tsc_scale(0)->tsc_ratio, 1ULL << 48);
    EXPECT_EQ(whole.vm->tsc_scale(0)->tsc_frac_bits, 48U);
    Bed none{with_handover()};
    EXPECT_EQ(none.vm->tsc_scale(0).error().sys_errno, ENXIO);
}

}  // namespace
}  // namespace continuo::model
