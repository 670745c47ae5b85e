#include "continuo/kvm/doctor.h"

#include <fmt/format.h>

#include <cstdlib>
#include <thread>

#include "continuo/kvm/counter.h"
#include "examination.h"

namespace continuo::kvm {

std::int64_t outside(const time::TscMap& map, const machine::BracketedTsc& read) {
    const auto above = (read.value - map.at(read.after)).raw();
    const auto below = (map.at(read.before) - read.value).raw();
    if (above > 0) return above;
    return below > 0 ? -below : 0;
}

std::uint64_t width(const machine::BracketedTsc& read) {
    return (read.after - read.before).magnitude();
}

std::int64_t moved(const machine::BracketedTsc& from, const machine::BracketedTsc& to) {
    return (to.value - from.value).raw() - (to.after - from.after).raw();
}

bool near(std::int64_t value, std::int64_t wanted, std::uint64_t tolerance) {
    return static_cast<std::uint64_t>(std::llabs(value - wanted)) <= tolerance;
}

Examination::Examination(const DoctorOptions& options, HostClock host, Clock::time_point started)
    : options_{options}, started_{started} {
    report_.host = std::move(host);
}

void Examination::check(std::string_view id, std::string_view title, std::string_view requirement,
                        const std::function<Result<Finding>()>& run_it) {
    Finding finding;
    if (Clock::now() - started_ > std::chrono::milliseconds{options_.time_limit_ms}) {
        finding = not_run(fmt::format("{} ms were over", options_.time_limit_ms));
    } else if (auto found = run_it()) {
        finding = std::move(*found);
    } else {
        finding = broken(found.error().message(), "this control cannot be used here");
    }
    report_.checks.push_back({id, title, requirement, finding.state, std::move(finding.evidence),
                              std::move(finding.consequence)});
}

CheckState Examination::state_of(std::string_view id) const {
    for (const DoctorCheck& check : report_.checks)
        if (check.id == id) return check.state;
    return CheckState::kNotRun;
}

DoctorReport Examination::finish(state::Quirks quirks, Verdict verdict) && {
    report_.quirks = quirks;
    report_.verdict = verdict;
    const auto took = Clock::now() - started_;
    report_.duration_us = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(took).count());
    return std::move(report_);
}

Result<Finding> look_at_tai(const HostClock& host) {
    const auto anchor = tai_anchor(host.frequency());
    if (!anchor) return tl::unexpected(anchor.error());
    const std::string evidence =
        fmt::format("TAI-UTC {} s, bound {} ns, {}", anchor->tai_offset_sec, anchor->tai_bound_ns,
                    anchor->synchronised ? "synchronised" : "STA_UNSYNC");
    if (anchor->synchronised && anchor->tai_offset_sec != 0) return works(evidence);
    return absent(evidence,
                  anchor->synchronised
                      ? "nobody told the kernel TAI-UTC: a leap second counts as a gap between "
                        "hosts; configure the NTP daemon with the leap-seconds list"
                      : "the gap of a move between hosts cannot be bounded; on one host the "
                        "counter is used instead");
}

Result<Finding> look_at_thread_change(VcpuCore& vcpu, const Examination& seen) {
    if (auto ours = claim_vcpu(vcpu); !ours) return tl::unexpected(ours.error());
    std::uint64_t first = 0;
    std::uint64_t second = 0;
    Status claimed;
    std::thread other{[&] {
        const auto at = host_counter();
        claimed = claim_vcpu(vcpu);
        const auto between = host_counter();
        if (claimed) claimed = claim_vcpu(vcpu);
        first = (between - at).magnitude();
        second = (host_counter() - between).magnitude();
    }};
    other.join();
    if (!claimed) return tl::unexpected(claimed.error());
    const std::string evidence = fmt::format("its first KVM_RUN takes {} us, its second {} us",
                                             seen.us(first), seen.us(second));
    if (first < seen.ms_in_ticks(1)) return works(evidence);
    return absent(evidence,
                  "an RCU grace period: each vCPU's own thread must make one KVM_RUN "
                  "(immediate_exit) before the resume instant");
}

std::string_view name(CheckState state) {
    switch (state) {
        case CheckState::kWorks:
            return "works";
        case CheckState::kAbsent:
            return "absent";
        case CheckState::kBroken:
            return "broken";
        case CheckState::kNotRun:
            return "not-run";
    }
    return "unknown";
}

std::string_view name(Verdict verdict) {
    switch (verdict) {
        case Verdict::kExact:
            return "exact";
        case Verdict::kByValue:
            return "by-value";
        case Verdict::kFixedTsc:
            return "fixed-tsc";
        case Verdict::kNoKvm:
            return "no-kvm";
    }
    return "unknown";
}

std::string_view meaning(Verdict verdict) {
    switch (verdict) {
        case Verdict::kExact:
            return "offsets of the guest's counter are honoured: every clock of a guest can be "
                   "restored exactly";
        case Verdict::kByValue:
            return "the guest's counter can only be written by value: it is off by what the write "
                   "takes, which the certificate states";
        case Verdict::kFixedTsc:
            return "nothing moves a guest's counter here: a guest can only go on under this boot's "
                   "counter, with policy advance";
        case Verdict::kNoKvm:
            return "there is no usable KVM on this computer: use an emulated host";
    }
    return "unknown";
}

DoctorReport no_kvm_report(const state::Error& why) {
    DoctorReport report;
    report.reason = why.message();
    return report;
}

}  // namespace continuo::kvm
