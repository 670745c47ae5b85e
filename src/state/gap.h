// How long the guest was away. Internal to state/.
#pragma once

#include <string>
#include <vector>

#include "continuo/state/plan.h"

namespace continuo::state {

/// Elapsed time from the record's anchor to the resume instant, and what is known of it.
struct Gap {
    ElapsedBy by{};
    Nanos<Tai> length;           ///< clamped
    std::uint64_t bound_ns = 0;  ///< the true gap is within this of it
    bool clamped = false;
    /// The gap was turned from ns into ticks of the source: everywhere but on one boot whose
    /// counter ran throughout.
    bool converted = false;
    /// What a clock that counts on at the source's stated rate over `length` is off by from the one
    /// that the source's counter would have shown; ns.
    Bound clocks;
    GapMeasures measures;
};

/// A gap that cannot be believed.
struct GapError {
    RefusalReason reason{};
    std::uint64_t size_ns = 0;
    std::string message;
    std::string advice;
};

/// Measures by the host's counter where source and destination are one boot that was not suspended
/// in between; where it was, by its TAI; between hosts by the exchange or by TAI, whichever knows
/// better. Notes say what was assumed.
tl::expected<Gap, GapError> measure_gap(const Record& record, const Destination& destination,
                                        const PlanOptions& options, Count<HostCounter> resume_at,
                                        std::vector<std::string>& notes);

}  // namespace continuo::state
