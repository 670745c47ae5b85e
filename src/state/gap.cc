#include "gap.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "continuo/time/interval.h"
#include "continuo/time/wide.h"
#include "counter_rate.h"

namespace continuo::state {

namespace {

using time::i128;
using time::kNanosPerSecond;

/// What adjtimex calls "no idea": NTP_PHASE_LIMIT, 16 s, the least bound of a clock that reports
/// STA_UNSYNC.
constexpr std::uint64_t kUnsynchronisedBoundNs = 16 * kNanosPerSecond;
/// Longest gap that Nanos can hold.
constexpr std::uint64_t kGapNsMax = std::numeric_limits<std::int64_t>::max();

std::uint64_t size_of(i128 value) {
    const i128 size = value < 0 ? -value : value;
    return static_cast<std::uint64_t>(std::min(size, static_cast<i128>(kGapNsMax)));
}

std::uint64_t sum_of(std::initializer_list<std::uint64_t> parts) {
    std::uint64_t sum = 0;
    for (const std::uint64_t part : parts)
        if (__builtin_add_overflow(sum, part, &sum))
            return std::numeric_limits<std::uint64_t>::max();
    return sum;
}

std::string signed_ns(i128 value) {
    return fmt::format("{}{} ns", value < 0 ? "-" : "", size_of(value));
}

/// The gap by one way of measuring, unclamped.
struct Measured {
    ElapsedBy by{};
    i128 ns = 0;
    std::uint64_t bound_ns = 0;  ///< the true gap is within this
    Bound clocks;                ///< Gap::clocks

    GapMeasure report() const { return {Nanos<Tai>::from_raw(time::sat_i64(ns)), bound_ns}; }
};

// -- by the counter of one boot --

/// Whether the host ran all the time between the two anchors, so that its counter counted time.
/// Where neither anchor says, it is the caller who vouches for same_boot.
bool ran_throughout(const std::optional<std::uint64_t>& then,
                    const std::optional<std::uint64_t>& now) {
    if (!then && !now) return true;
    if (!now) return false;
    // A boot that was never suspended was not so either when nobody looked.
    const auto more = static_cast<std::int64_t>(*now - then.value_or(0));
    return more >= -kSuspendedSlackNs && more <= kSuspendedSlackNs;
}

void note_suspended(const std::optional<std::uint64_t>& then,
                    const std::optional<std::uint64_t>& now, std::vector<std::string>& notes) {
    std::string what = "the host may have been suspended since the record was made";
    if (then && now)
        what = fmt::format(
            "the host was suspended since the record was made (BOOTTIME - MONOTONIC went from {} "
            "ns to {} ns)",
            *then, *now);
    notes.push_back(
        what +
        ", and what its counter did meanwhile is unknown: the gap goes by its TAI, which is "
        "taken to be 2 s and 501 ppm of the suspend less certain, for Linux makes up for it by a "
        "clock of whole seconds");
}

Measured by_host_counter(const Record& record, const Destination& destination,
                         Count<HostCounter> resume_at) {
    const CounterRate rate = counter_rate(destination.anchor, destination.architecture);
    const Ticks<HostCounter> ticks = resume_at - time::same_boot_counter(record.anchor.counter);
    Measured out{ElapsedBy::kHostCounter, floor_nanos(ticks.raw(), rate.frequency), 0, {}};
    out.bound_ns = sum_of({true_length_bound(size_of(out.ns), rate), 1});
    return out;
}

// -- by TAI --

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

/// In 128 bits because the two TAI may be up to 2^64 apart.
Measured by_tai(const Record& record, const Destination& destination, Count<HostCounter> resume_at,
                std::vector<std::string>& notes) {
    note_unsynchronised(record.anchor, "source", notes);
    note_unsynchronised(destination.anchor, "destination", notes);
    const CounterRate here = counter_rate(destination.anchor, destination.architecture);
    const CounterRate source = counter_rate(record.anchor, record.architecture);
    const i128 repair = tai_offset_repair(record, destination, notes);
    const i128 lead =
        floor_nanos((resume_at - destination.anchor.counter).raw(), destination.anchor.frequency);
    Measured out{ElapsedBy::kTai, 0, 0, {}};
    out.ns = static_cast<i128>(destination.anchor.tai.raw()) -
             static_cast<i128>(record.anchor.tai.raw()) +
             repair * static_cast<i128>(kNanosPerSecond) + lead;
    const std::uint64_t lead_bound = true_length_bound(size_of(lead), here);
    const std::uint64_t rounding = lead == 0 ? 0 : 1;
    out.bound_ns =
        sum_of({tai_bound(record.anchor), tai_bound(destination.anchor), lead_bound, rounding});
    out.clocks.add(BoundSource::kSourceTai, tai_bound(record.anchor));
    out.clocks.add(BoundSource::kDestinationTai, tai_bound(destination.anchor));
    out.clocks.add(BoundSource::kFrequency, lead_bound);
    // The longest gap that it may have been, at the source's own rate.
    const i128 longest = static_cast<i128>(size_of(out.ns)) + out.bound_ns;
    out.clocks.add(BoundSource::kFrequency, counted_length_bound(longest, source));
    out.clocks.add(BoundSource::kRounding, rounding);
    return out;
}

/// The longest that the host can have been suspended between the two anchors: what BOOTTIME -
/// MONOTONIC says, where both say it, else all of the time that their TAI are apart.
std::uint64_t longest_suspend_ns(const Record& record, const Destination& destination) {
    const auto apart = [](std::uint64_t now, std::uint64_t then) {
        const auto more = static_cast<std::int64_t>(now - then);
        return size_of(static_cast<i128>(more));
    };
    const auto& then = record.anchor.suspended_ns;
    const auto& now = destination.anchor.suspended_ns;
    if (then && now) return apart(*now, *then);
    return size_of(static_cast<i128>(destination.anchor.tai.raw()) -
                   static_cast<i128>(record.anchor.tai.raw()));
}

/// timekeeping_resume() adds the difference of two readings of the persistent clock, each of them
/// up to 1 s late, and leaves maxerror as it was. That clock runs by a crystal of its own, which is
/// taken to be within 500 ppm, by which its measure of a suspend is off by less than 501. (Where
/// the clocksource goes on in a suspend nothing is lost, but that is not to be seen from outside.)
Destination after_suspend(const Record& record, Destination destination) {
    constexpr std::uint64_t kPersistentClockNs = 2 * kNanosPerSecond;
    constexpr time::u128 kMillion = 1'000'000;
    const time::u128 drift =
        (time::u128{longest_suspend_ns(record, destination)} * 501 + kMillion - 1) / kMillion;
    destination.anchor.tai_bound_ns = sum_of(
        {destination.anchor.tai_bound_ns, kPersistentClockNs, static_cast<std::uint64_t>(drift)});
    return destination;
}

// -- by the exchange --

/// One side of what a round says: how far the source's counter was at most, or at least, beyond the
/// record's anchor, in ns at its stated rate; and how much of that is the two counters' rates.
struct Limit {
    i128 ns = 0;
    i128 rates = 0;
};

/// A counter that reads n is anywhere before n + 1: what must lie late enough for a bound to hold
/// is taken as that.
template <class D>
Count<D> end_of(Count<D> count) {
    return count + Ticks<D>::from_raw(1);
}

/// Not yet past `received` when this host's counter was `asked`.
Limit upper(const ExchangeRound& round, Count<SourceCounter> anchor, Count<HostCounter> at,
            const CounterRate& source, const CounterRate& here) {
    const Ticks<HostCounter> since = at - round.asked;
    const i128 most = recounted(since.raw(), here, source).hi;
    return {ceil_nanos((end_of(round.received) - anchor).raw(), source.frequency) + most,
            most - ceil_nanos(since.raw(), here.frequency)};
}

/// At `answered` when this host's counter was `heard`.
Limit lower(const ExchangeRound& round, Count<SourceCounter> anchor, Count<HostCounter> at,
            const CounterRate& source, const CounterRate& here) {
    const Ticks<HostCounter> since = at - end_of(round.heard);
    const i128 least = recounted(since.raw(), here, source).lo;
    return {floor_nanos((round.answered - anchor).raw(), source.frequency) + least,
            floor_nanos(since.raw(), here.frequency) - least};
}

GapError contradiction(std::uint64_t size_ns) {
    return {RefusalReason::kExchange, size_ns,
            fmt::format("the rounds of the exchange contradict each other by {} ns: one of the two "
                        "hosts' counters does not run at its stated rate, or its stamps are false",
                        size_ns),
            "Check the frequencies that the two hosts state; without the exchange the gap goes by "
            "TAI"};
}

/// Domain: there is an exchange. What all rounds agree on, and of that the middle.
tl::expected<Measured, GapError> by_exchange(const Record& record, const Destination& destination,
                                             Count<HostCounter> resume_at) {
    const CounterRate here = counter_rate(destination.anchor, destination.architecture);
    const CounterRate source = counter_rate(record.anchor, record.architecture);
    const auto limits = [&](const ExchangeRound& round) {
        return std::pair{lower(round, record.anchor.counter, resume_at, source, here),
                         upper(round, record.anchor.counter, resume_at, source, here)};
    };
    auto [low, high] = limits(destination.exchange.front());
    for (const ExchangeRound& round : destination.exchange) {
        const auto [lo, hi] = limits(round);
        if (lo.ns > low.ns) low = lo;
        if (hi.ns < high.ns) high = hi;
    }
    if (low.ns > high.ns) return tl::unexpected(contradiction(size_of(low.ns - high.ns)));

    Measured out{ElapsedBy::kExchange, time::floor_divide(low.ns + high.ns, 2).quotient, 0, {}};
    const std::uint64_t half = size_of(high.ns - out.ns);
    const std::uint64_t rates = std::min(half, size_of((low.rates + high.rates + 1) / 2));
    out.clocks.add(BoundSource::kExchange, half - rates);
    out.clocks.add(BoundSource::kFrequency, rates);
    const i128 longest = static_cast<i128>(size_of(out.ns)) + half;
    out.bound_ns = sum_of({half, true_length_bound(longest, source)});
    return out;
}

// -- which of the two --

/// The destination's TAI less the source's, and a note where no error that the two clocks admit
/// explains it. True where they are as far apart as they admit.
bool compare_clocks(const Measured& tai, const Measured& exchange, GapMeasures& measures,
                    std::vector<std::string>& notes) {
    const i128 offset = tai.ns - exchange.ns;
    measures.clock_offset =
        GapMeasure{Nanos<Tai>::from_raw(time::sat_i64(offset)), exchange.bound_ns};
    const i128 admitted = static_cast<i128>(tai.bound_ns) + exchange.bound_ns;
    const i128 size = offset < 0 ? -offset : offset;
    if (size <= admitted) return true;
    notes.push_back(fmt::format(
        "a clock of one of the two hosts is wrong by at least {} ns: by the exchange the "
        "destination's TAI is {} from the source's, and the two admit {} ns; the gap goes by the "
        "exchange",
        size_of(size - admitted), signed_ns(offset), tai.bound_ns));
    return false;
}

/// What the policy lets the gap be used for decides which bound counts.
bool exchange_knows_better(const Measured& exchange, const Measured& tai, Policy policy) {
    if (freezes(policy)) return exchange.bound_ns <= tai.bound_ns;
    return exchange.clocks.total() <= tai.clocks.total();
}

tl::expected<Measured, GapError> between_hosts(const Record& record, const Destination& destination,
                                               Policy policy, Count<HostCounter> resume_at,
                                               GapMeasures& measures,
                                               std::vector<std::string>& notes) {
    const Measured tai = by_tai(record, destination, resume_at, notes);
    measures.by_tai = tai.report();
    if (destination.exchange.empty()) return tai;
    auto exchange = by_exchange(record, destination, resume_at);
    if (!exchange) return exchange;
    measures.by_exchange = ExchangeMeasure{exchange->report(), destination.exchange.size(),
                                           exchange->clocks.of(BoundSource::kExchange),
                                           exchange->clocks.of(BoundSource::kFrequency)};
    const bool agree = compare_clocks(tai, *exchange, measures, notes);
    return agree && !exchange_knows_better(*exchange, tai, policy) ? tai : *exchange;
}

// -- whether it can be believed --

std::string_view measured_by(ElapsedBy by) {
    switch (by) {
        case ElapsedBy::kHostCounter:
            return "the host's counter";
        case ElapsedBy::kTai:
            return "the two hosts' TAI";
        case ElapsedBy::kExchange:
            return "the exchange between the hosts";
    }
    return "?";
}

std::string_view what_to_check(ElapsedBy by) {
    switch (by) {
        case ElapsedBy::kHostCounter:
            return "Check that the record is of this boot, or clamp the gap";
        case ElapsedBy::kTai:
            return "Synchronise both hosts' clocks, or clamp the gap";
        case ElapsedBy::kExchange:
            return "Check that record and exchange are of one migration, or clamp the gap";
    }
    return "?";
}

GapError negative(std::uint64_t size_ns, ElapsedBy by) {
    return {RefusalReason::kNegativeGap, size_ns,
            fmt::format("the guest would go on {} ns before it stopped, by {}", size_ns,
                        measured_by(by)),
            std::string{what_to_check(by)}};
}

GapError absurd(std::uint64_t size_ns, std::uint64_t limit_ns) {
    return {RefusalReason::kAbsurdGap, size_ns,
            fmt::format("the gap of {} s is over the limit of {} s", size_ns / kNanosPerSecond,
                        limit_ns / kNanosPerSecond),
            "Raise the limit if the guest was really away so long, or clamp the gap"};
}

/// The believable gap: what was measured, or a clamped one, or the reason why not.
tl::expected<Gap, GapError> believe(const Measured& measured, const PlanOptions& options,
                                    std::vector<std::string>& notes) {
    Gap gap;
    gap.by = measured.by;
    gap.bound_ns = measured.bound_ns;
    gap.converted = measured.by != ElapsedBy::kHostCounter;
    gap.clocks = measured.clocks;
    // No limit lets through what 63 bits of ns (292 years) cannot hold.
    const i128 limit = static_cast<i128>(std::min(options.gap_limit_ns, kGapNsMax));
    i128 taken = measured.ns;
    if (taken < 0 || taken > limit) {
        // A gap that is negative by no more than it may be off cannot be told from zero.
        const bool within_bound = gap.converted && measured.ns < 0 &&
                                  -measured.ns <= static_cast<i128>(measured.bound_ns);
        if (!within_bound && !options.clamp_gap)
            return tl::unexpected(measured.ns < 0
                                      ? negative(size_of(measured.ns), gap.by)
                                      : absurd(size_of(measured.ns), options.gap_limit_ns));
        taken = measured.ns < 0 ? 0 : limit;
        gap.clamped = true;
        if (!within_bound) {
            // The bounds hold the true gap about what was measured; this one is that much off it.
            const std::uint64_t clamp = size_of(measured.ns - taken);
            gap.bound_ns = sum_of({gap.bound_ns, clamp});
            gap.clocks.add(BoundSource::kClamp, clamp);
        }
        if (!gap.converted) gap.clocks.add(BoundSource::kRounding, 1);
        gap.converted = true;
        notes.push_back(fmt::format(
            "the gap was measured as {} and is taken as {} ({})", signed_ns(measured.ns),
            signed_ns(taken), within_bound ? "within the bound of that" : "clamped as asked"));
    }
    gap.length = Nanos<Tai>::from_raw(time::sat_i64(taken));
    return gap;
}

}  // namespace

tl::expected<Gap, GapError> measure_gap(const Record& record, const Destination& destination,
                                        const PlanOptions& options, Count<HostCounter> resume_at,
                                        std::vector<std::string>& notes) {
    GapMeasures measures;
    const auto measured = [&]() -> tl::expected<Measured, GapError> {
        if (!destination.same_boot)
            return between_hosts(record, destination, options.policy, resume_at, measures, notes);
        if (ran_throughout(record.anchor.suspended_ns, destination.anchor.suspended_ns))
            return by_host_counter(record, destination, resume_at);
        note_suspended(record.anchor.suspended_ns, destination.anchor.suspended_ns, notes);
        const Measured tai = by_tai(record, after_suspend(record, destination), resume_at, notes);
        measures.by_tai = tai.report();
        return tai;
    }();
    if (!measured) return tl::unexpected(measured.error());
    auto gap = believe(*measured, options, notes);
    if (gap) gap->measures = measures;
    return gap;
}

}  // namespace continuo::state
