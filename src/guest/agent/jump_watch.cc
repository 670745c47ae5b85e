#include "jump_watch.h"

#include <time.h>

#include "continuo/guest/page_access.h"

namespace continuo::guest {
namespace {

constexpr std::int64_t kLearnNs = 1'000'000'000;
/// What a pair of readings may be apart on a busy machine, and what two rates may differ.
constexpr std::int64_t kNoiseNs = 50'000'000;
constexpr std::int64_t kDriftPart = 10'000;  // 100 ppm

}  // namespace

bool JumpWatch::read(Pair& pair) {
    const std::uint64_t before = system_.counter();
    if (system_.clock_ns(CLOCK_MONOTONIC_RAW, pair.raw_ns) != 0) return false;
    pair.counter = before + (system_.counter() - before) / 2;
    return true;
}

std::int64_t JumpWatch::look() {
    Pair now{};
    if (!read(now)) return 0;
    if (!started_) {
        started_ = true;
        last_ = now;
        return 0;
    }
    const Pair span{now.counter - last_.counter, now.raw_ns - last_.raw_ns};
    if (rate_.counter == 0) {
        if (span.raw_ns < kLearnNs) return 0;
        rate_ = span;
        last_ = now;
        return 0;
    }
    last_ = now;
    if (static_cast<std::int64_t>(span.counter) < 0)
        return 0;  // it went back: nothing to compare by
    const continuo_u128 product =
        static_cast<continuo_u128>(span.counter) * static_cast<std::uint64_t>(rate_.raw_ns);
    const auto by_counter = static_cast<std::int64_t>(product / rate_.counter);
    const std::int64_t behind = by_counter - span.raw_ns;
    const std::int64_t allowed = kNoiseNs + by_counter / kDriftPart;
    return behind > allowed || behind < -allowed ? behind : 0;
}

}  // namespace continuo::guest
