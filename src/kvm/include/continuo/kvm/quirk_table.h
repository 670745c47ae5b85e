// The ways in which Linux's KVM does something else with a guest's clocks than a restore needs, as
// data: which releases do it, how it is seen, what continuo does instead, and where it stands in
// the kernel's source. Whether a host has a quirk is decided by what was seen on it; its release
// only fills in for what could not be looked at. docs/kernel-facts.md holds the same table, and a
// test holds both together.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "continuo/kvm/doctor.h"
#include "continuo/state/plan.h"

namespace continuo::kvm {

/// A Linux release, such as 6.12; stable updates do not count.
struct KernelRelease {
    std::uint32_t major = 0;
    std::uint32_t minor = 0;
    friend bool operator==(const KernelRelease&, const KernelRelease&) = default;
    friend auto operator<=>(const KernelRelease& a, const KernelRelease& b) {
        return std::pair{a.major, a.minor} <=> std::pair{b.major, b.minor};
    }
};

/// Of what uname says ("6.12.117+deb12-cloud-amd64") or of a HostIdentity's "Linux 6.12.117
/// x86_64". None where no release stands at the front.
std::optional<KernelRelease> kernel_release(std::string_view kernel);

/// The releases from `from` to the one before `until`. Empty where the two are equal: then only a
/// look at the host tells.
struct KernelRange {
    KernelRelease from{};
    KernelRelease until{std::numeric_limits<std::uint32_t>::max(), 0};

    bool empty() const { return from == until; }
    bool contains(KernelRelease release) const { return from <= release && release < until; }
};
/// "all", "before 6.7", "from 5.16", "5.16 to before 6.7", "no release".
std::string text(const KernelRange& range);

struct QuirkRow {
    std::string_view id;  ///< stable, for JSON; planner quirks have their name() here
    state::Architecture architecture{};
    KernelRange kernels;
    std::string_view what;     ///< what the kernel does, one sentence
    std::string_view seen_by;  ///< the experiment whose outcome decides
    std::string_view instead;  ///< what continuo does, one sentence
    std::string_view source;   ///< kernel function or commit's subject
    /// doctor's check that is the experiment, and the state of it that means that the quirk is
    /// there (none: any but kWorks). Empty where see_quirk() has an experiment of its own.
    std::string_view check{};
    std::optional<CheckState> check_state{};
    /// A processor or hypervisor can have it too, on releases that do not.
    bool host_can_add = false;
};

std::span<const QuirkRow> quirk_table();
/// The row as docs/kernel-facts.md has it: one line of a Markdown table, without its end.
std::string markdown(const QuirkRow& row);
/// nullptr where there is no such row.
const QuirkRow* find_quirk(std::string_view id);

/// What one experiment saw on this host.
struct QuirkEffect {
    std::string_view id;
    std::optional<bool> seen;  ///< none: it could not be tried; evidence says why
    std::string evidence;      ///< one line with the measured numbers
    std::optional<std::int64_t> figure;
    std::string_view unit;  ///< of the figure: "ns", "ticks", "us"
};

/// A row, judged for one host.
struct QuirkFinding {
    const QuirkRow* row = nullptr;
    std::optional<bool> by_release;  ///< none: the release is not known, or says nothing
    QuirkEffect effect;

    /// What was seen; else what the release says; else false.
    bool in_force() const { return effect.seen.value_or(by_release.value_or(false)); }
    bool disagrees() const {
        if (!effect.seen || !by_release || *effect.seen == *by_release) return false;
        return *by_release || !row->host_can_add;
    }
};

/// The architecture of this build.
state::Architecture quirk_architecture();

/// Every row of an architecture, in the table's order. `kernel` is HostIdentity's.
std::vector<QuirkFinding> judge_quirks(state::Architecture architecture, std::string_view kernel,
                                       std::span<const QuirkEffect> effects);

/// What doctor has seen of them by its own checks.
std::vector<QuirkEffect> quirks_seen_by(const DoctorReport& report);

/// quirks_seen_by() and an experiment for each other row, on VMs of their own; about 3 s, most of
/// it waiting. An experiment that fails is an effect that was not seen, and says why.
std::vector<QuirkEffect> see_quirks(const System& system, const DoctorReport& report);

/// The same for one row.
QuirkEffect see_quirk(const System& system, const DoctorReport& report, const QuirkRow& row);

}  // namespace continuo::kvm
