// What the examinations of all architectures share: a list of checks, each a call that looks at one
// control and answers with a finding; and the arithmetic of bracketed readings. Internal to kvm/.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "continuo/kvm/doctor.h"
#include "continuo/kvm/vcpu_core.h"
#include "continuo/machine/machine.h"

namespace continuo::kvm {

struct Finding {
    CheckState state = CheckState::kNotRun;
    std::string evidence;
    std::string consequence;
};

inline Finding works(std::string evidence) {
    return {CheckState::kWorks, std::move(evidence), {}};
}
inline Finding absent(std::string evidence, std::string consequence) {
    return {CheckState::kAbsent, std::move(evidence), std::move(consequence)};
}
inline Finding broken(std::string evidence, std::string consequence) {
    return {CheckState::kBroken, std::move(evidence), std::move(consequence)};
}
inline Finding not_run(std::string why) {
    return {CheckState::kNotRun, std::move(why), {}};
}

/// How far a guest reading lies outside what a map allows for its bracket; 0 inside.
std::int64_t outside(const time::TscMap& map, const machine::BracketedTsc& read);
std::uint64_t width(const machine::BracketedTsc& read);
/// By how much the guest's counter moved against the host's between two readings; true within the
/// sum of the brackets.
std::int64_t moved(const machine::BracketedTsc& from, const machine::BracketedTsc& to);
bool near(std::int64_t value, std::int64_t wanted, std::uint64_t tolerance);

/// The checks that were made so far, and how they went.
class Examination {
  public:
    using Clock = std::chrono::steady_clock;

    /// `started`: what the time limit and the report's duration count from.
    Examination(const DoctorOptions& options, HostClock host, Clock::time_point started);

    const HostClock& host() const { return *report_.host; }
    /// Makes a check, unless the time is over.
    void check(std::string_view id, std::string_view title, std::string_view requirement,
               const std::function<Result<Finding>()>& run_it);
    bool worked(std::string_view id) const { return state_of(id) == CheckState::kWorks; }
    CheckState state_of(std::string_view id) const;

    /// Ticks of the host's counter, and the microseconds of ticks.
    std::uint64_t ms_in_ticks(std::uint64_t ms) const {
        return host().frequency().hz() * ms / 1000;
    }
    std::uint64_t us(std::uint64_t ticks) const {
        return static_cast<std::uint64_t>(static_cast<time::u128>(ticks) * 1'000'000 /
                                          host().frequency().hz());
    }

    DoctorReport finish(state::Quirks quirks, Verdict verdict) &&;

  private:
    const DoctorOptions& options_;
    Clock::time_point started_;
    DoctorReport report_;
};

/// Whether the kernel knows TAI, and how well.
Result<Finding> look_at_tai(const HostClock& host);
/// What the first KVM_RUN costs a thread that is not the vCPU's last one.
Result<Finding> look_at_thread_change(VcpuCore& vcpu, const Examination& seen);

}  // namespace continuo::kvm
