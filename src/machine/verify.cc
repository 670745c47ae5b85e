#include <algorithm>

#include "continuo/machine/migration.h"
#include "trim.h"

namespace continuo::machine {

namespace {

using state::Certificate;
using state::ClockCertificate;
using state::ClockKind;
using state::Plan;

/// What the terms of a bound that belong to the controls here allow a seam to be.
std::uint64_t control_bound(const state::Bound& bound) {
    state::Bound controls;
    for (const state::BoundTerm& term : bound)
        if (term.source == state::BoundSource::kByValueWrite ||
            term.source == state::BoundSource::kTrim ||
            term.source == state::BoundSource::kReadBack)
            controls.add(term.source, term.size);
    return controls.total();
}

std::uint64_t sum(std::uint64_t a, std::uint64_t b) {
    std::uint64_t total = 0;
    return __builtin_add_overflow(a, b, &total) ? ~std::uint64_t{0} : total;
}

/// The vCPU's counter; on arm64 the physical one too, which has the same offset.
ClockCertificate certify_counter(const Plan& plan, const Applied& applied, std::size_t vcpu,
                                 ClockKind counter) {
    const state::PrescribedTsc& prescribed = plan.tsc[vcpu];
    ClockCertificate out;
    out.clock = counter;
    out.vcpu = static_cast<std::uint32_t>(vcpu);
    out.unit = "ticks";
    out.prescribed = prescribed.at_resume.raw();
    const Count<GuestCounter> realised = applied.maps[vcpu].at(plan.resume_at);
    out.realised = realised.raw();
    out.seam = (realised - prescribed.at_resume).raw();
    out.seam_bound = sum(applied.map_bound_ticks[vcpu], control_bound(prescribed.bound));
    out.bound = prescribed.bound;
    return out;
}

/// arm64 has one offset for both counters. By value, and where the physical one was seen not to
/// follow, it is the host's: the plan's notes say so, and nothing is certified of it.
bool moves_physical_counter(const Plan& plan, const HostFacts& facts) {
    return plan.architecture == state::Architecture::kArm64 &&
           !state::has(facts.quirks, state::Quirk::kPhysicalCounterFixed) &&
           std::any_of(plan.writes.begin(), plan.writes.end(), [](const state::Write& write) {
               return write.kind == state::WriteKind::kTscOffset;
           });
}

/// kvmclock as the guest has it now, carried to the resume instant along the prescribed line (the
/// slopes are one). The line is in vCPU 0's ticks, so what that counter is off by is in the seam.
Result<ClockCertificate> certify_kvmclock(Machine& machine, const Plan& plan,
                                          const Applied& applied) {
    const state::PrescribedKvmclock& prescribed = *plan.kvmclock;
    const KvmclockTarget target{prescribed.line, applied.maps.front()};
    const auto off_target = kvmclock_seam(machine, target);
    if (!off_target) return tl::unexpected(off_target.error());
    const Instant<Kvmclock> realised = target.at(plan.resume_at) + *off_target;
    ClockCertificate out;
    out.clock = ClockKind::kKvmclock;
    out.unit = "ns";
    out.prescribed = prescribed.at_resume.raw();
    out.realised = realised.raw();
    out.seam = (realised - prescribed.at_resume).raw();
    // The realised line of the counter may be below the one it was read as.
    const Count<GuestCounter> tsc = target.map.at(plan.resume_at);
    const auto below = time::Ticks<GuestCounter>::from_raw(
        static_cast<std::int64_t>(applied.map_bound_ticks.front()));
    const auto unsure = target.line.at(tsc) - target.line.at(tsc - below);
    out.seam_bound = sum(control_bound(prescribed.bound), unsure.magnitude());
    out.bound = prescribed.bound;
    return out;
}

}  // namespace

Result<Certificate> verify(Machine& machine, const Plan& plan, const Applied& applied) {
    Certificate certificate;
    certificate.policy = plan.policy;
    certificate.elapsed_by = plan.elapsed_by;
    certificate.gap = plan.gap;
    certificate.gap_bound_ns = plan.gap_bound_ns;
    certificate.gap_clamped = plan.gap_clamped;
    certificate.measures = plan.measures;
    certificate.rate = plan.rate;
    certificate.tsc_rate_error = plan.tsc_rate_error;
    certificate.resume_at = plan.resume_at.raw();
    certificate.trim = applied.trim;
    certificate.notes = plan.notes;
    if (applied.notice_published)
        certificate.notice = plan.notice;
    else if (plan.notice)
        certificate.notes.insert(certificate.notes.begin(),
                                 "the guest was NOT told of the gap, as the policy promises: this "
                                 "VMM publishes no notice");
    certificate.clocks.reserve(2 * plan.tsc.size() + 1);
    std::vector<ClockKind> counters{guest_counter(plan.architecture)};
    const auto facts = machine.host_facts();
    if (!facts) return tl::unexpected(facts.error());
    if (moves_physical_counter(plan, *facts)) counters.push_back(ClockKind::kPhysicalCounter);
    for (const ClockKind counter : counters)
        for (std::size_t vcpu = 0; vcpu < plan.tsc.size(); ++vcpu)
            certificate.clocks.push_back(certify_counter(plan, applied, vcpu, counter));
    if (plan.kvmclock) {
        auto kvmclock = certify_kvmclock(machine, plan, applied);
        if (!kvmclock) return tl::unexpected(kvmclock.error());
        certificate.clocks.push_back(*kvmclock);
    }
    return certificate;
}

}  // namespace continuo::machine
