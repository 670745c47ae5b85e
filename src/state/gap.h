// How long the guest was away. Internal to state/.
#pragma once

#include <optional>

#include "continuo/state/plan.h"

namespace continuo::state {

/// Elapsed real time from the record's anchor, and what is known of it.
struct Gap {
    ElapsedBy by{};
    std::int64_t ticks_at_resume = 0;  ///< host ticks; only where by == kHostCounter
    Nanos<Tai> at_anchor;              ///< to the destination's anchor; unclamped
    Nanos<Tai> at_resume;              ///< to the resume instant; clamped
    std::uint64_t source_bound_ns = 0;
    std::uint64_t destination_bound_ns = 0;
    std::uint64_t conversion_bound_ns = 0;  ///< of ticks to ns by a frequency in whole kHz
    std::uint64_t clamp_ns = 0;  ///< how far at_resume was moved because the caller said so
    bool clamped = false;

    std::uint64_t bound_ns() const;
};

/// A gap that cannot be believed.
struct GapError {
    RefusalReason reason{};
    std::uint64_t size_ns = 0;
    std::string message;
    std::string advice;
};

/// Measures by the host's counter where source and destination are one boot, else by TAI. Notes say
/// what was assumed.
tl::expected<Gap, GapError> measure_gap(const Record& record, const Destination& destination,
                                        const PlanOptions& options, Count<HostCounter> resume_at,
                                        std::vector<std::string>& notes);

}  // namespace continuo::state
