// The rate at which a scaled guest's kvmclock really runs. KVM computes the page's factors from an
// "effective" frequency in whole kHz, and the processor multiplies by a truncated ratio: the plan
// predicts what both do to the clock, and here it runs for long enough to be seen.
#include <fmt/format.h>
#include <time.h>

#include <chrono>
#include <thread>

#include "continuo/kvm/counter.h"
#include "move.h"

namespace continuo::scaling {
namespace {

using time::i128;

constexpr auto kInterval = std::chrono::seconds{20};
/// Two readings of a page or a raw clock, each floored.
constexpr std::uint64_t kRoundingNs = 2;

std::int64_t nanos(i128 ticks, std::uint32_t khz) {
    return static_cast<std::int64_t>(
        time::wrap_u64(time::floor_divide(ticks * 1'000'000, std::uint64_t{khz}).quotient));
}

/// error * length, rounded to the nearest.
std::int64_t drift(time::RateError error, std::int64_t length) {
    const i128 product = error.two_pow_minus_64 * length;
    return static_cast<std::int64_t>((product + (i128{1} << 63)) >> 64);
}

std::int64_t parts_per_trillion(std::int64_t part, std::int64_t whole) {
    return static_cast<std::int64_t>(static_cast<i128>(part) * 1'000'000'000'000 / whole);
}

/// The kernel's raw clock, on which every new sample of KVM's puts kvmclock, and the host's counter
/// around the reading.
struct RawReading {
    Count<HostCounter> before;
    std::uint64_t ns = 0;
    Count<HostCounter> after;
    std::uint64_t width() const { return (after - before).magnitude(); }
};

RawReading read_raw() {
    RawReading best;
    for (int i = 0; i < 9; ++i) {
        RawReading now;
        timespec raw{};
        now.before = kvm::host_counter();
        ::clock_gettime(CLOCK_MONOTONIC_RAW, &raw);
        now.after = kvm::host_counter();
        now.ns = static_cast<std::uint64_t>(raw.tv_sec) * time::kNanosPerSecond +
                 static_cast<std::uint64_t>(raw.tv_nsec);
        if (i == 0 || now.width() < best.width()) best = now;
    }
    return best;
}

/// A guest that runs on, and what its page was at the start.
struct Runner {
    std::uint32_t khz = 0;
    Moved moved;
    PvclockLine page{{}, {}, time::PvclockScale::from_hz(*Hz::from_hz(1))};
    machine::BracketedTsc read;
};

class Slope : public ScalingHost {
  protected:
    void start(Runner& runner, std::uint32_t khz) {
        const auto here = kvm::tai_anchor(host().frequency());
        ASSERT_TRUE(here) << here.error().message();
        const auto record = record_from_elsewhere(*Hz::from_khz(khz), *here, 1'000'000, 1);
        auto moved = move_here(system(), report(), record, state::Policy::kFreeze);
        ASSERT_TRUE(moved) << moved.error();
        runner.khz = khz;
        runner.moved = std::move(*moved);
        const auto page = runner.moved.guest->page(0);
        const auto read = runner.moved.guest->probe().guest_rdtsc_narrow(0);
        ASSERT_TRUE(page && read);
        runner.page = *page;
        runner.read = *read;
    }

    /// raw clock against the nominal frequency, over the interval.
    std::int64_t raw_error(const RawReading& from, const RawReading& to) {
        const std::int64_t nominal = nanos((to.after - from.after).raw(), host_khz());
        return static_cast<std::int64_t>(to.ns - from.ns) - nominal;
    }

    /// What the guest itself reads, its TSC through its page, against the plan's rate.
    void expect_seen_by_guest(Runner& runner) {
        const auto read = runner.moved.guest->probe().guest_rdtsc_narrow(0);
        const auto page = runner.moved.guest->page(0);
        ASSERT_TRUE(read && page);
        EXPECT_EQ(page->tsc_timestamp(), runner.page.tsc_timestamp()) << "the page was renewed";
        const std::int64_t seen = (page->at(read->value) - runner.page.at(runner.read.value)).raw();
        const std::int64_t passed = nanos((read->after - runner.read.after).raw(), host_khz());
        const std::int64_t bracket = nanos(
            (read->after - read->before).raw() + (runner.read.after - runner.read.before).raw(),
            host_khz());
        const std::int64_t predicted = drift(runner.moved.plan.kvmclock->rate_error, passed);
        EXPECT_LE(std::abs(seen - passed - predicted), bracket + 2);
        figure(fmt::format(
            "slope {:>7} kHz: over {} ns kvmclock of the guest ran {} ppt off "
            "(bracket {} ppt); planned {} ppt",
            runner.khz, passed, parts_per_trillion(seen - passed, passed),
            parts_per_trillion(bracket, passed), parts_per_trillion(predicted, passed)));
    }

    /// A new sample puts kvmclock back onto the raw clock: the jump is what the slope had lost.
    void expect_jump(Runner& runner, const RawReading& from, const RawReading& to) {
        ASSERT_OK(runner.moved.guest->resample());
        const auto page = runner.moved.guest->page(0);
        ASSERT_TRUE(page);
        const Count<GuestCounter> at = page->tsc_timestamp();
        const std::int64_t jump = (page->at(at) - runner.page.at(at)).raw();
        const TscMap& map = runner.moved.plan.tsc.front().map;
        const auto guest_ticks = (at - runner.page.tsc_timestamp()).raw();
        const i128 host_ticks = (static_cast<i128>(guest_ticks) << map.frac_bits()) / map.ratio();
        const std::int64_t passed = nanos(host_ticks, host_khz());
        const std::int64_t interval = nanos((to.after - from.after).raw(), host_khz());
        const std::int64_t raw =
            static_cast<std::int64_t>(static_cast<i128>(raw_error(from, to)) * passed / interval);
        const std::int64_t predicted = raw - drift(runner.moved.plan.kvmclock->rate_error, passed);
        const auto unsure =
            static_cast<std::uint64_t>(nanos(from.width() + to.width(), host_khz())) +
            2 * kRoundingNs;
        EXPECT_LE(static_cast<std::uint64_t>(std::abs(jump - predicted)), unsure);
        figure(
            fmt::format("sample {:>7} kHz: {} ns after the last one kvmclock moved by {} ns; "
                        "planned slope says {} (+-{})",
                        runner.khz, passed, jump, predicted, unsure));
    }
};

TEST_F(Slope, IsThePlannedOneOverALongInterval) {
    std::vector<Runner> runners;
    for (const std::uint32_t khz : guest_frequencies(host_khz())) {
        runners.emplace_back();
        start(runners.back(), khz);
        if (HasFatalFailure()) return;
    }
    const RawReading from = read_raw();
    std::this_thread::sleep_for(kInterval);
    for (Runner& runner : runners)
        expect_seen_by_guest(runner);
    const RawReading to = read_raw();
    for (Runner& runner : runners)
        expect_jump(runner, from, to);
    figure(fmt::format(
        "raw clock: {} ppt off the {} kHz that KVM states",
        parts_per_trillion(raw_error(from, to), nanos((to.after - from.after).raw(), host_khz())),
        host_khz()));
}

}  // namespace
}  // namespace continuo::scaling
