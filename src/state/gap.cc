#include "gap.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "continuo/time/interval.h"
#include "continuo/time/line.h"
#include "continuo/time/wide.h"

namespace continuo::state {

namespace {

using time::i128;
using time::kNanosPerSecond;

/// What adjtimex calls "no idea": NTP_PHASE_LIMIT, 16 s, the least bound of a clock that reports
/// STA_UNSYNC.
constexpr std::uint64_t kUnsynchronisedBoundNs = 16 * kNanosPerSecond;
/// KVM states frequencies in whole kHz, truncated: the true one is less than this above.
constexpr std::uint64_t kFrequencyStepHz = 1000;
/// Longest gap that Nanos can hold.
constexpr std::uint64_t kGapNsMax = std::numeric_limits<std::int64_t>::max();

i128 nanos_of_ticks(std::int64_t ticks, Hz hz) {
    return time::floor_divide(static_cast<i128>(ticks) * static_cast<i128>(kNanosPerSecond),
                              hz.hz())
        .quotient;
}

template <class D>
std::uint64_t tai_bound(const Anchor<D>& anchor) {
    if (anchor.synchronised) return anchor.tai_bound_ns;
    return std::max(anchor.tai_bound_ns, kUnsynchronisedBoundNs);
}

template <class D>
void note_unsynchronised(const Anchor<D>& anchor, std::string_view side,
                         std::vector<std::string>& notes) {
    if (anchor.synchronised) return;
    notes.push_back(fmt::format(
        "the {}'s clock is not synchronised (STA_UNSYNC): its TAI is taken to be within {} s only",
        side, tai_bound(anchor) / kNanosPerSecond));
}

/// Seconds to add to (destination TAI - source TAI) because one kernel was never told of TAI - UTC.
std::int64_t tai_offset_repair(const Record& record, const Destination& destination,
                               std::vector<std::string>& notes) {
    const std::int64_t source = record.anchor.tai_offset_sec;
    const std::int64_t here = destination.anchor.tai_offset_sec;
    if ((source == 0) == (here == 0)) return 0;
    notes.push_back(
        fmt::format("the {} was never told of TAI - UTC (its CLOCK_TAI is UTC): the {} s of the "
                    "other host are taken",
                    source == 0 ? "source" : "destination", source == 0 ? here : source));
    return source == 0 ? -here : source;
}

/// by TAI, to the destination's anchor; in 128 bits because the two may be up to 2^64 apart.
i128 tai_gap(const Record& record, const Destination& destination,
             std::vector<std::string>& notes) {
    const i128 seconds = tai_offset_repair(record, destination, notes);
    return static_cast<i128>(destination.anchor.tai.raw()) -
           static_cast<i128>(record.anchor.tai.raw()) +
           seconds * static_cast<i128>(kNanosPerSecond);
}

GapError negative(std::uint64_t size_ns, ElapsedBy by) {
    return {RefusalReason::kNegativeGap, size_ns,
            fmt::format("the guest would go on {} ns before it stopped, by the {}", size_ns,
                        by == ElapsedBy::kTai ? "two hosts' TAI" : "host's counter"),
            by == ElapsedBy::kTai ? "Synchronise both hosts' clocks, or clamp the gap"
                                  : "Check that the record is of this boot, or clamp the gap"};
}

GapError absurd(std::uint64_t size_ns, std::uint64_t limit_ns) {
    return {RefusalReason::kAbsurdGap, size_ns,
            fmt::format("the gap of {} s is over the limit of {} s", size_ns / kNanosPerSecond,
                        limit_ns / kNanosPerSecond),
            "Raise the limit if the guest was really away so long, or clamp the gap"};
}

std::uint64_t size_of(i128 value) {
    const i128 size = value < 0 ? -value : value;
    return static_cast<std::uint64_t>(std::min(size, static_cast<i128>(kGapNsMax)));
}

/// The believable gap: `measured`, or a clamped one, or the reason why not.
tl::expected<i128, GapError> believe(i128 measured, Gap& gap, const PlanOptions& options,
                                     std::vector<std::string>& notes) {
    // No limit lets through what 63 bits of ns (292 years) cannot hold.
    const i128 limit = static_cast<i128>(std::min(options.gap_limit_ns, kGapNsMax));
    if (measured >= 0 && measured <= limit) return measured;
    // A gap that is negative by no more than the two clocks may be off is a gap that cannot be told
    // from zero.
    const bool within_bound =
        gap.by == ElapsedBy::kTai && measured < 0 && -measured <= static_cast<i128>(gap.bound_ns());
    if (!within_bound && !options.clamp_gap)
        return tl::unexpected(measured < 0 ? negative(size_of(measured), gap.by)
                                           : absurd(size_of(measured), options.gap_limit_ns));
    gap.clamped = true;
    const i128 taken = measured < 0 ? 0 : limit;
    // The bounds hold the true gap about what was measured; what was asked for is that much off it.
    if (!within_bound) gap.clamp_ns = size_of(measured - taken);
    notes.push_back(fmt::format("the gap was measured as {}{} ns and is taken as {} ns ({})",
                                measured < 0 ? "-" : "", size_of(measured), size_of(taken),
                                within_bound ? "within the clocks' bounds" : "clamped as asked"));
    return taken;
}

}  // namespace

std::uint64_t Gap::bound_ns() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t part :
         {source_bound_ns, destination_bound_ns, conversion_bound_ns, clamp_ns})
        if (__builtin_add_overflow(sum, part, &sum))
            return std::numeric_limits<std::uint64_t>::max();
    return sum;
}

tl::expected<Gap, GapError> measure_gap(const Record& record, const Destination& destination,
                                        const PlanOptions& options, Count<HostCounter> resume_at,
                                        std::vector<std::string>& notes) {
    const Hz hz = destination.anchor.frequency;
    const Ticks<HostCounter> lead = resume_at - destination.anchor.counter;
    Gap gap;
    i128 at_anchor = 0;
    i128 at_resume = 0;
    if (destination.same_boot) {
        gap.by = ElapsedBy::kHostCounter;
        const Count<HostCounter> stopped = time::same_boot_counter(record.anchor.counter);
        at_anchor = nanos_of_ticks((destination.anchor.counter - stopped).raw(), hz);
        gap.ticks_at_resume = (resume_at - stopped).raw();
        at_resume = nanos_of_ticks(gap.ticks_at_resume, hz);
    } else {
        gap.by = ElapsedBy::kTai;
        note_unsynchronised(record.anchor, "source", notes);
        note_unsynchronised(destination.anchor, "destination", notes);
        gap.source_bound_ns = tai_bound(record.anchor);
        gap.destination_bound_ns = tai_bound(destination.anchor);
        at_anchor = tai_gap(record, destination, notes);
        at_resume = at_anchor + nanos_of_ticks(lead.raw(), hz);
    }
    const auto believed = believe(at_resume, gap, options, notes);
    if (!believed) return tl::unexpected(believed.error());
    // A resume instant that lies centuries from the destination's anchor.
    if (!gap.clamped && time::sat_i64(at_anchor) != at_anchor)
        return tl::unexpected(absurd(size_of(at_anchor), options.gap_limit_ns));

    const i128 counted = gap.by == ElapsedBy::kTai ? at_resume - at_anchor : *believed;
    gap.conversion_bound_ns = static_cast<std::uint64_t>(
        static_cast<i128>(size_of(counted)) * kFrequencyStepHz / static_cast<i128>(hz.hz()) + 1);
    gap.at_anchor = Nanos<Tai>::from_raw(time::sat_i64(at_anchor));
    gap.at_resume = Nanos<Tai>::from_raw(time::sat_i64(*believed));
    return gap;
}

}  // namespace continuo::state
