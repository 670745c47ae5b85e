// A guest that is moved again and again, each time to another frequency, slower and faster: what is
// left over of each move must not add up to more than the plans say.
#include <fmt/format.h>

#include <array>
#include <chrono>
#include <thread>

#include "continuo/kvm/counter.h"
#include "move.h"

namespace continuo::scaling {
namespace {

using time::i128;

constexpr int kRounds = 3;
constexpr auto kDwell = std::chrono::milliseconds{100};

std::int64_t floor_mul(std::int64_t length, std::uint64_t num, std::uint64_t den) {
    return static_cast<std::int64_t>(time::wrap_u64(
        time::floor_divide(static_cast<i128>(length) * static_cast<i128>(num), den).quotient));
}

/// Sums over all moves so far.
struct Account {
    std::int64_t true_ns = 0;     ///< by the host's counter, while the guest's clocks ran
    std::int64_t drift_ns = 0;    ///< of it, what the plans say that kvmclock gains
    std::int64_t true_ticks = 0;  ///< at each leg's nominal frequency
    std::int64_t tick_drift = 0;  ///< what the plans say that the multipliers lose
    std::uint64_t bound_ns = 0;   ///< seams and roundings of kvmclock
    std::uint64_t bound_ticks = 0;
};

class Chain : public ScalingHost {
  protected:
    /// The time from the resume instant to `stop`, at the rates of this leg.
    void add_leg(Account& account, const state::Plan& plan, Count<HostCounter> stop,
                 std::uint32_t khz) {
        const std::int64_t host_ticks = (stop - plan.resume_at).raw();
        const std::int64_t ns = floor_mul(host_ticks, 1'000'000, host_khz());
        const std::int64_t ticks = floor_mul(host_ticks, khz, host_khz());
        account.true_ns += ns;
        account.true_ticks += ticks;
        account.drift_ns += signed_drift(plan.kvmclock->rate_error, ns);
        account.tick_drift += signed_drift(plan.tsc_rate_error, ticks);
        // What the plan allows itself, and the floors of both ends and of the sums here.
        account.bound_ns += plan.kvmclock->bound.total() + 2;
        account.bound_ticks += plan.tsc.front().bound.total() + 2;
    }

    static std::int64_t signed_drift(time::RateError error, std::int64_t length) {
        return static_cast<std::int64_t>((error.two_pow_minus_64 * length + (i128{1} << 63)) >> 64);
    }
};

TEST_F(Chain, ErrorsOfManyMovesDoNotAddUp) {
    const std::array<std::uint32_t, 4> stations{1'000'000, 5'000'000, host_khz(), 2'400'000};
    const auto here = kvm::tai_anchor(host().frequency());
    ASSERT_TRUE(here);
    auto record = record_from_elsewhere(host().frequency(), *here, 1'000'000, 1);
    const Count<GuestCounter> counter_at_start = record.vcpus.front().counter;
    const Instant<Kvmclock> clock_at_start = record.kvmclock->line.at(counter_at_start);
    Account account;
    int moves = 0;
    for (int round = 0; round < kRounds; ++round) {
        for (const std::uint32_t khz : stations) {
            SCOPED_TRACE(fmt::format("move {}, to {} kHz", moves + 1, khz));
            go_on_at(record, *Hz::from_khz(khz));
            // Freezing, the guest's clocks run exactly from one resume instant to the next stop.
            auto moved = move_here(system(), report(), record, state::Policy::kFreeze);
            ASSERT_TRUE(moved) << moved.error();
            ++moves;
            EXPECT_TRUE(moved->certificate.holds());
            const auto now = in_force(moved->guest->probe().vm(), 0);
            ASSERT_TRUE(now) << now.error().message();
            EXPECT_EQ(now->map().at(moved->plan.resume_at), record.vcpus.front().counter)
                << "the counter goes on from where it stopped, to the tick";
            std::this_thread::sleep_for(kDwell);
            const auto read = moved->guest->probe().guest_rdtsc(0);
            ASSERT_TRUE(read) << read.error().message();
            EXPECT_TRUE(inside(moved->plan.tsc.front().map, *read));

            auto next = machine::capture(moved->guest->machine());
            ASSERT_TRUE(next) << next.error().message();
            const auto stop = time::same_boot_counter(next->anchor.counter);
            EXPECT_EQ(next->vcpus.front().counter, now->map().at(stop));
            EXPECT_EQ(next->vcpus.front().frequency.floor_khz(), khz);
            add_leg(account, moved->plan, stop, khz);
            record = std::move(*next);

            const Count<GuestCounter> counter = record.vcpus.front().counter;
            const std::int64_t clock_off =
                (record.kvmclock->line.at(counter) - clock_at_start).raw() - account.true_ns;
            const std::int64_t ticks_off = (counter - counter_at_start).raw() - account.true_ticks;
            EXPECT_LE(static_cast<std::uint64_t>(std::abs(clock_off - account.drift_ns)),
                      account.bound_ns);
            EXPECT_LE(static_cast<std::uint64_t>(std::abs(ticks_off - account.tick_drift)),
                      account.bound_ticks);
            figure(fmt::format(
                "chain move {:>2}, {:>7} kHz: after {} ns in all kvmclock is off {} ns, planned "
                "slopes say {} (+-{}); TSC off {} ticks of {}, multipliers say {} (+-{})",
                moves, khz, account.true_ns, clock_off, account.drift_ns, account.bound_ns,
                ticks_off, account.true_ticks, account.tick_drift, account.bound_ticks));
        }
    }
}

}  // namespace
}  // namespace continuo::scaling
