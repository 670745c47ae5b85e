// Holds a trace against the model. Real time passes inside every call, and the instant at which the
// kernel read its clocks is hidden; but what can be seen later often gives it away to the tick: a
// written value less the offset that came of it, a page's tsc_timestamp less the offset,
// KVM_GET_CLOCK's host_tsc. Each act is given to the model at its pinned instant, which must lie
// inside the bracket of the call. Where nothing pins it, both ends of the bracket are tried: the
// kernel must then have done what the model does at one of them. All that is discrete must be equal
// (errors, offsets, generations as they show, flags, versions, frequencies), and lines agree within
// kReadingErrorNs and what is hidden.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "continuo/model/kernel_rules.h"
#include "subject.h"

namespace continuo::differential {

/// A line of kvmclock rounds down at its sample and at its reading, the model's at both too.
inline constexpr std::int64_t kReadingErrorNs = 2;

struct Difference {
    std::string what;
    std::string model;
    std::string kernel;
};

struct Mismatch {
    std::size_t step = 0;                 ///< of the trace; trace.steps.size(): its first view
    std::vector<Difference> differences;  ///< of the hypothesis that came nearest
};

struct Verdict {
    std::uint64_t comparisons = 0;
    /// Steps whose discrete outcome depends on where in its bracket the kernel was.
    std::uint64_t ambiguous = 0;
    std::uint64_t pinned = 0;  ///< instants known to the tick
    std::uint64_t hidden = 0;  ///< instants known to their bracket
    std::optional<Mismatch> mismatch;
};

struct HostFacts {
    std::uint32_t khz =
        1;  ///< the kernel's tsc_khz: the raw clock is its line (KernelLine::of_khz())
    std::uint64_t boot_ticks = 0;  ///< counter value at about which the raw clock was 0
    /// A KVM that is not Linux's own (kvm-pvm): a host's write of vCPU 0's system-time MSR takes
    /// the stable bit out of the page that it names, at once, and the version rises.
    bool system_time_write_stores = false;
};

/// The same trace and rules give the same verdict. `story`: a line for each step is appended, with
/// the model's values and the kernel's.
Verdict judge(const Trace& trace, const model::KernelRules& rules, const HostFacts& host,
              std::vector<std::string>* story = nullptr);

}  // namespace continuo::differential
