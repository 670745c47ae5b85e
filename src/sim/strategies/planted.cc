#include "planted.h"

#include <xxhash.h>

#include <algorithm>

#include "continuo/time/wide.h"

namespace continuo::sim {

namespace {

using state::Record;
using time::Count;
using time::GuestCounter;
using time::HostCounter;
using time::i128;
using time::Instant;
using time::Kvmclock;

/// Header and hash of a record (docs/formats/record.md).
constexpr std::size_t kLengthAt = 12;
constexpr std::size_t kHashBytes = 8;

void store(std::byte* to, std::uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i)
        to[i] = static_cast<std::byte>(value >> (8 * i));
}

void capture_in_turn(SourceSide& source, Record& record) {
    for (unsigned vcpu = 0; vcpu < record.vcpus.size(); ++vcpu)
        record.vcpus[vcpu].counter = Count<GuestCounter>::from_raw(source.read_tsc(vcpu));
}

void kvmclock_of_now(SourceSide& source, Record& record) {
    if (!record.kvmclock) return;
    const abi::kvm_clock_data later = source.get_clock();
    record.kvmclock->line =
        time::PvclockLine{record.vcpus.front().counter, Instant<Kvmclock>::from_raw(later.clock),
                          record.kvmclock->line.scale()};
}

/// Another offset than the planner's, everywhere in the plan.
void prescribe(state::Plan& plan, state::PrescribedTsc& tsc, std::uint64_t offset) {
    tsc.map = tsc.map.with_offset(offset);
    tsc.at_resume = tsc.map.at(plan.resume_at);
    if (tsc.vcpu == 0 && plan.kvmclock)
        plan.kvmclock->at_resume = plan.kvmclock->line.at(tsc.at_resume);
    for (state::Write& write : plan.writes)
        if (write.kind == state::WriteKind::kTscOffset && write.vcpu == tsc.vcpu)
            write.value = offset;
}

void believe_page(SourceSide& source, Record& record) {
    const auto line = abi::pvclock_line(source.world().vm().page(0));
    if (record.kvmclock && line && line->scale().mul() != 0) record.kvmclock->line = *line;
}

}  // namespace

void plant_in_record(SourceSide& source, Record& record) {
    switch (source.world().bug) {
        case Bug::kSequentialCapture:
            return capture_in_turn(source, record);
        case Bug::kKvmclockAtAnotherTime:
            return kvmclock_of_now(source, record);
        case Bug::kPageTrusted:
            return believe_page(source, record);
        case Bug::kTscAdjustForgotten:
            for (state::VcpuClock& vcpu : record.vcpus)
                vcpu.tsc_adjust = 0;
            return;
        case Bug::kStoppedFlagLost:
            for (state::VcpuClock& vcpu : record.vcpus)
                vcpu.guest_stopped_pending = false;
            return;
        case Bug::kRateTermMissing:
            record.anchor.rate_bound_ppb = 0;
            return;
        case Bug::kClockReadErrorMissing:
            record.anchor.tai_bound_ns = 1;
            return;
        case Bug::kUnsyncIgnored:
            record.anchor.synchronised = true;
            return;
        default:
            return;
    }
}

std::optional<std::vector<std::byte>> plant_in_bytes(const World& world,
                                                     const std::vector<std::byte>& bytes) {
    const bool truncated = world.has(Bug::kTruncatedDecodeAccepted);
    if (!truncated && !world.has(Bug::kIntegrityIgnored)) return std::nullopt;
    std::vector<std::byte> accepted = bytes;
    if (accepted.size() < 2 * kHashBytes + kLengthAt) return std::nullopt;
    if (truncated) {
        std::uint64_t length = 0;
        for (unsigned i = 0; i < 4; ++i)
            length |= std::to_integer<std::uint64_t>(accepted[kLengthAt + i]) << (8 * i);
        accepted.resize(std::min<std::uint64_t>(length, 1U << 20));
    }
    const std::size_t end = accepted.size() - kHashBytes;
    store(accepted.data() + end, XXH3_64bits(accepted.data(), end), kHashBytes);
    return accepted;
}

void plant_in_destination(DestinationSide& side, state::Destination& destination) {
    switch (side.world().bug) {
        case Bug::kRateTermMissing:
            destination.anchor.rate_bound_ppb = 0;
            return;
        case Bug::kClockReadErrorMissing:
            destination.anchor.tai_bound_ns = 1;
            return;
        case Bug::kUnsyncIgnored:
            destination.anchor.synchronised = true;
            return;
        case Bug::kExchangeRoundTripIgnored:
            if (destination.exchange.empty()) return;
            destination.exchange.resize(1);
            destination.exchange.front().heard = destination.exchange.front().asked;
            destination.exchange.front().answered = destination.exchange.front().received;
            return;
        default:
            return;
    }
}

state::PlanResult plant_in_refusal(World& world, const Record& record,
                                   const state::Destination& destination,
                                   const state::PlanOptions& options,
                                   const state::PlanResult& refused) {
    const state::Refusal& first = refused.error().front();
    if (!world.has(Bug::kNegativeGapAccepted) || first.reason != state::RefusalReason::kNegativeGap)
        return refused;
    // A gap that is subtracted without a look at its sign.
    state::PlanOptions clamped = options;
    clamped.clamp_gap = true;
    auto plan = state::plan(record, destination, clamped);
    if (!plan) return plan;
    for (state::PrescribedTsc& tsc : plan->tsc) {
        const auto ticks =
            static_cast<std::uint64_t>(static_cast<time::u128>(first.size) *
                                       plan->guest_frequency.hz() / time::kNanosPerSecond);
        prescribe(*plan, tsc, tsc.map.offset() - ticks);
    }
    return plan;
}

void plant_in_plan(const World& world, const Record& record, state::Plan& plan) {
    if (!world.has(Bug::kHostGuestTickMix) || state::freezes(plan.policy)) return;
    // The published recipe: the gap in guest ticks, and the difference of the hosts' counters,
    // which are host ticks, added to it.
    const i128 gap_ticks = static_cast<i128>(plan.gap.raw()) *
                           static_cast<i128>(plan.guest_frequency.hz()) /
                           static_cast<i128>(time::kNanosPerSecond);
    for (state::PrescribedTsc& tsc : plan.tsc) {
        const auto& saved = record.vcpus[tsc.vcpu];
        if (!saved.tsc_offset) continue;
        const std::uint64_t offset = *saved.tsc_offset + time::wrap_u64(gap_ticks) +
                                     (record.anchor.counter.raw() - plan.resume_at.raw());
        prescribe(plan, tsc, offset);
    }
}

}  // namespace continuo::sim
