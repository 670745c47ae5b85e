// Frequencies: which are had how, what a scaled guest's clocks do between two samples of the
// masterclock, and the catch-up of hosts that do not scale. The figures of the tables are those of
// docs/kernel-facts.md, seen on kernels and planned by the planner.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "kvm_test_vm.h"
#include "time_scale.h"

namespace continuo::model {
namespace {

struct KhzCase {
    std::uint32_t khz;
    bool taken;
    std::uint64_t ratio;  // of 2^48; 1: unscaled
};

TEST(KvmScaling, WhichFrequenciesAScalingHostGives) {
    // floor(2'000'000 * 0.999750) = 1'999'500 and floor(2'000'000 * 1.000250) = 2'000'500 kHz are
    // the ends of the tolerance, both in it.
    const KhzCase cases[] = {
        {0, true, 1},  // the host's own
        {1'999'500, true, 1},
        {2'000'500, true, 1},
        {1'999'499, true, 281'404'467'228'989},  // floor(2^48 * 1'999'499 / 2'000'000)
        {2'000'501, true, 281'545'486'192'322},  // floor(2^48 * 2'000'501 / 2'000'000)
        {1'000'000, true, 1ULL << 47},
        {1, true, 140'737'488},                        // floor(2^48 / 2'000'000)
        {0x7fff'fffe, true, 302'231'454'622'182'316},  // the largest: below 2^31 - 1
        {0x7fff'ffff, false, 0},
    };
    for (const KhzCase& test : cases) {
        KvmTestVm bed{kLinux612.with_scaling(48)};
        EXPECT_EQ(bed.vm.set_tsc_khz(0, test.khz).has_value(), test.taken) << test.khz;
        if (!test.taken) continue;
        EXPECT_EQ(bed.vm.tsc_map(0).ratio(), test.ratio) << test.khz;
        EXPECT_EQ(bed.vm.tsc_khz(0), test.khz != 0 ? test.khz : kBedKhz);
    }
}

// SVM's multiplier has 8 bits before the point: 255.99 times the host's, and no more.
TEST(KvmScaling, SvmsLargestFrequency) {
    KvmTestVm bed{kLinux612.with_scaling(32), 1, 1'000'000};
    // (1'000'000 * (2^40 - 1)) >> 32 = 255'999'999, and that is refused as the limit itself.
    EXPECT_FALSE(bed.vm.set_tsc_khz(0, 255'999'999));
    EXPECT_EQ(bed.vm.tsc_khz(0), 1'000'000U);  // refused before it was looked at
    EXPECT_TRUE(bed.vm.set_tsc_khz(0, 255'999'998));
    // floor(2^32 * 255.999998)
    EXPECT_EQ(bed.vm.tsc_map(0).ratio(), 1'099'511'619'186U);
    EXPECT_EQ(bed.vm.tsc_map(0).frac_bits(), 32);
}

TEST(KvmScaling, TheOffsetStaysAndTheCounterJumps) {
    KvmTestVm bed{kLinux612.with_scaling(48)};
    ASSERT_TRUE(bed.vm.set_tsc_offset(0, 50));
    ASSERT_TRUE(bed.vm.set_tsc_khz(0, 1'000'000));
    EXPECT_EQ(bed.offset(0), 50U);
    EXPECT_EQ(bed.vm.guest_tsc(0), bed.host.counter / 2 + 50);
}

TEST(KvmScaling, TheVmsFrequencyIsForTheVcpusToCome) {
    KvmTestVm bed{kLinux612.with_scaling(48)};
    ASSERT_TRUE(bed.vm.set_vm_tsc_khz(1'000'000));
    EXPECT_EQ(bed.vm.tsc_khz(0), kBedKhz);
    ASSERT_TRUE(bed.vm.create_vcpu());
    EXPECT_EQ(bed.vm.tsc_khz(2), 1'000'000U);
    // Of another frequency: a generation of its own, from 0.
    EXPECT_EQ(bed.vm.guest_tsc(2), 0U);
    EXPECT_EQ(bed.vm.generation(), 2U);
    KvmTestVm newer{kLinux72.with_scaling(48)};
    EXPECT_FALSE(newer.vm.set_vm_tsc_khz(1'000'000));
    KvmTestVm empty{kLinux72.with_scaling(48), 0};
    EXPECT_TRUE(empty.vm.set_vm_tsc_khz(0));
    EXPECT_EQ(empty.vm.vm_tsc_khz(), kBedKhz);
}

// An update of the masterclock that nobody needs: how far it moves kvmclock, ns.
std::int64_t sample_moves(KvmTestVm& bed) {
    const std::uint64_t before = bed.guest_clock(0);
    bed.exit_all();
    // Before 6.7 the same offset again asks for one.
    EXPECT_TRUE(bed.vm.set_tsc_offset(0, bed.offset(0)));
    bed.enter_all();
    EXPECT_TRUE(bed.vm.masterclock());
    return static_cast<std::int64_t>(bed.guest_clock(0) - before);
}

/// Two vCPUs of another frequency than their host's, under 6.1, and their guest has booted.
struct ScaledBed : KvmTestVm {
    ScaledBed(std::uint32_t host_khz, std::uint32_t guest_khz)
        : KvmTestVm{kLinux61.with_scaling(48), 0, host_khz} {
        EXPECT_TRUE(vm.set_vm_tsc_khz(guest_khz));
        for (int i = 0; i < 2; ++i)
            EXPECT_TRUE(vm.create_vcpu());
        boot();
    }
};

struct SlopeCase {
    std::uint32_t guest_khz;
    std::int64_t slope;     // of kvmclock against the host's stated kHz, 10^-3 ppt
    std::int64_t seen_ppt;  // the same over 20 s, to a ns: 50 ppt
    std::int64_t moves_ns;  // at the sample that follows 20 s after the last, planned
};

// Host 3 499 912 kHz. The page's factors come from whole effective kHz: 1 000 000 kHz is a ratio of
// floor(2^48 * 1 000 000 / 3 499 912), and 3 499 912 * ratio >> 48 = 999 999: kvmclock is 1.000 001
// ppm fast, less 226 ppt for the truncation of mul: +999 774.777 ppt. The raw clock that a sample
// puts it back onto is Linux's: mult 4 793 611 / 2^24, +39 472 ppt (seen: +39 499). Their
// difference over 20.001 s is what the sample takes back: -(999 775 - 39 472) * 20.001e-3 =
// -19 207 ns.
TEST(KvmScaling, SlopesAndSamplesAreThoseThatWereSeenAndPlanned) {
    const SlopeCase cases[] = {
        {1'000'000, 999'774'777, 999'762, -19'207}, {1'749'956, -49'905, 0, 791},
        {2'400'000, 416'487'453, 416'522, -7'540},  {3'503'411, 285'278'835, 285'295, -4'916},
        {5'000'000, 199'710'483, 199'698, -3'204},
    };
    for (const SlopeCase& test : cases) {
        ScaledBed bed{3'499'912, test.guest_khz};
        // Over 10^6 s 1 ns is 10^-3 ppt.
        const std::uint64_t start = bed.guest_clock(0);
        const std::uint64_t counter = bed.host.counter;
        bed.host.counter += 3'499'912ULL * 1'000 * 1'000'000;
        const auto fast =
            static_cast<std::int64_t>(bed.guest_clock(0) - start - 1'000'000ULL * 1'000'000'000);
        EXPECT_LE(std::abs(fast - test.slope), 2) << test.guest_khz << ": " << fast;
        EXPECT_LE(std::abs(fast / 1000 - test.seen_ppt), 50) << test.guest_khz;
        bed.host.counter = counter;
        bed.host.sleep_ns(20'001'000'000);
        const std::int64_t moved = sample_moves(bed);
        EXPECT_LE(std::abs(moved - test.moves_ns), 1) << test.guest_khz << ": " << moved;
    }
}

// Host 3 499 911 kHz, a sample 5 s after the last. Linux's raw clock is 37.5 ppb slow of those kHz
// (mult 4 793 612 / 2^24), so unscaled -187 ns; at half the effective 1 749 954 kHz of 1 749 955
// add 571 ppb, at 1 GHz one ppm, at 5 GHz 200 ppb.
TEST(KvmScaling, ASampleFiveSecondsLaterMovesKvmclock) {
    const std::pair<std::uint32_t, std::int64_t> cases[] = {
        {3'499'911, -187}, {1'749'955, -3'046}, {1'000'000, -5'186}, {5'000'000, -1'188}};
    for (const auto& [khz, moves_ns] : cases) {
        ScaledBed bed{3'499'911, khz};
        bed.host.sleep_ns(5'000'000'000);
        const std::int64_t moved = sample_moves(bed);
        EXPECT_LE(std::abs(moved - moves_ns), 2) << khz << ": " << moved;
    }
}

// Linux's choice of mult and shift, by the sum in its comment: the shift is the largest of which
// mult still has 23 bits (600 s of ticks have 41, and 41 + 23 = 64).
TEST(KvmScaling, TheRawClockIsLinuxsLine) {
    const KernelLine line = KernelLine::of_khz(3'499'912);
    EXPECT_EQ(line.mult, 4'793'611U);
    EXPECT_EQ(line.shift, 24U);
    EXPECT_EQ(KernelLine::of_khz(2'000'000).mult, 1U << 22);  // exact
    // Carried on from another counter value it is the same line, to the fraction.
    const KernelLine moved = line.moved_to(123'456'789'013);
    for (const std::uint64_t tsc : {123'456'789'013ULL, 123'456'789'014ULL, 999'999'999'999ULL})
        EXPECT_EQ(moved.at(tsc), line.at(tsc));
}

/// Relative error of a scale in units of 2^-40, exact to the floor; the rates fit 43 bits.
time::i128 scale_error(PvclockScale scale, std::uint64_t scaled_hz, std::uint64_t base_hz) {
    time::i128 got = static_cast<time::i128>(scale.mul()) * static_cast<time::i128>(base_hz);
    time::i128 wanted = static_cast<time::i128>(scaled_hz) << 32;
    if (scale.shift() >= 0)
        got <<= scale.shift();
    else
        wanted <<= -scale.shift();
    return (got - wanted) / (wanted >> 40);
}

// kvm_get_time_scale() both ways round, within what it says of itself; for pages it is
// PvclockScale::from_hz().
TEST(KvmScaling, AScaleIsWithinItsTruncations) {
    Random random{7};
    for (int i = 0; i < 20'000; ++i) {
        const auto khz = static_cast<std::uint64_t>(1 + random.of_any_size(0x7fff'fffe));
        const std::uint64_t hz = khz * 1000;
        const PvclockScale ticks = time_scale(hz, time::kNanosPerSecond);
        const time::i128 ticks_error = scale_error(ticks, hz, time::kNanosPerSecond);
        const time::i128 fast = (time::i128{1} << 40) / static_cast<time::i128>(hz) + 1;
        ASSERT_TRUE(ticks_error <= fast && ticks_error >= -(1 << 10)) << khz;
        if (khz > 16'000'000) continue;
        const PvclockScale nanos = time_scale(time::kNanosPerSecond, hz);
        const time::i128 nanos_error = scale_error(nanos, time::kNanosPerSecond, hz);
        ASSERT_TRUE(nanos_error <= 0 && nanos_error >= -(1 << 9)) << khz;
        ASSERT_EQ(nanos, PvclockScale::from_hz(*time::Hz::from_khz(khz))) << khz;
    }
}

// Between two samples a page is the kernel's raw clock but for the kHz and the truncations: one
// effective kHz, Linux's own 2^-22, mul's 2^-31.
TEST(KvmScaling, APageFollowsTheRawClockWithinWhatIsTruncated) {
    Random random{8};
    for (int i = 0; i < 300; ++i) {
        const auto host_khz = static_cast<std::uint32_t>(random.between(800'000, 5'000'000));
        const auto guest_khz = static_cast<std::uint32_t>(random.between(800'000, 5'000'000));
        ScaledBed bed{host_khz, guest_khz};
        const auto raw_now = [&] { return bed.host.base_ns(bed.host.counter); };
        const std::int64_t raw = raw_now();
        const std::uint64_t clock = bed.guest_clock(0);
        bed.host.counter += static_cast<std::uint64_t>(random.of_any_size(1LL << 45));
        const std::int64_t passed = raw_now() - raw;
        const auto off = static_cast<std::int64_t>(bed.guest_clock(0) - clock) - passed;
        const std::int64_t effective_khz =
            std::int64_t{std::min(host_khz, guest_khz)} - 1;  // a lower bound
        const std::int64_t allowed = passed / effective_khz + (passed >> 22) + (passed >> 31) + 3;
        ASSERT_LE(std::abs(off), allowed) << host_khz << " " << guest_khz << " " << passed;
        ASSERT_EQ(bed.guest_clock(0), bed.guest_clock(1));
    }
}

// Up to 6.1 KVM goes by the kHz of the moment when it was loaded: 3 499 912 instead of the refined
// 3 499 911 is -285 721 ppt, 1 / 3 499 912.
TEST(KvmScaling, OldKernelsPublishTheKhzOfTheirLoad) {
    for (const KernelRules& rules : {kLinux61, kLinux612}) {
        KvmTestVm bed{rules, 1, 3'499'911};
        bed.host.khz_at_load.fill(3'499'912);
        bed.boot();
        const std::uint64_t start = bed.guest_clock(0);
        bed.host.counter += 3'499'911ULL * 1'000 * 1'000;
        const auto fast =
            static_cast<std::int64_t>(bed.guest_clock(0) - start - 1'000ULL * 1'000'000'000);
        // Over 1000 s 1 ppb is 1000 ns; mul's truncation is below 466 ns.
        EXPECT_LE(std::abs(fast - (rules.cpu_khz_at_load ? -285'721 : 0)), 466);
        // And so does KVM_GET_CLOCK, of the same kHz.
        EXPECT_EQ(bed.vm.get_clock().clock, bed.guest_clock(0));
    }
}

// A CPU whose TSC follows its frequency: the page of a vCPU on it is for its kHz of now.
TEST(KvmScaling, AChangeOfACpusFrequencyIsInThePagesOfItsVcpus) {
    KvmTestVm bed;
    bed.host.is_constant_tsc = false;
    bed.host.is_tsc_clocksource = false;
    bed.vm.vcpu_migrated(1, 1);
    bed.boot();
    ASSERT_EQ(bed.vm.page(0).tsc_to_system_mul, 1U << 31);
    bed.host.khz_at_load[0] = 2 * kBedKhz;
    bed.vm.cpu_frequency_changed(0, true);
    EXPECT_FALSE(bed.vm.in_guest(0));
    EXPECT_TRUE(bed.vm.in_guest(1));
    bed.enter_all();
    // 4 GHz: half of 2 GHz' scale, by the shift.
    EXPECT_EQ(bed.vm.page(0).tsc_to_system_mul, 1U << 31);
    EXPECT_EQ(bed.vm.page(0).tsc_shift, -1);
    EXPECT_EQ(bed.vm.page(1).tsc_shift, 0);
    bed.host.khz_at_load[0] = kBedKhz;
    bed.vm.cpu_frequency_changed(0, false);
    EXPECT_TRUE(bed.vm.in_guest(0));
    EXPECT_EQ(bed.vm.pending(0), kClockUpdate);
}

// A guest's frequency below one effective kHz, floor(2^48 / 3 499 912) * 3 499 912 < 2^48: before
// the guard the page of a new vCPU has no scale, and a vCPU that had one never gets in again.
TEST(KvmScaling, AnEffectiveFrequencyBelowOneKhz) {
    for (const KernelRules& rules : {kLinux612, kLinux72}) {
        KvmTestVm test{rules.with_scaling(48), 1, 3'499'912};
        test.enable_pages();
        ASSERT_TRUE(test.vm.set_tsc_khz(0, 1));
        EXPECT_TRUE(test.vm.enter(0));
        // 10^6 ns a tick: 10^9 / (1000 * 2^20) * 2^32, and shift 20.
        EXPECT_EQ(test.vm.page(0).tsc_to_system_mul, rules.at_least_one_khz ? 4'096'000'000U : 0U);
        EXPECT_EQ(test.vm.page(0).tsc_shift, rules.at_least_one_khz ? 20 : 0);
        KvmTestVm other{rules.with_scaling(48), 1, 3'499'912};
        other.boot();
        other.exit_all();
        ASSERT_TRUE(other.vm.set_tsc_khz(0, 1));
        other.set_clock(0);
        EXPECT_EQ(other.vm.enter(0), rules.at_least_one_khz);
    }
}

// Above the host's frequency without scaling KVM says yes. Where there is no masterclock each entry
// brings the counter up to the asked frequency; between two it runs at the host's.
TEST(KvmScaling, CatchUpJumpsAtEveryEntryWithoutAMasterclock) {
    KvmTestVm bed;
    bed.host.is_tsc_clocksource = false;
    ASSERT_TRUE(bed.vm.set_tsc_khz(0, 2'500'000));
    bed.vm.enter(0);
    for (int i = 0; i < 3; ++i) {
        const std::uint64_t entered = bed.vm.guest_tsc(0);
        bed.host.sleep_ns(1'000'000'000);
        EXPECT_EQ(bed.vm.guest_tsc(0), entered + 2'000'000'000);
        bed.vm.exit(0);
        EXPECT_NE(bed.vm.pending(0) & kClockUpdate, 0);
        bed.vm.enter(0);
        EXPECT_EQ(bed.vm.guest_tsc(0), entered + 2'500'000'000);
    }
}

// Under a masterclock the catch-up goes by its sample, and between two samples nothing is caught
// up: the guest asked for 2.5 GHz and gets 2.
TEST(KvmScaling, CatchUpUnderAMasterclockWaitsForItsNextSample) {
    KvmTestVm bed;
    bed.host.sleep_ns(10'000'000'000);
    ASSERT_TRUE(bed.vm.set_tsc_khz(0, 2'500'000));
    bed.boot();
    // From its creation on, at the new frequency: 10 s * 2.5 GHz.
    EXPECT_EQ(bed.vm.guest_tsc(0), 25'000'000'000U);
    bed.host.sleep_ns(4'000'000'000);
    bed.exit_all();
    bed.enter_all();
    EXPECT_EQ(bed.vm.guest_tsc(0), 33'000'000'000U);  // + 4 s * 2 GHz
    bed.exit_all();
    bed.set_clock(0);
    bed.enter_all();
    EXPECT_EQ(bed.vm.guest_tsc(0), 35'000'000'000U);  // 14 s * 2.5 GHz
    EXPECT_FALSE(bed.vm.clock_pairing(0));
    EXPECT_TRUE(bed.vm.clock_pairing(1));
    // The host's own frequency again does not end it.
    bed.exit_all();
    ASSERT_TRUE(bed.vm.set_tsc_khz(0, 0));
    EXPECT_TRUE(bed.vm.vcpu(0).tsc_always_catchup);
}

// A vCPU that is created at a frequency that its host cannot scale to has no multiplier, not even
// one: KVM takes its counter for a constant and its offset for 0, while the guest reads the host's.
// So above the host's frequency, where it is to catch up, and below, where the refusal of
// kvm_set_tsc_khz() is not looked at. Seen on 6.1 and 6.12: the offset of the new vCPU is 0.
TEST(KvmScaling, AVcpuThatIsCreatedAtAnotherFrequencyWithoutScalingHasNoMultiplier) {
    for (const std::uint32_t khz : {kBedKhz + 501, kBedKhz / 2}) {
        KvmTestVm bed{kLinux612, 1};
        ASSERT_TRUE(bed.vm.set_vm_tsc_khz(khz));
        ASSERT_TRUE(bed.vm.create_vcpu());
        EXPECT_EQ(bed.vm.tsc_khz(1), khz);
        EXPECT_EQ(bed.offset(1), 0U);
        EXPECT_EQ(bed.vm.guest_tsc(1), bed.host.counter);
        bed.host.counter += 1'000;
        EXPECT_EQ(bed.vm.host_read_msr(1, abi::kMSR_IA32_TSC), 0U);
        // A written value is its offset, on top of the host's counter.
        bed.write_tsc(1, 1ULL << 40);
        EXPECT_EQ(bed.offset(1), 1ULL << 40);
        // The host's own frequency gives it its multiplier of 1, and the counter runs.
        ASSERT_TRUE(bed.vm.set_tsc_khz(1, 0));
        EXPECT_EQ(bed.vm.host_read_msr(1, abi::kMSR_IA32_TSC), (1ULL << 40) + bed.host.counter);
    }
}

TEST(KvmScaling, CatchUpNeverGoesBack) {
    KvmTestVm bed;
    bed.host.is_tsc_clocksource = false;
    ASSERT_TRUE(bed.vm.set_tsc_khz(0, 2'500'000));
    ASSERT_TRUE(bed.vm.guest_write_msr(0, abi::kMSR_IA32_TSC, 1ULL << 50));
    bed.vm.enter(0);
    EXPECT_EQ(bed.vm.guest_tsc(0), 1ULL << 50);
}

}  // namespace
}  // namespace continuo::model
