#include "continuo/guest/watch/tracks.h"

#include <algorithm>
#include <span>

namespace continuo::guest::watch {

namespace {

/// ns that MONOTONIC goes on over so many ticks, at least and at most.
NanosInterval rise(const LineFit& monotonic, Ticks run) {
    const LineFit::Range from = monotonic.at(monotonic.anchor());
    const LineFit::Range to = monotonic.at(monotonic.anchor() + run);
    // The width at the anchor is not the rise's. The kernel may have steered MONOTONIC off these
    // slopes by now, by at most 500 ppm (MAXFREQ): 2^-10 of the way is more.
    const NanosInterval by_slope{to.lo - from.lo, to.hi - from.hi};
    return by_slope + NanosInterval::around_zero(by_slope.radius() >> 10U);
}

}  // namespace

Nanos Steering::allowed(Nanos distance) const {
    if (!drift_shift) return slack;
    const std::uint64_t drift = (distance.magnitude() >> *drift_shift) + 1;
    return slack + Nanos::from_raw(static_cast<std::int64_t>(drift));
}

Nanos LineTrack::contradiction(const Bracket& reading) const {
    if (!fit_) return {};
    const Nanos distance = reading.at - fit_->at(fit_->anchor()).lo;
    return fit_->contradiction(reading, steering_.allowed(distance));
}

void LineTrack::add(const Bracket& reading) {
    if (narrowest_ && slot_is_over(reading)) {
        keep(*narrowest_);
        narrowest_.reset();
    }
    if (!narrowest_) slot_begin_ = reading.at;
    if (!narrowest_ || reading.after - reading.before < narrowest_->after - narrowest_->before)
        narrowest_ = reading;
}

/// The first readings are all kept, so that a line is soon known.
bool LineTrack::slot_is_over(const Bracket& reading) const {
    if (kept_.size() < kFirst) return true;
    const Nanos slot = Nanos::from_raw(window_.raw() / static_cast<std::int64_t>(kSlots));
    const Nanos passed = reading.at - slot_begin_;
    return passed >= slot || passed < Nanos{};
}

void LineTrack::keep(const Bracket& reading) {
    kept_.push_back(reading);
    if (beginning_.size() < kSlots) beginning_.push_back(reading);
    if (kept_.size() > kSlots) kept_.pop_front();
    ++since_fit_;
    // A fit costs the square of its readings; a line that is a quarter of a window old will do.
    const bool young = kept_.size() < kSlots;
    if (young ? since_fit_ * 2 >= kept_.size() : since_fit_ >= kSlots / 4) refit();
}

void LineTrack::refit() {
    since_fit_ = 0;
    const std::vector<Bracket> all{kept_.begin(), kept_.end()};
    if (auto fit = fit_last(all, steering_.slack)) fit_ = fit;
}

std::vector<Bracket> LineTrack::readings() const {
    std::vector<Bracket> all{kept_.begin(), kept_.end()};
    if (narrowest_) all.push_back(*narrowest_);
    return all;
}

void LineTrack::close(bool broken) {
    kept_.clear();
    beginning_.clear();
    narrowest_.reset();
    since_fit_ = 0;
    if (broken) fit_.reset();
}

std::vector<Bracket> LineTrack::beginning() const {
    std::vector<Bracket> all = beginning_;
    if (narrowest_ && all.size() < kSlots) all.push_back(*narrowest_);
    return all;
}

// c = other(x) - MONOTONIC(x) is a whole number, and both clocks are floored from the same
// fraction. The clock was read at some x in its bracket, MONOTONIC at some x' in its own, and
// between them MONOTONIC went on by what its slope allows.
NanosInterval OffsetTrack::offset_in(const Pass& pass, Clock clock, const LineFit& monotonic) {
    const Bracket& base = pass.of(Clock::kMonotonic);
    const Bracket& other = pass.of(clock);
    const Nanos difference = Nanos::from_raw((other.at - base.at).raw());
    const NanosInterval most = rise(monotonic, other.after - base.before);
    const NanosInterval least = rise(monotonic, other.before - base.after);
    return {difference - most.hi(), difference - least.lo()};
}

bool OffsetTrack::contradicts(NanosInterval offset) const {
    return offset_ && !intersection(*offset_, offset);
}

void OffsetTrack::add(NanosInterval offset) {
    const auto both = offset_ ? intersection(*offset_, offset) : std::optional{offset};
    if (both) offset_ = both;
}

}  // namespace continuo::guest::watch
