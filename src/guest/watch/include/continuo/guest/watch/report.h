// What `continuo watch` has found: plain data, of bounded size however long it ran.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string_view>
#include <vector>

#include "continuo/guest/watch/line_fit.h"
#include "continuo/guest/watch/reading.h"

namespace continuo::guest::watch {

/// Every line that is followed. The first five are Clock's, in its order.
enum class Track : std::uint8_t {
    kMonotonic,
    kMonotonicRaw,
    kBoottime,
    kRealtime,
    kTai,
    kKvmclock,  ///< the page
    kVmclock,   ///< the page: the host's TAI
    kPhc,       ///< the host's REALTIME through a PTP clock
    kCounter,   ///< TSC or CNTVCT itself
};
inline constexpr std::size_t kTracks = 9;
inline constexpr Track track_of(Clock clock) {
    return static_cast<Track>(clock);
}
/// "CLOCK_MONOTONIC", ..., "kvmclock", "vmclock", "phc", "counter"
std::string_view name(Track track);

/// Why something is an event.
enum class Reason : std::uint8_t {
    kStop,         ///< no CPU ran for a while
    kStep,         ///< a clock left its line, and stayed off it
    kRate,         ///< a clock left its line by going at another rate
    kBackward,     ///< a clock that must not, or the counter, went backwards within a CPU
    kDisruption,   ///< vmclock's disruption marker or generation changed
    kNotice,       ///< a time travel was told in the notice page
    kRepublished,  ///< kvmclock's page was written anew
    kReference,    ///< the host's clock left its line as the guest sees it
    kSkew,         ///< a CPU's counter moved against the first CPU's
};
inline constexpr std::size_t kReasons = 9;
std::string_view name(Reason reason);

class ReasonSet {
  public:
    constexpr void add(Reason reason) { bits_ |= bit(reason); }
    constexpr void add(ReasonSet other) { bits_ |= other.bits_; }
    constexpr void remove(Reason reason) { bits_ &= ~bit(reason); }
    constexpr bool has(Reason reason) const { return (bits_ & bit(reason)) != 0; }
    constexpr bool empty() const { return bits_ == 0; }
    constexpr bool only(Reason reason) const { return bits_ == bit(reason); }

  private:
    static constexpr std::uint32_t bit(Reason reason) {
        return std::uint32_t{1} << static_cast<unsigned>(reason);
    }
    std::uint32_t bits_ = 0;
};

/// How a seam was found.
enum class Method : std::uint8_t {
    kLines,   ///< two sets of lines through bracketed readings
    kOffset,  ///< MONOTONIC's seam, and the change of the clock's offset from it
    kPage,    ///< the page is the line
};
std::string_view name(Method method);

/// What an event did to a clock.
struct Seam {
    Method method{};
    /// Its line after the event less its line before it, at the event: it lies in here.
    NanosInterval seam;
    /// False where the CPUs' intervals exclude each other; `seam` then holds them all.
    bool cpus_agree = true;
    /// How much of the host's time it did not count (negative: counted too much). Needs a
    /// reference: vmclock, or a PTP clock.
    std::optional<NanosInterval> lost;
    /// From the last reading before to the first one after.
    Nanos jump;
};

/// A CPU's counter against the first CPU's: ahead of it by something in here.
using SkewInterval = time::Interval<time::GuestCounter>;
struct CpuSkew {
    std::uint32_t cpu = 0;
    std::optional<SkewInterval> before, after;
};

/// For the page: where readings lay beside the line from before the event.
struct Residual {
    std::int64_t at_ns;  ///< since the event
    std::int64_t lo_ns, hi_ns;
};
struct Picture {
    std::vector<Residual> monotonic, monotonic_raw;
};

struct Event {
    std::uint64_t number = 0;  ///< from 1
    ReasonSet reasons;
    Count from, to;    ///< it lies between these counter values
    Nanos at;          ///< CLOCK_MONOTONIC_RAW since the watch began, at the first reading after it
    Instant realtime;  ///< CLOCK_REALTIME then
    std::uint32_t cpus = 0;  ///< that noticed it
    /// From the last reading before to the first one after, on the CPU where that is least; by
    /// `blackout_by`: the stop was no longer.
    std::optional<Nanos> blackout;
    Track blackout_by = Track::kMonotonicRaw;
    /// Of a step alone, since the last stop or disruption: for a repair, how long a clock stood
    /// wrong.
    std::optional<Nanos> since_stop;
    std::optional<Track> reference;
    std::array<std::optional<Seam>, kTracks> seams;
    std::vector<CpuSkew> skew;
    Picture picture;

    const std::optional<Seam>& of(Track track) const {
        return seams[static_cast<std::size_t>(track)];
    }
};

/// A change of the kernel's NTP state.
struct NtpChange {
    Nanos at;
    NtpState before, after;
};

/// A reading that was below one that was finished before it began.
struct Backward {
    Track track{};
    Nanos at;
    std::uint32_t first_cpu = 0, second_cpu = 0;
    std::uint64_t first_value = 0, second_value = 0;
    Count first_after;       ///< the counter after the first reading, on its CPU
    Count second_before;     ///< before the second one, on its own
    std::uint64_t size = 0;  ///< ns; ticks for the counter
};

struct TrackReport {
    std::uint64_t readings = 0;
    Nanos largest_jump;
    std::uint64_t backward_within = 0, backward_across = 0;
    std::optional<Backward> worst_backward;
    std::uint64_t steps = 0;
    /// All seams together.
    NanosInterval seam_sum;
    /// Rate against CLOCK_MONOTONIC_RAW over the last whole stretch, 10^-9.
    std::optional<std::int64_t> rate_ppb;
};

struct CpuReport {
    std::uint32_t cpu = 0;
    std::uint64_t passes = 0;
    Nanos longest_hole;
    std::uint64_t holes = 0;  ///< at least as long as the threshold, other CPUs ran meanwhile
    std::optional<SkewInterval> skew;  ///< now
    std::uint64_t exchanges = 0;
};

/// The clocks less MONOTONIC_RAW, from 0 at the start, over time; MONOTONIC_RAW itself and the
/// counter are left out.
struct TimelineBin {
    std::int64_t at_ns = 0;
    std::array<std::optional<std::int64_t>, kTracks> offset_ns;
    std::int64_t longest_hole_ns = 0;
};

struct Report {
    Nanos ran;
    std::uint64_t passes = 0, exchanges = 0, lost_passes = 0;
    /// Left out because the host wrote a page meanwhile, or because they took over 1 ms.
    std::uint64_t torn_passes = 0;
    std::int64_t pass_ns_min = 0, pass_ns_mean = 0, pass_ns_max = 0;
    /// ticks in ns; how fast the counter runs by MONOTONIC_RAW.
    std::optional<Slope> rate;
    std::array<TrackReport, kTracks> tracks;
    std::vector<CpuReport> cpus;
    std::uint64_t events_total = 0;
    std::deque<Event> events;  ///< the first and the last ones
    std::uint64_t ntp_total = 0;
    std::vector<NtpChange> ntp_changes;
    std::optional<NtpState> ntp;
    std::uint64_t mappings = 0;  ///< of the vmclock page, without a disruption
    std::uint64_t largest_mapping_step_ns = 0;
    std::vector<TimelineBin> timeline;

    const TrackReport& of(Track track) const { return tracks[static_cast<std::size_t>(track)]; }
    TrackReport& of(Track track) { return tracks[static_cast<std::size_t>(track)]; }
};

}  // namespace continuo::guest::watch
