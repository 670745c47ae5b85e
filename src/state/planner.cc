#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "continuo/state/error.h"
#include "continuo/state/plan.h"
#include "continuo/time/wide.h"
#include "gap.h"

namespace continuo::state {

namespace {

using time::ExactRatio;
using time::i128;
using time::kNanosPerSecond;
using time::u128;

constexpr std::uint64_t kU64Max = std::numeric_limits<std::uint64_t>::max();
/// Closest that the closed loop brings kvmclock by default, and the rounding of KVM_GET_CLOCK that
/// it sees.
constexpr std::uint64_t kTrimTargetNs = 1;
constexpr std::uint64_t kReadBackNs = 1;

std::uint64_t sat_u64(u128 value) {
    return value > kU64Max ? kU64Max : static_cast<std::uint64_t>(value);
}

std::uint64_t ceil_ticks(std::uint64_t ns, Hz hz) {
    return sat_u64((static_cast<u128>(ns) * hz.hz() + kNanosPerSecond - 1) / kNanosPerSecond);
}

std::uint64_t ceil_nanos(std::uint64_t ticks, Hz hz) {
    return sat_u64((static_cast<u128>(ticks) * kNanosPerSecond + hz.hz() - 1) / hz.hz());
}

Ticks<GuestCounter> floor_ticks(Nanos<Tai> length, Hz hz) {
    const i128 product = static_cast<i128>(length.raw()) * static_cast<i128>(hz.hz());
    return Ticks<GuestCounter>::from_raw(static_cast<std::int64_t>(
        time::wrap_u64(time::floor_divide(product, kNanosPerSecond).quotient)));
}

/// |a - b| / b in whole 10^-9, saturating.
std::uint64_t distance_ppb(std::uint64_t a, std::uint64_t b) {
    const u128 distance = a > b ? a - b : b - a;
    return sat_u64(distance * kNanosPerSecond / b);
}

/// How a vCPU's frequency is met on this host.
struct Rate {
    RateChoice choice{};
    TscMap map{0};        ///< with the multiplier and no offset yet
    RateError tsc_error;  ///< of the realised rate against the nominal one
    Hz page_frequency =
        *Hz::from_hz(1);  ///< what KVM computes the pvclock scale from (effective kHz)
};

class Planner {
  public:
    Planner(const Record& record, const Destination& destination, const PlanOptions& options)
        : record_{record}, destination_{destination}, options_{options} {
        plan_.architecture = record.architecture;
        plan_.policy = options.policy;
        plan_.resume_at = options.resume_at.value_or(destination.anchor.counter);
    }

    PlanResult run() {
        check_shape();
        if (refusals_.empty()) check_identity();
        if (refusals_.empty()) find_gap();
        if (refusals_.empty()) prescribe_tsc();
        if (refusals_.empty()) prescribe_kvmclock();
        if (!refusals_.empty()) return tl::unexpected(std::move(refusals_));
        order_writes();
        add_policy_notes();
        return std::move(plan_);
    }

  private:
    void refuse(ClockKind clock, std::optional<std::uint32_t> vcpu, RefusalReason reason,
                std::uint64_t size, std::string_view unit, std::string message,
                std::string advice) {
        if (clock == ClockKind::kTsc) clock = guest_counter(record_.architecture);
        refusals_.push_back(
            {clock, vcpu, reason, size, unit, std::move(message), std::move(advice)});
    }

    bool lacks(Quirk quirk) const { return has(destination_.quirks, quirk); }

    // -- what must be so before any clock is looked at --

    void check_shape() {
        const std::size_t wanted = record_.vcpus.size();
        if (record_.architecture != destination_.architecture)
            refuse(ClockKind::kTsc, {}, RefusalReason::kArchitecture, wanted, "vcpus",
                   "the destination is of another architecture than the record: none of the "
                   "guest's counters exists there",
                   "Choose a destination of the record's architecture");
        if (wanted == 0)
            refuse(ClockKind::kTsc, {}, RefusalReason::kVcpus, 0, "vcpus", "the record has no vCPU",
                   "Capture a VM that has vCPUs");
        if (destination_.vcpu_count < wanted)
            refuse(ClockKind::kTsc, destination_.vcpu_count, RefusalReason::kVcpus,
                   wanted - destination_.vcpu_count, "vcpus",
                   fmt::format("the record has {} vCPUs and the destination {}: the counters of "
                               "the rest would be lost",
                               wanted, destination_.vcpu_count),
                   "Create the destination VM with as many vCPUs as the record has");
        if (record_.kvmclock && record_.kvmclock->masterclock && !destination_.masterclock)
            refuse_masterclock();
        if (one_counter()) check_one_counter();
    }

    /// KVM on arm64 has one offset for all vCPUs of a VM.
    bool one_counter() const { return record_.architecture == Architecture::kArm64; }

    void check_one_counter() {
        for (std::uint32_t vcpu = 1; vcpu < record_.vcpus.size(); ++vcpu) {
            const VcpuClock& first = record_.vcpus.front();
            const VcpuClock& clock = record_.vcpus[vcpu];
            const Ticks<GuestCounter> apart = clock.counter - first.counter;
            const u128 unsure =
                static_cast<u128>(first.counter_bound_ticks) + clock.counter_bound_ticks;
            if (apart.magnitude() <= unsure) continue;
            refuse(ClockKind::kTsc, vcpu, RefusalReason::kTscUncontrolled, apart.magnitude(),
                   "ticks",
                   fmt::format("vCPU {}'s counter is {} ticks from vCPU 0's, and KVM on arm64 has "
                               "one offset for all vCPUs",
                               vcpu, apart.raw()),
                   "Give all vCPUs of the record one counter, or choose which one is right");
            return;  // the first one tells
        }
    }

    void refuse_masterclock() {
        // 500 ppm is where the kernel's clocksource watchdog calls a TSC unstable; KVM refreshes
        // pages every 300 s.
        constexpr std::uint64_t drift_ns = 500'000ULL * 300;
        refuse(
            ClockKind::kKvmclock, {}, RefusalReason::kNoMasterclock, drift_ns, "ns",
            fmt::format("the guest relies on one kvmclock line for all vCPUs, and the destination "
                        "publishes each vCPU's "
                        "apart: up to {} ns between vCPUs (500 ppm over the 300 s between updates)",
                        drift_ns),
            "Use a host whose clocksource is tsc, with equal TSC offsets on all vCPUs");
    }

    void check_identity() {
        if (!destination_.same_boot) return;
        const auto& here = destination_.identity;
        if (here.known() && record_.source.known() && here.boot_id != record_.source.boot_id)
            refuse(ClockKind::kTsc, {}, RefusalReason::kUnsynchronised, 0, "ns",
                   "the destination is said to be the source's boot, and the boot identities "
                   "differ: the two counters "
                   "have nothing in common",
                   "Set same_boot to false: the gap then goes by TAI");
    }

    // -- the gap --

    void find_gap() {
        auto gap = measure_gap(record_, destination_, options_, plan_.resume_at, plan_.notes);
        if (!gap) {
            GapError& error = gap.error();
            refuse(freezes(plan_.policy) ? ClockKind::kRealtime : ClockKind::kTsc, {}, error.reason,
                   error.size_ns, "ns", std::move(error.message), std::move(error.advice));
            return;
        }
        gap_ = *gap;
        plan_.elapsed_by = gap_.by;
        plan_.gap = gap_.length;
        plan_.gap_bound_ns = gap_.bound_ns;
        plan_.gap_clamped = gap_.clamped;
        plan_.measures = gap_.measures;
    }

    // -- rates --

    std::optional<Rate> choose_rate(std::uint32_t vcpu, Hz guest) {
        const Hz host = destination_.anchor.frequency;
        if (record_.architecture == Architecture::kArm64) return choose_fixed_rate(vcpu, guest);
        constexpr std::uint64_t khz_max = std::numeric_limits<std::uint32_t>::max();
        if (guest.floor_khz() == 0 || host.floor_khz() == 0 || guest.floor_khz() > khz_max ||
            host.floor_khz() > khz_max) {
            refuse_rate(vcpu, guest, "a frequency that KVM cannot express in 32-bit kHz");
            return std::nullopt;
        }
        const auto guest_khz = static_cast<std::uint32_t>(guest.floor_khz());
        const auto host_khz = static_cast<std::uint32_t>(host.floor_khz());
        const auto map = time::kvm_tsc_map(guest_khz, host_khz, destination_.scaling_frac_bits);
        const auto effective = map ? Hz::from_khz(map->wrap_scale(host_khz)) : std::nullopt;
        if (!effective) {
            refuse_rate(vcpu, guest,
                        destination_.scaling_frac_bits
                            ? "the ratio is outside what the host's TSC multiplier takes"
                            : "the host cannot scale a guest's TSC");
            return std::nullopt;
        }
        Rate rate;
        rate.map = *map;
        rate.page_frequency = *effective;
        if (guest_khz != host_khz)
            rate.choice = map->scales() ? RateChoice::kScaled : RateChoice::kTolerated;
        // Realised guest ticks for each host tick, against nominal ones. Equal kHz are one
        // frequency: the Hz below a kHz are not known on either side.
        const ExactRatio wanted = *ExactRatio::make(guest_khz, host_khz);
        rate.tsc_error = time::rate_error(rate.map.slope(), wanted);
        return rate;
    }

    std::optional<Rate> choose_fixed_rate(std::uint32_t vcpu, Hz guest) {
        if (guest == destination_.anchor.frequency) {
            Rate rate;
            rate.page_frequency = guest;
            return rate;
        }
        refuse_rate(vcpu, guest, "CNTFRQ differs, and arm64 has no counter scaling");
        return std::nullopt;
    }

    void refuse_rate(std::uint32_t vcpu, Hz guest, std::string_view why) {
        const std::uint64_t ppb = distance_ppb(destination_.anchor.frequency.hz(), guest.hz());
        refuse(ClockKind::kTsc, vcpu, RefusalReason::kFrequency, ppb, "ppb",
               fmt::format("the guest's counter runs at {} Hz and the host's at {} Hz; {}: it "
                           "would be off by {} ppb, "
                           "{} ms a day",
                           guest.hz(), destination_.anchor.frequency.hz(), why, ppb,
                           sat_u64(static_cast<u128>(ppb) * 86'400 / 1'000'000)),
               "Choose a host within 250 ppm of the guest's frequency, or one with TSC scaling");
    }

    // -- the counters --

    void prescribe_tsc() {
        plan_.tsc.reserve(record_.vcpus.size());
        rate_.reset();
        std::optional<Hz> frequency;
        for (std::uint32_t vcpu = 0; vcpu < record_.vcpus.size(); ++vcpu) {
            const VcpuClock& clock = record_.vcpus[vcpu];
            if (frequency != clock.frequency) {
                rate_ = choose_rate(vcpu, clock.frequency);
                frequency = clock.frequency;
                if (!rate_) return;
                if (vcpu == 0) first_rate_ = *rate_;
                if (vcpu == 0 || rate_->choice > plan_.rate) {
                    plan_.rate = rate_->choice;
                    plan_.tsc_rate_error = rate_->tsc_error;
                }
            }
            // One counter is known as well as vCPU 0's: all go by that.
            plan_.tsc.push_back(
                prescribe(vcpu, one_counter() ? record_.vcpus.front() : clock, *rate_));
            check_control(plan_.tsc.back());
            if (refusals_.size() > 8) return;  // a VM's vCPUs fail alike; the first few tell
        }
        plan_.guest_frequency = record_.vcpus.front().frequency;
        if (plan_.rate != RateChoice::kEqual) note_rate();
    }

    PrescribedTsc prescribe(std::uint32_t vcpu, const VcpuClock& clock, const Rate& rate) const {
        PrescribedTsc out;
        out.vcpu = vcpu;
        out.map = prescribed_map(clock, rate);
        out.at_anchor = out.map.at(destination_.anchor.counter);
        out.at_resume = out.map.at(plan_.resume_at);
        out.advanced = out.at_resume - clock.counter;
        out.bound = tsc_bound(clock, rate);
        return out;
    }

    TscMap prescribed_map(const VcpuClock& clock, const Rate& rate) const {
        if (freezes(plan_.policy)) return rate.map.through(plan_.resume_at, clock.counter);
        // On one boot the source's line simply goes on: no gap is measured, nothing is rounded.
        if (!gap_.converted)
            return rate.map.through(time::same_boot_counter(record_.anchor.counter), clock.counter);
        return rate.map.through(plan_.resume_at,
                                clock.counter + floor_ticks(gap_.length, source_rate(clock)));
    }

    /// Beyond its tolerance KVM scales the guest's counter, or ran it on catch-up.
    bool scaled_on_source(const VcpuClock& clock) const {
        const std::uint64_t guest = clock.frequency.floor_khz();
        const std::uint64_t host = record_.anchor.frequency.floor_khz();
        return record_.architecture == Architecture::kX86_64 && guest != host &&
               !time::within_tsc_tolerance(static_cast<std::uint32_t>(guest),
                                           static_cast<std::uint32_t>(host));
    }

    /// The rate, to the kHz, at which the guest's counter ran on the source: within its tolerance
    /// KVM does not scale, and the guest, its kvmclock and its NTP had the source's own rate.
    Hz source_rate(const VcpuClock& clock) const {
        return scaled_on_source(clock) ? clock.frequency : record_.anchor.frequency;
    }

    Bound tsc_bound(const VcpuClock& clock, const Rate& rate) const {
        const Hz hz = clock.frequency;
        Bound bound;
        bound.add(BoundSource::kCaptureRead, clock.counter_bound_ticks);
        if (!freezes(plan_.policy)) add_gap_terms(bound, clock, rate);
        if (by_value())
            bound.add(BoundSource::kByValueWrite, ceil_ticks(destination_.by_value_bound_ns, hz));
        return bound;
    }

    /// What an advancing counter is off by because the gap is; ticks.
    void add_gap_terms(Bound& bound, const VcpuClock& clock, const Rate& rate) const {
        for (const BoundTerm& term : gap_.clocks)
            bound.add(term.source, ceil_ticks(term.size, source_rate(clock)));
        bound.add(BoundSource::kFrequency, multiplier_bound(clock));
        // One tick for the floor of a converted gap; one for the phase of a multiplier that is not
        // recorded.
        bound.add(BoundSource::kRounding,
                  (gap_.converted ? 1U : 0U) + (rate.map.scales() ? 1U : 0U));
    }

    /// Ticks that a converted gap may be short of because the source's multiplier is truncated: 32
    /// fractional bits at least, so less than 2^-32 of the host's ticks.
    std::uint64_t multiplier_bound(const VcpuClock& clock) const {
        if (!gap_.converted || !scaled_on_source(clock)) return 0;
        const u128 longest = static_cast<u128>(gap_.length.magnitude()) + gap_.bound_ns;
        const Hz lost = *Hz::from_hz((record_.anchor.frequency.hz() >> 32) + 1);
        return ceil_ticks(sat_u64(longest), lost);
    }

    bool offset_works() const {
        return !lacks(Quirk::kNoTscOffset) && !lacks(Quirk::kTscOffsetIgnored);
    }
    bool by_value() const { return !offset_works() && !lacks(Quirk::kTscWriteIgnored); }
    bool nothing_moves_tsc() const { return !offset_works() && lacks(Quirk::kTscWriteIgnored); }

    void check_control(const PrescribedTsc& tsc) {
        if (lacks(Quirk::kNoTscAdjust) && record_.vcpus[tsc.vcpu].tsc_adjust != 0)
            refuse(ClockKind::kTscAdjust, tsc.vcpu, RefusalReason::kTscUncontrolled,
                   Ticks<GuestCounter>::from_raw(record_.vcpus[tsc.vcpu].tsc_adjust).magnitude(),
                   "ticks", "IA32_TSC_ADJUST cannot be written on the destination",
                   "Choose a host whose kernel emulates IA32_TSC_ADJUST");
        if (!nothing_moves_tsc()) return;
        // Nothing moves the TSC: the guest reads the host's counter, which is right only by luck or
        // on one boot.
        if (tsc.map == TscMap{0}) return;
        const Ticks<GuestCounter> off = tsc.at_resume - TscMap{0}.at(plan_.resume_at);
        refuse(ClockKind::kTsc, tsc.vcpu, RefusalReason::kTscUncontrolled, off.magnitude(), "ticks",
               fmt::format("the destination ignores both the TSC offset and writes of IA32_TSC: "
                           "vCPU {} would read {} "
                           "ticks away from its line",
                           tsc.vcpu, off.magnitude()),
               "Run `continuo doctor` there; choose a host whose TSC offset has an effect, or use "
               "policy advance on the "
               "same boot");
    }

    void note_rate() {
        const Hz guest = plan_.guest_frequency;
        const Hz host = destination_.anchor.frequency;
        const std::uint64_t day_ns = 86'400 * kNanosPerSecond;
        plan_.notes.push_back(
            fmt::format("the guest's {} kHz counter runs {} on this {} kHz host: its rate is off "
                        "by at most {} ns a day",
                        guest.floor_khz(),
                        plan_.rate == RateChoice::kScaled ? "scaled" : "unscaled, within 250 ppm,",
                        host.floor_khz(), time::ceil_drift(plan_.tsc_rate_error, day_ns)));
    }

    // -- kvmclock --

    void prescribe_kvmclock() {
        if (!record_.kvmclock) return;
        const KvmclockState& recorded = *record_.kvmclock;
        const PrescribedTsc& tsc = plan_.tsc.front();
        // All policies move kvmclock with the counter, so its line in the guest's own ticks is the
        // recorded one; only a new scale turns it, about the resume instant.
        const PvclockScale scale = PvclockScale::from_hz(first_rate_.page_frequency);
        const Instant<Kvmclock> at_resume = recorded.line.at(tsc.at_resume);
        PrescribedKvmclock out{scale == recorded.line.scale()
                                   ? recorded.line
                                   : PvclockLine{tsc.at_resume, at_resume, scale},
                               {},
                               at_resume,
                               at_resume - recorded.line.at(record_.vcpus.front().counter),
                               kvmclock_rate_error(scale),
                               kvmclock_bound(recorded)};
        out.at_anchor = out.line.at(tsc.at_anchor);
        plan_.kvmclock = out;
        if (scale != recorded.line.scale())
            plan_.notes.push_back(
                fmt::format("kvmclock's scale changes from mul {} shift {} to mul {} shift {}",
                            recorded.line.scale().mul(), recorded.line.scale().shift(), scale.mul(),
                            scale.shift()));
        if (recorded.origin == KvmclockOrigin::kKernel)
            plan_.notes.emplace_back(
                "kvmclock was recorded from the kernel, not from a page of the guest");
    }

    /// kvmclock ns for each true ns: the truncated mul against the frequency that it was computed
    /// from, and that frequency (whole kHz) against the rate at which the guest's counter really
    /// runs.
    RateError kvmclock_rate_error(PvclockScale scale) const {
        const auto page = time::pvclock_rate_error(scale, first_rate_.page_frequency);
        const auto stated =
            ExactRatio::between(destination_.anchor.frequency, first_rate_.page_frequency);
        return time::then(page.value_or(RateError{}),
                          time::rate_error(first_rate_.map.slope(), stated));
    }

    /// ns of the guest's own line for so many of its ticks, rounded up.
    static std::uint64_t ceil_line_ns(std::uint64_t ticks, const KvmclockState& recorded, Hz hz) {
        const auto slope = recorded.line.scale().ratio();
        if (!slope) return ceil_nanos(ticks, hz);  // a scale below 2^-31 ns a tick
        return sat_u64((static_cast<u128>(ticks) * slope->num() + slope->den() - 1) / slope->den());
    }

    /// kvmclock rides on vCPU 0's counter: whatever that is off by, kvmclock is off by.
    Bound kvmclock_bound(const KvmclockState& recorded) const {
        const VcpuClock& clock = record_.vcpus.front();
        Bound counter;
        counter.add(BoundSource::kCaptureRead, clock.counter_bound_ticks);
        if (!freezes(plan_.policy)) add_gap_terms(counter, clock, first_rate_);
        Bound bound;
        bound.add(BoundSource::kCaptureRead, recorded.bound_ns);
        for (const BoundTerm& term : counter)
            bound.add(term.source, ceil_line_ns(term.size, recorded, clock.frequency));
        // One ns for the floor of the line.
        if (counter.of(BoundSource::kRounding) != 0) bound.add(BoundSource::kRounding, 1);
        if (by_value()) bound.add(BoundSource::kByValueWrite, destination_.by_value_bound_ns);
        bound.add(BoundSource::kTrim,
                  gives_clock_triple() ? kTrimTargetNs
                                       : std::max(destination_.by_value_bound_ns, kTrimTargetNs));
        bound.add(BoundSource::kReadBack, kReadBackNs);
        return bound;
    }

    /// KVM_GET_CLOCK says at which counter value it read: only with a masterclock, and vCPUs with
    /// different offsets have none.
    bool gives_clock_triple() const {
        return !lacks(Quirk::kNoClockTriple) && destination_.masterclock &&
               std::all_of(plan_.tsc.begin(), plan_.tsc.end(), [&](const PrescribedTsc& tsc) {
                   return tsc.map == plan_.tsc.front().map;
               });
    }

    // -- writes --

    void order_writes() {
        const std::size_t n = record_.vcpus.size();
        plan_.writes.reserve(4 * n + 2);
        for (std::uint32_t vcpu = 0; vcpu < n; ++vcpu) {
            const VcpuClock& clock = record_.vcpus[vcpu];
            if (clock.frequency.floor_khz() != destination_.anchor.frequency.floor_khz())
                plan_.writes.push_back({WriteKind::kVcpuTscKhz, vcpu, clock.frequency.floor_khz()});
            // Before the counter: the kernels differ in whether this write moves it.
            if (!lacks(Quirk::kNoTscAdjust) && record_.architecture == Architecture::kX86_64)
                plan_.writes.push_back(
                    {WriteKind::kTscAdjust, vcpu, static_cast<std::uint64_t>(clock.tsc_adjust)});
        }
        for (const PrescribedTsc& tsc : plan_.tsc)
            add_tsc_write(tsc);
        if (plan_.kvmclock) plan_.writes.push_back({WriteKind::kKvmclock, 0, 0});
        add_told();
    }

    void add_tsc_write(const PrescribedTsc& tsc) {
        if (offset_works()) {
            plan_.writes.push_back({WriteKind::kTscOffset, tsc.vcpu, tsc.map.offset()});
        } else if (by_value()) {
            plan_.writes.push_back({WriteKind::kTscByValue, tsc.vcpu, tsc.at_resume.raw()});
        }
    }

    void add_told() {
        for (std::uint32_t vcpu = 0; vcpu < record_.vcpus.size(); ++vcpu) {
            const VcpuClock& clock = record_.vcpus[vcpu];
            const bool told = notifies(plan_.policy) || clock.guest_stopped_pending;
            // A vCPU without a page (offline, or a guest without kvmclock) has nowhere to be told
            // in, and KVM_KVMCLOCK_CTRL fails there.
            const bool has_page = (clock.system_time_msr & 1) != 0;
            if (told && has_page && record_.kvmclock && !lacks(Quirk::kNoKvmclockCtrl))
                plan_.writes.push_back({WriteKind::kGuestStopped, vcpu, 0});
        }
        if (!notifies(plan_.policy)) return;
        Notice notice;
        notice.gap = plan_.gap;
        if (freezes(plan_.policy)) notice.delta_realtime = plan_.gap;
        // Never the number that is pending: an answer to that one must fail.
        notice.sequence = (record_.notice_sequence + 1U) | 1U;
        plan_.notice = notice;
        plan_.writes.push_back(
            {WriteKind::kNotice, 0, static_cast<std::uint64_t>(plan_.gap.raw())});
    }

    void add_policy_notes() {
        if (freezes(plan_.policy) && !notifies(plan_.policy))
            plan_.notes.push_back(
                fmt::format("the guest's REALTIME will be {} ns behind until its NTP steps it",
                            plan_.gap.raw()));
        if (!freezes(plan_.policy))
            plan_.notes.push_back(
                fmt::format("the guest's MONOTONIC will count the gap of {} ns", plan_.gap.raw()));
        if (one_counter() && lacks(Quirk::kPhysicalCounterFixed)) note_physical_counter();
        if (by_value()) note_by_value();
    }

    void note_by_value() {
        plan_.notes.push_back(
            one_counter()
                ? fmt::format("CNTVCT goes by value: one write for all vCPUs, which lands within "
                              "{} ns",
                              destination_.by_value_bound_ns)
                : fmt::format("TSC goes by value: each vCPU's write lands within {} ns, and vCPUs "
                              "may differ by that",
                              destination_.by_value_bound_ns));
    }

    void note_physical_counter() {
        const PrescribedTsc& counter = plan_.tsc.front();
        const Ticks<GuestCounter> off = TscMap{0}.at(plan_.resume_at) - counter.at_resume;
        plan_.notes.push_back(
            fmt::format("nothing moves the physical counter there: a guest that reads CNTPCT_EL0 "
                        "sees the host's, {} ticks from its virtual counter",
                        off.raw()));
    }

    const Record& record_;
    const Destination& destination_;
    const PlanOptions& options_;
    Plan plan_;
    Refusals refusals_;
    Gap gap_;
    std::optional<Rate> rate_;
    Rate first_rate_;
};

}  // namespace

void Bound::add(BoundSource source, std::uint64_t size) {
    if (size == 0) return;
    for (std::size_t i = 0; i < count_; ++i) {
        if (terms_[i].source != source) continue;
        if (__builtin_add_overflow(terms_[i].size, size, &terms_[i].size)) terms_[i].size = kU64Max;
        return;
    }
    CONTINUO_CHECK(count_ < kTermsMax);
    terms_[count_++] = {source, size};
}

std::uint64_t Bound::of(BoundSource source) const {
    const auto* found =
        std::find_if(begin(), end(), [&](const BoundTerm& term) { return term.source == source; });
    return found == end() ? 0 : found->size;
}

std::uint64_t Bound::total() const {
    std::uint64_t sum = 0;
    for (const BoundTerm& term : *this)
        if (__builtin_add_overflow(sum, term.size, &sum)) return kU64Max;
    return sum;
}

PlanResult plan(const Record& record, const Destination& destination, const PlanOptions& options) {
    return Planner{record, destination, options}.run();
}

}  // namespace continuo::state
