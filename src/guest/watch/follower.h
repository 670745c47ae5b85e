// One CPU's readings: what its clocks have been doing, and whether the next pass breaks with that.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "continuo/guest/watch/analyst.h"
#include "continuo/guest/watch/report.h"
#include "continuo/guest/watch/tracks.h"

namespace continuo::guest::watch {

/// What broke between two passes of a CPU.
struct Breaks {
    ReasonSet reasons;
    /// Only offsets changed: no line is touched.
    bool offsets_only = false;
    /// Nothing but a hole, and a page says that the host has not touched the clocks: no line is
    /// broken.
    bool plain_hole = false;
    /// Every line starts anew.
    bool closes_lines() const { return !offsets_only && !plain_hole; }
    /// A page has told of it, and nothing else has broken.
    bool by_page() const {
        return closes_lines() && !monotonic && !raw && !reasons.has(Reason::kStop) &&
               !reasons.has(Reason::kBackward);
    }
    /// A page that the host writes before any vCPU runs again has told of it, so that every CPU
    /// sees that at once: what a CPU saw without it was before.
    bool announced() const {
        return reasons.has(Reason::kNotice) || reasons.has(Reason::kDisruption);
    }
    /// The lines themselves were left, so that they say nothing any more.
    bool monotonic = false, raw = false, phc = false;
    /// Clocks whose offset from MONOTONIC changed.
    std::array<bool, kClocks> stepped{};
    /// By MONOTONIC or MONOTONIC_RAW, whichever went further.
    Nanos hole;
};

/// What a CPU knew of the clocks on one side of a break.
struct Side {
    std::optional<LineFit> monotonic, raw, phc;
    std::array<std::optional<NanosInterval>, kClocks> offset;
    std::optional<SkewInterval> skew;
    /// For the picture.
    std::vector<Bracket> monotonic_readings, raw_readings;
};

/// What is read on a CPU after a break.
class Aftermath {
  public:
    explicit Aftermath(Nanos window)
        : monotonic_{kSteered, window}, raw_{kUnsteered, window}, phc_{kSteered, window} {}

    /// `slope`: a line of MONOTONIC's rate, for the offsets; without one they are left out.
    void follow(const Pass& pass, const std::optional<LineFit>& slope);
    void follow_skew(const std::optional<SkewInterval>& skew);
    /// Another break: what comes now is of that one.
    void end(const Breaks& now);
    Side side() const;

  private:
    bool lines_ended_ = false;
    std::array<bool, kClocks> offset_ended_{};
    LineTrack monotonic_, raw_, phc_;
    std::array<OffsetTrack, kClocks> offsets_;
    std::optional<SkewInterval> skew_;
};

class CpuFollower {
  public:
    explicit CpuFollower(const Settings& settings);

    const std::optional<Pass>& last() const { return last_; }
    /// Domain: last().
    Breaks breaks_at(const Pass& pass) const;
    /// What was known up to here.
    Side before(const Breaks& breaks) const;
    /// What broke starts anew.
    void close(const Breaks& breaks);
    void follow(const Pass& pass);

    /// Whether the counter can still be where it was.
    bool contradicts(const Exchange& exchange) const;
    void follow(const Exchange& exchange);
    const std::optional<SkewInterval>& skew() const { return skew_; }
    void forget_skew() { skew_.reset(); }

    const LineTrack& line(Clock clock) const {
        return clock == Clock::kMonotonicRaw ? raw_ : monotonic_;
    }

  private:
    void look_at_order(const Pass& pass, Breaks& breaks) const;
    void look_at_lines(const Pass& pass, Breaks& breaks) const;
    void look_at_offsets(const Pass& pass, Breaks& breaks) const;
    void look_at_pages(const Pass& pass, Breaks& breaks) const;

    Settings settings_;
    std::optional<Pass> last_;
    LineTrack monotonic_, raw_, phc_;
    std::array<OffsetTrack, kClocks> offsets_;
    std::optional<SkewInterval> skew_;
};

/// The clocks that are MONOTONIC and an offset.
inline constexpr std::array kOffsetClocks{Clock::kBoottime, Clock::kRealtime, Clock::kTai};

/// TAI by a vmclock page; nullopt where it has none at that counter value.
std::optional<Instant> vmclock_at(const continuo_vmclock_words& words, Count counter);
/// What the second page says more than the first, from one counter value to the other.
std::optional<NanosInterval> vmclock_seam(const continuo_vmclock_words& before,
                                          const continuo_vmclock_words& after, Count from,
                                          Count to);
/// Both say the same of every counter value.
bool same_mapping(const continuo_vmclock_words& a, const continuo_vmclock_words& b);

}  // namespace continuo::guest::watch
