#include "continuo/machine/migration.h"
#include "trim.h"

namespace continuo::machine {

namespace {

using state::Certificate;
using state::ClockCertificate;
using state::ClockKind;
using state::Plan;

ClockCertificate certify_tsc(const Plan& plan, const Applied& applied, std::size_t vcpu) {
    const state::PrescribedTsc& prescribed = plan.tsc[vcpu];
    ClockCertificate out;
    out.clock = ClockKind::kTsc;
    out.vcpu = static_cast<std::uint32_t>(vcpu);
    out.unit = "ticks";
    out.prescribed = prescribed.at_resume.raw();
    const Count<GuestCounter> realised = applied.maps[vcpu].at(plan.resume_at);
    out.realised = realised.raw();
    out.seam = (realised - prescribed.at_resume).raw();
    out.seam_bound = applied.map_bound_ticks[vcpu];
    for (const state::BoundTerm& term : prescribed.bound)
        if (term.source == state::BoundSource::kByValueWrite) out.seam_bound += term.size;
    out.bound = prescribed.bound;
    return out;
}

/// kvmclock as the kernel has it now, carried to the resume instant along the prescribed line (the
/// slopes are one).
Result<ClockCertificate> certify_kvmclock(Machine& machine, const Plan& plan,
                                          const Applied& applied) {
    const KvmclockTarget target{plan.kvmclock->line, applied.maps.front()};
    const auto seam = kvmclock_seam(machine, target);
    if (!seam) return tl::unexpected(seam.error());
    ClockCertificate out;
    out.clock = ClockKind::kKvmclock;
    out.unit = "ns";
    out.prescribed = plan.kvmclock->at_resume.raw();
    out.realised = (plan.kvmclock->at_resume + *seam).raw();
    out.seam = seam->raw();
    for (const state::BoundTerm& term : plan.kvmclock->bound)
        if (term.source == state::BoundSource::kTrim ||
            term.source == state::BoundSource::kReadBack)
            out.seam_bound += term.size;
    out.bound = plan.kvmclock->bound;
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
    certificate.rate = plan.rate;
    certificate.tsc_rate_error = plan.tsc_rate_error;
    certificate.resume_at = plan.resume_at.raw();
    certificate.trim = applied.trim;
    certificate.notice = plan.notice;
    certificate.notes = plan.notes;
    certificate.clocks.reserve(plan.tsc.size() + 1);
    for (std::size_t vcpu = 0; vcpu < plan.tsc.size(); ++vcpu)
        certificate.clocks.push_back(certify_tsc(plan, applied, vcpu));
    if (plan.kvmclock) {
        auto kvmclock = certify_kvmclock(machine, plan, applied);
        if (!kvmclock) return tl::unexpected(kvmclock.error());
        certificate.clocks.push_back(*kvmclock);
    }
    return certificate;
}

}  // namespace continuo::machine
