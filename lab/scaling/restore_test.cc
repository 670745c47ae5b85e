// A guest that another host ran at its own frequency, restored here by its multiplier: the plan's
// line against what KVM gave the processor, what the guest reads, and the page that it computes
// kvmclock from.
#include <fmt/format.h>

#include <algorithm>

#include "continuo/abi/pvclock.h"
#include "move.h"

namespace continuo::scaling {
namespace {

constexpr std::size_t kVcpus = 2;
constexpr std::uint64_t kGapNs = 2'500'000'000;
constexpr int kReads = 16;

/// What Linux computes, in its own order: mul_u64_u32_div() of 2^48, and the identity where
/// adjust_tsc_khz() allows it.
std::uint64_t ratio_of_kernel(std::uint32_t guest_khz, std::uint32_t host_khz) {
    const std::uint64_t host = host_khz;
    if (guest_khz >= host * 999'750 / 1'000'000 && guest_khz <= host * 1'000'250 / 1'000'000)
        return std::uint64_t{1} << 48;
    return static_cast<std::uint64_t>((static_cast<time::u128>(guest_khz) << 48) / host);
}

class Restore : public ScalingHost {
  protected:
    Moved moved(std::uint32_t khz, state::Policy policy) {
        const auto here = kvm::tai_anchor(host().frequency());
        EXPECT_TRUE(here) << here.error().message();
        const auto record = record_from_elsewhere(*Hz::from_khz(khz), *here, kGapNs, kVcpus);
        auto moved = move_here(system(), report(), record, policy);
        EXPECT_TRUE(moved) << (moved ? "" : moved.error());
        recorded_ = record;
        return moved ? std::move(*moved) : Moved{};
    }

    /// 0 ticks: the multiplier and offset that the processor has are those of the plan.
    void expect_realised_exactly(Moved& moved, std::uint32_t khz) {
        for (std::size_t i = 0; i < kVcpus; ++i) {
            const TscMap& map = moved.plan.tsc[i].map;
            const auto now = in_force(moved.guest->probe().vm(), static_cast<std::uint32_t>(i));
            ASSERT_TRUE(now) << now.error().message();
            EXPECT_EQ(now->frac_bits, 48u);
            EXPECT_EQ(now->ratio, ratio_of_kernel(khz, host_khz()));
            EXPECT_EQ(now->offset, map.offset());
            const std::uint64_t planned = map.scales() ? map.ratio() : std::uint64_t{1} << 48;
            EXPECT_EQ(now->ratio, planned);
            EXPECT_EQ(moved.applied.maps[i], map);
            const auto resume = moved.plan.resume_at;
            EXPECT_EQ(now->map().at(resume), moved.plan.tsc[i].at_resume);
        }
    }

    /// The widest bracket that held, in ticks of the host.
    void expect_guest_reads_its_line(Moved& moved, std::uint64_t& widest) {
        for (int i = 0; i < kReads; ++i) {
            const std::size_t vcpu = static_cast<std::size_t>(i) % kVcpus;
            const auto read = moved.guest->probe().guest_rdtsc(vcpu);
            ASSERT_TRUE(read) << read.error().message();
            EXPECT_TRUE(inside(moved.plan.tsc[vcpu].map, *read));
            widest = std::max(widest, (read->after - read->before).magnitude());
        }
    }

    /// The guest's page has the factors that the plan predicted, and the line to a ns.
    void expect_page_as_planned(Moved& moved, std::uint32_t khz, std::uint64_t& seam) {
        ASSERT_TRUE(moved.plan.kvmclock);
        const PvclockLine& planned = moved.plan.kvmclock->line;
        const std::uint64_t effective_khz = static_cast<std::uint64_t>(
            (static_cast<time::u128>(host_khz()) * ratio_of_kernel(khz, host_khz())) >> 48);
        const auto scale = time::PvclockScale::from_hz(*Hz::from_khz(effective_khz));
        for (std::size_t i = 0; i < kVcpus; ++i) {
            const auto page = moved.guest->page(i);
            ASSERT_TRUE(page) << page.error().message();
            EXPECT_EQ(page->scale().mul(), planned.scale().mul());
            EXPECT_EQ(page->scale().shift(), planned.scale().shift());
            EXPECT_EQ(page->scale().mul(), scale.mul());
            EXPECT_EQ(page->scale().shift(), scale.shift());
            const auto read = moved.guest->probe().guest_rdtsc(i);
            ASSERT_TRUE(read) << read.error().message();
            const std::uint64_t off = (page->at(read->value) - planned.at(read->value)).magnitude();
            // The seam's 1 ns, and the floors of two lines with different anchors.
            EXPECT_LE(off, 2u);
            seam = std::max(seam, off);
        }
        for (const auto& clock : moved.certificate.clocks) {
            const std::int64_t allowed = clock.clock == state::ClockKind::kKvmclock ? 1 : 0;
            EXPECT_LE(std::abs(clock.seam), allowed) << state::name(clock.clock);
        }
        EXPECT_TRUE(moved.certificate.holds());
    }

    /// The value at the resume instant, by the policy.
    void expect_policy_kept(const Moved& moved, std::uint32_t khz) {
        const Count<GuestCounter> stopped = recorded_.vcpus.front().counter;
        const std::int64_t passed = (moved.plan.tsc.front().at_resume - stopped).raw();
        if (state::freezes(moved.plan.policy)) {
            EXPECT_EQ(passed, 0);
            return;
        }
        const auto gap_ticks = static_cast<std::int64_t>(
            static_cast<time::u128>(moved.plan.gap.raw()) * khz / 1'000'000);
        EXPECT_GE(moved.plan.gap.raw(), static_cast<std::int64_t>(kGapNs));
        // The floor of the gap at the anchor, and what the multiplier makes of the rest.
        EXPECT_LE(std::abs(passed - gap_ticks), 2);
    }

    state::Record recorded_;
};

TEST_F(Restore, EveryFrequencyIsRealisedToTheBit) {
    for (const std::uint32_t khz : guest_frequencies(host_khz())) {
        for (const state::Policy policy : {state::Policy::kAdvance, state::Policy::kFreeze}) {
            SCOPED_TRACE(fmt::format("{} kHz, {}", khz, state::name(policy)));
            Moved moved = this->moved(khz, policy);
            ASSERT_TRUE(moved.guest);
            std::uint64_t widest = 0;
            std::uint64_t page_off = 0;
            expect_realised_exactly(moved, khz);
            expect_guest_reads_its_line(moved, widest);
            expect_page_as_planned(moved, khz, page_off);
            expect_policy_kept(moved, khz);
            if (HasFatalFailure()) return;
            const auto scale = moved.plan.kvmclock->line.scale();
            figure(fmt::format(
                "restore {:>7} kHz on {} kHz, {:<7}: multiplier {:#015x}/2^48, TSC seam 0 ticks, "
                "{} guest reads in brackets of <= {} ticks; kvmclock seam {} ns, {} rounds; page "
                "mul {:#x} shift {} as planned, off {} ns",
                khz, host_khz(), state::name(policy), ratio_of_kernel(khz, host_khz()), kReads,
                widest, moved.applied.trim.residual_ns, moved.applied.trim.rounds, scale.mul(),
                scale.shift(), page_off));
        }
    }
}

TEST_F(Restore, ApplyingThePlanTwiceChangesNothing) {
    Moved moved = this->moved(1'000'000, state::Policy::kFreeze);
    ASSERT_TRUE(moved.guest);
    const auto first = in_force(moved.guest->probe().vm(), 0);
    const auto again = machine::apply(moved.guest->machine(), moved.plan);
    ASSERT_TRUE(again) << again.error().message();
    const auto second = in_force(moved.guest->probe().vm(), 0);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(*first, *second);
    EXPECT_EQ(again->maps, moved.applied.maps);
    EXPECT_TRUE(again->trim.converged);
}

TEST_F(Restore, AMultiplierThatTheProcessorDoesNotHaveIsRefused) {
    const auto here = kvm::tai_anchor(host().frequency());
    ASSERT_TRUE(here);
    auto record = record_from_elsewhere(*Hz::from_khz(1'000'000), *here, kGapNs, 1);
    // 16 bits before the point: 65536 times this host's frequency does not fit 32 bits of kHz, so
    // what can be asked for is the other end, a ratio of zero.
    record.vcpus.front().frequency = *Hz::from_hz(999);
    const auto moved = move_here(system(), report(), record, state::Policy::kFreeze);
    ASSERT_FALSE(moved);
    EXPECT_NE(moved.error().find("kHz"), std::string::npos) << moved.error();
}

}  // namespace
}  // namespace continuo::scaling
