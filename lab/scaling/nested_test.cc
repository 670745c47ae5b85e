// A hypervisor that scales, in a guest that is scaled: L2's counter is L1's line after KVM's, and
// KVM gives the processor one multiplier and one offset for both. When L1 is moved, L2 must go with
// it, whatever L1 does not know.
#include <fmt/format.h>

#include <array>

#include "move.h"
#include "nested_vm.h"

namespace continuo::scaling {
namespace {

constexpr std::uint64_t kOne = std::uint64_t{1} << 48;
constexpr std::uint64_t kGapNs = 1'500'000'000;

/// One line for both, as kvm_calc_nested_tsc_multiplier() and _offset() truncate it.
InForce merged(const InForce& l1, const L2Tsc& l2) {
    const auto shifted = [&](std::uint64_t value) {
        return static_cast<std::uint64_t>((static_cast<time::u128>(value) * l2.multiplier) >> 48);
    };
    const bool negative = (l1.offset >> 63) != 0;
    const std::uint64_t offset = negative ? 0 - shifted(0 - l1.offset) : shifted(l1.offset);
    return InForce{shifted(l1.ratio), offset + l2.offset, 48};
}

InForce of(const TscMap& map) {
    return InForce{map.scales() ? map.ratio() : kOne, map.offset(), 48};
}

/// How far KVM's one line may be from the one line after the other: three floors, and a multiplier
/// that lacks less than 2^-48 of every tick of the host.
std::uint64_t merging_ticks(Count<HostCounter> at) {
    return 3 + (at.raw() >> 48);
}

std::int64_t apart(const InForce& both, const InForce& l1, const L2Tsc& l2, Count<HostCounter> at) {
    const std::uint64_t one_after_the_other = l2.at(l1.map().at(at));
    return static_cast<std::int64_t>(both.map().at(at).raw() - one_after_the_other);
}

class Nested : public ScalingHost {
  protected:
    /// Stopped in L2, L1 restored at `khz` from another host.
    void begin(const L2Tsc& l2, std::uint32_t khz) {
        auto vm = NestedVm::create(system(), report(), l2);
        ASSERT_TRUE(vm) << vm.error().message();
        vm_ = std::move(*vm);
        const auto here = kvm::tai_anchor(host().frequency());
        ASSERT_TRUE(here) << here.error().message();
        const auto record = record_from_elsewhere(*Hz::from_khz(khz), *here, kGapNs, 1);
        auto moved = move_to(vm_->machine(), record, state::Policy::kAdvance);
        ASSERT_TRUE(moved) << moved.error();
        l1_ = of(moved->plan.tsc.front().map);
        l2_ = l2;
        expect_stop(Level::kL2);
    }

    /// Runs to the next stop, which must be in `level`, where KVM's line and the counter that was
    /// read there are those of the level.
    void expect_stop(Level level) {
        const auto stop = vm_->run();
        ASSERT_TRUE(stop) << stop.error().message();
        ASSERT_EQ(stop->level, level);
        const auto now = vm_->now_in_force();
        ASSERT_TRUE(now) << now.error().message();
        const InForce wanted = level == Level::kL2 ? merged(l1_, l2_) : l1_;
        EXPECT_EQ(now->ratio, wanted.ratio);
        EXPECT_EQ(now->offset, wanted.offset);
        EXPECT_TRUE(inside(wanted.map(), stop->read));
        bracket_ = (stop->read.after - stop->read.before).magnitude();
        if (level != Level::kL2) return;
        for (const auto at : {stop->read.before, stop->read.after}) {
            apart_ = apart(*now, l1_, l2_, at);
            EXPECT_LE(static_cast<std::uint64_t>(std::abs(apart_)), merging_ticks(at));
        }
    }

    std::unique_ptr<NestedVm> vm_;
    InForce l1_;
    L2Tsc l2_;
    std::uint64_t bracket_ = 0;
    std::int64_t apart_ = 0;
};

const std::array<L2Tsc, 4> kL2{{
    {kOne, 12345},                             // not scaled, as most hypervisors do it
    {kOne / 3, 0 - (std::uint64_t{1} << 40)},  //
    {kOne / 7 * 16, std::uint64_t{1} << 45},   //
    {0xabcd'ef01'2345, 0x7fff'0000'1234},      // no round number in binary
}};

TEST_F(Nested, L2ReadsBothLinesOneAfterTheOther) {
    for (const L2Tsc& l2 : kL2)
        for (const std::uint32_t khz : {1'000'000U, 5'000'000U}) {
            SCOPED_TRACE(fmt::format("L1 {} kHz, L2 {:#x}", khz, l2.multiplier));
            begin(l2, khz);
            if (HasFatalFailure()) return;
            const std::uint64_t l2_bracket = bracket_;
            expect_stop(Level::kL1);
            expect_stop(Level::kL2);
            if (HasFatalFailure()) return;
            const InForce both = merged(l1_, l2_);
            figure(
                fmt::format("nested L1 {:>7} kHz {:#x}, L2 {:#x}: in L2 KVM has {:#x} and its "
                            "offset as computed; L2 and L1 read inside {} ticks; one line for "
                            "both is {} ticks off one after the other",
                            khz, l1_.ratio, l2.multiplier, both.ratio, l2_bracket, apart_));
        }
}

TEST_F(Nested, L2GoesWithL1WhenThatIsMoved) {
    for (const L2Tsc& l2 : {kL2[1], kL2[3]}) {
        begin(l2, 2'400'000);
        if (HasFatalFailure()) return;
        const std::array<std::pair<std::uint32_t, state::Policy>, 4> stations{{
            {1'000'000, state::Policy::kFreeze},
            {5'000'000, state::Policy::kAdvance},
            {host_khz(), state::Policy::kFreeze},
            {2'400'000, state::Policy::kAdvance},
        }};
        for (const auto& [khz, policy] : stations) {
            SCOPED_TRACE(fmt::format("L1 to {} kHz, {}", khz, state::name(policy)));
            auto record = machine::capture(vm_->machine());
            ASSERT_TRUE(record) << record.error().message();
            const auto stop = time::same_boot_counter(record->anchor.counter);
            const InForce before = merged(l1_, l2_);
            const auto state = vm_->save();
            ASSERT_TRUE(state) << state.error().message();
            go_on_at(*record, *Hz::from_khz(khz));

            auto fresh = NestedVm::create(system(), report(), *state);
            ASSERT_TRUE(fresh) << fresh.error().message();
            auto moved = move_to((*fresh)->machine(), *record, policy);
            ASSERT_TRUE(moved) << moved.error();
            EXPECT_TRUE(moved->certificate.holds());
            vm_ = std::move(*fresh);
            l1_ = of(moved->plan.tsc.front().map);
            const auto now = vm_->now_in_force();
            ASSERT_TRUE(now) << now.error().message();
            EXPECT_EQ(*now, merged(l1_, l2_))
                << "it is stopped in L2, and L2's line is new already";

            // Freezing stops both levels; advancing takes L2 as far as L1 went, by L1's ratio to
            // it.
            const auto resume = moved->plan.resume_at;
            const std::uint64_t l2_stopped = before.map().at(stop).raw();
            const auto l2_moved =
                static_cast<std::int64_t>(now->map().at(resume).raw() - l2_stopped);
            const auto l1_moved = moved->plan.tsc.front().advanced.raw();
            const auto wanted = static_cast<std::int64_t>(
                (static_cast<time::i128>(l1_moved) * static_cast<time::i128>(l2_.multiplier)) >>
                48);
            const std::int64_t seam = l2_moved - wanted;
            EXPECT_LE(static_cast<std::uint64_t>(std::abs(seam)), 2 * merging_ticks(resume));
            EXPECT_EQ(l1_moved == 0, state::freezes(policy));

            // It goes on behind the OUT in L2, and that leads to L1 first.
            expect_stop(Level::kL1);
            expect_stop(Level::kL2);
            if (HasFatalFailure()) return;
            figure(
                fmt::format("nested move to {:>7} kHz, {:<7}: L1 {:#x} moved by {} ticks, L2 by "
                            "{} ({} off), L2's line {:#x} in force before its next instruction; "
                            "both read inside {} ticks",
                            khz, state::name(policy), l1_.ratio, l1_moved, l2_moved, seam,
                            merged(l1_, l2_).ratio, bracket_));
        }
    }
}

}  // namespace
}  // namespace continuo::scaling
