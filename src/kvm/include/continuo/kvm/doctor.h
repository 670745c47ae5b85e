// doctor: what this host can do for a guest's clocks, proven with a tiny guest. A control counts as
// working when the guest, or the page that the guest reads, shows its effect; that an ioctl
// returned 0 counts for nothing, because there are hosts on which it means nothing. docs/doctor.md
// explains every check.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/kvm/host.h"
#include "continuo/kvm/system.h"
#include "continuo/state/plan.h"

namespace continuo::kvm {

enum class CheckState : std::uint8_t {
    kWorks,   ///< seen to have its effect
    kAbsent,  ///< this kernel or host does not have it, and says so
    kBroken,  ///< it is there, and does not do what it says
    kNotRun,  ///< could not be tried: something that it needs does not work, or time was up
};
std::string_view name(CheckState state);  ///< "works", "absent", "broken", "not-run"

struct DoctorCheck {
    std::string_view id;           ///< stable, for JSON: "tsc_offset_honoured"
    std::string_view title;        ///< for people
    std::string_view requirement;  ///< "S2.2"
    CheckState state = CheckState::kNotRun;
    std::string evidence;     ///< one line with the measured numbers
    std::string consequence;  ///< what follows for a guest; empty where it works
};

/// What a restore on this host can be, best first.
enum class Verdict : std::uint8_t {
    kExact,     ///< TSC offsets are honoured: every counter to the tick
    kByValue,   ///< the TSC can be written, and lands when it lands
    kFixedTsc,  ///< nothing moves the guest's TSC: only going on under the same boot's counter
    kNoKvm,     ///< no usable KVM
};
std::string_view name(Verdict verdict);     ///< "exact", "by-value", "fixed-tsc", "no-kvm"
std::string_view meaning(Verdict verdict);  ///< one sentence

struct DoctorReport {
    Verdict verdict = Verdict::kNoKvm;
    std::string reason;               ///< of kNoKvm: what is missing and what to do
    std::optional<HostClock> host;    ///< none with kNoKvm
    state::Quirks quirks = 0;         ///< for ClockMachineOptions and the planner
    std::vector<DoctorCheck> checks;  ///< in the order in which they are to be read
    std::uint64_t duration_us = 0;
};

struct DoctorOptions {
    /// Checks that have not begun when this is over are not run.
    std::uint64_t time_limit_ms = 10'000;
};

/// Examines this host with VMs of its own; no other VM notices. Half a second on most hosts. Fails
/// only where not even a VM can be made; a control that fails is a check that says so.
Result<DoctorReport> examine(const System& system, const DoctorOptions& options = {});

/// The report for a computer on which System::open() failed.
DoctorReport no_kvm_report(const state::Error& why);

}  // namespace continuo::kvm
