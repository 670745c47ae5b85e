// The certificate: for every clock of the guest the seam between what was prescribed and what was
// realised, the bound that holds for it, and where each part of the bound comes from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/state/plan.h"

namespace continuo::state {

/// One clock. Values in ticks for counters, ns for timelines.
struct ClockCertificate {
    ClockKind clock{};
    std::optional<std::uint32_t> vcpu;  ///< none: one line for all vCPUs
    std::string_view unit;
    std::uint64_t prescribed = 0;  ///< at the resume instant
    std::uint64_t realised = 0;    ///< at the resume instant, from the controls read back
    std::int64_t seam = 0;         ///< realised - prescribed, by lines, exact
    std::uint64_t seam_bound =
        0;        ///< what the seam may be: target of the control plus rounding of its read-back
    Bound bound;  ///< |realised - what the policy promises| in the guest's true time
    bool holds() const {
        const auto bits = static_cast<std::uint64_t>(seam);
        return (seam < 0 ? 0 - bits : bits) <= seam_bound;
    }
};

/// What the guest itself saw after it went on, where somebody looked (the witness).
struct GuestObservation {
    std::uint32_t vcpu = 0;
    std::uint64_t first_tsc = 0;       ///< the first RDTSC after the resume; CNTVCT on arm64
    std::int64_t after_resume_ns = 0;  ///< its distance from the prescribed instant
    /// The line of the guest's own page less the prescribed line; none without kvmclock.
    std::optional<std::int64_t> kvmclock_seam_ns;
    std::uint64_t backward_steps = 0;  ///< of any clock, since it runs
};

/// The closed loop on kvmclock.
struct TrimReport {
    std::uint32_t rounds = 0;
    std::int64_t residual_ns = 0;
    bool converged = false;
};

struct Certificate {
    Policy policy{};
    ElapsedBy elapsed_by{};
    Nanos<Tai> gap;
    std::uint64_t gap_bound_ns = 0;
    bool gap_clamped = false;
    GapMeasures measures;
    RateChoice rate{};
    RateError tsc_rate_error;
    std::uint64_t resume_at = 0;  ///< host counter
    std::vector<ClockCertificate> clocks;
    TrimReport trim;
    std::vector<GuestObservation> observed;
    std::optional<Notice> notice;
    std::vector<std::string> notes;

    /// Every seam is within its bound and no clock was seen to go backwards.
    bool holds() const;
};

}  // namespace continuo::state
