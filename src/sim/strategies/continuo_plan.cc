// Continuo's own way, by the code that a VMM links: capture, the record's bytes, the plan, apply in
// a closed loop, verify, and the notice. Planted bugs are put between the stages, where a VMM that
// got a stage wrong would have them.
#include <algorithm>

#include "continuo/machine/migration.h"
#include "continuo/sim/sides.h"
#include "continuo/state/codec.h"
#include "planted.h"
#include "strategies.h"

namespace continuo::sim {

namespace {

using machine::Applied;
using state::Destination;
using state::Plan;
using state::PlanOptions;
using state::Policy;
using state::Record;
using time::Count;
using time::HostCounter;

/// How often a plan whose instant has passed is made again, each time for a later one.
constexpr int kAttemptsMax = 6;
constexpr std::string_view kDoesNotHold = "the certificate does not hold";
/// Two years: what is longer a person should look at.
constexpr std::uint64_t kGapLimitNs = 2ULL * 366 * 86'400 * time::kNanosPerSecond;

Certified certified(const Plan& plan, const state::Certificate& certificate, const Record& record) {
    Certified out;
    out.gap_ns = plan.gap.raw();
    out.gap_bound_ns = plan.gap_bound_ns;
    out.elapsed_by = plan.elapsed_by;
    out.rate = plan.rate;
    out.page_believed = record.kvmclock && record.kvmclock->origin == state::KvmclockOrigin::kPage;
    for (const state::ClockCertificate& clock : certificate.clocks) {
        if (clock.clock == state::ClockKind::kTsc) {
            out.tsc_bound_ticks[*clock.vcpu] = clock.bound.total();
            out.tsc_seam_ticks[*clock.vcpu] = clock.seam;
        } else if (clock.clock == state::ClockKind::kKvmclock) {
            out.kvmclock_bound_ns = clock.bound.total();
            out.kvmclock_seam_ns = clock.seam;
            out.kvmclock_at_resume = clock.realised;
        }
    }
    return out;
}

class ContinuoPlan final : public Strategy {
  public:
    constexpr ContinuoPlan(std::string_view name, std::string_view source, std::string_view about,
                           Policy policy, Told told, bool quiesces = false)
        : Strategy{name,  source,
                   about, state::freezes(policy) ? Promise::kFreezes : Promise::kAdvances,
                   told,  quiesces},
          policy_{policy} {}

    Done save(SourceSide& source, Saved& saved) const override {
        auto record = machine::capture(source.machine());
        if (!record) return Done::failed("capture failed");
        record->notice_sequence = source.world().guest.notice.sequence;
        source.anchored(record->anchor.counter.raw());
        plant_in_record(source, *record);
        source.think(Site::kEncode);
        saved.record = state::encode(*record);
        return {};
    }

    Done restore(DestinationSide& destination, const Saved& saved) const override {
        destination.think(Site::kDecode);
        const auto record = decode(destination.world(), saved.record);
        if (!record) return Done::refused(state::name(record.error().code));
        std::uint64_t lead_ns =
            static_cast<std::uint64_t>(destination.world().scenario.vmm.resume_lead_ns);
        for (int attempt = 1;; ++attempt) {
            const Done done = plan_and_apply(destination, *record, lead_ns);
            const bool again = attempt < kAttemptsMax && done.reason == kDoesNotHold;
            if (!done.ok() && !again) return done;
            const auto left =
                static_cast<std::int64_t>(*destination.resume_at() - destination.host_tsc());
            if (!again && (left > 0 || attempt == kAttemptsMax)) return tell(destination);
            // The thread lost its processor, and the instant has passed: a later one. What was
            // applied is written again, and moves nothing but by the time that passed.
            if (left <= 0) destination.world().reached(Probe::kReplanned);
            if (left <= 0) lead_ns *= 4;
        }
    }

    Done repeat(DestinationSide& destination, const Saved&) const override {
        const auto applied = machine::apply(destination.machine(), *destination.plan());
        return applied ? Done{} : Done::failed("apply failed the second time");
    }

  private:
    static state::Result<Record> decode(World& world, const std::vector<std::byte>& bytes) {
        if (const auto planted = plant_in_bytes(world, bytes)) return state::decode(*planted);
        return state::decode(bytes);
    }

    Done plan_and_apply(DestinationSide& side, const Record& record, std::uint64_t lead_ns) const {
        auto destination = machine::destination_for(side.machine(), record);
        if (!destination) return Done::failed("destination_for failed");
        if (!destination->same_boot) destination->exchange = side.world().exchange;
        plant_in_destination(side, *destination);
        PlanOptions options;
        options.policy = policy_;
        options.gap_limit_ns = kGapLimitNs;
        const auto nanos = time::ExactRatio::ticks_per_nano(destination->anchor.frequency);
        const auto lead = static_cast<time::u128>(lead_ns) * nanos.num() / nanos.den();
        options.resume_at = destination->anchor.counter +
                            time::Ticks<HostCounter>::from_raw(static_cast<std::int64_t>(lead));
        side.think(Site::kPlan);
        auto plan = state::plan(record, *destination, options);
        if (!plan) plan = plant_in_refusal(side.world(), record, *destination, options, plan);
        if (!plan) return Done::refused(state::name(plan.error().front().reason));
        plant_in_plan(side.world(), record, *plan);
        const auto applied = machine::apply(side.machine(), *plan);
        if (!applied) return Done::failed("apply failed");
        const auto certificate = machine::verify(side.machine(), *plan, *applied);
        if (!certificate) return Done::failed("verify failed");
        side.resume_at(plan->resume_at.raw());
        side.certify(certified(*plan, *certificate, record));
        side.keep(std::move(*plan));
        if (side.world().has(Bug::kGetClockHandedBack)) hand_back(side);
        if (certificate->holds()) return {};
        side.world().reached(Probe::kNotTrimmed);
        return Done::failed(kDoesNotHold);
    }

    static void hand_back(DestinationSide& side) {
        abi::kvm_clock_data clock = side.get_clock();
        clock.flags &= abi::kKVM_CLOCK_REALTIME;
        side.set_clock(clock);
    }

    Done tell(DestinationSide& side) const {
        const auto& notice = side.plan()->notice;
        if (notice) {
            std::int64_t delta = notice->delta_realtime.raw();
            if (side.world().has(Bug::kDeltaWithoutLead) && delta != 0)
                delta -= side.world().scenario.vmm.resume_lead_ns;
            side.publish(delta, notice->gap.raw(), notice->sequence);
        } else if (told() == Told::kFixMonotonic) {
            // Nothing holds the guest's reads, as the proposal has no sequence.
            side.publish(0, side.certified()->gap_ns, side.world().guest.notice.sequence);
        }
        return {};
    }

    Policy policy_;
};

const ContinuoPlan kFreeze{"continuo-freeze", "S1.4", "Continuo, policy freeze", Policy::kFreeze,
                           Told::kNothing};
const ContinuoPlan kAdvance{"continuo-advance", "S2", "Continuo, policy advance", Policy::kAdvance,
                            Told::kNothing};
const ContinuoPlan kFreezeNotify{"continuo-freeze-and-notify", "S1.2",
                                 "Continuo, policy freeze-and-notify", Policy::kFreezeAndNotify,
                                 Told::kDelta};
const ContinuoPlan kAdvanceNotify{"continuo-advance-and-notify", "S1.6",
                                  "Continuo, policy advance-and-notify", Policy::kAdvanceAndNotify,
                                  Told::kThatItHappened};
const ContinuoPlan kFixMonotonic{"advance-and-fix-monotonic", "S1.5",
                                 "advance, and the guest takes the gap out of MONOTONIC",
                                 Policy::kAdvance, Told::kFixMonotonic};
const ContinuoPlan kQuiesced{
    "quiesced",       "S1.9",         "the guest suspended to idle first, then moved with advance",
    Policy::kAdvance, Told::kNothing, true};
const ContinuoPlan kForced{"forced", "S1.9",
                           "stopped at an arbitrary instruction, moved with freeze, told nothing",
                           Policy::kFreeze, Told::kNothing};

}  // namespace

std::array<const Strategy*, 7> continuo_strategies() {
    return {&kFreeze,       &kAdvance,  &kFreezeNotify, &kAdvanceNotify,
            &kFixMonotonic, &kQuiesced, &kForced};
}

}  // namespace continuo::sim
