#include <array>

#include "continuo/guest/watch/report.h"

namespace continuo::guest::watch {

std::string_view name(Clock clock) {
    return name(track_of(clock));
}

std::string_view name(Track track) {
    constexpr std::array<std::string_view, kTracks> names{"CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW",
                                                          "CLOCK_BOOTTIME",  "CLOCK_REALTIME",
                                                          "CLOCK_TAI",       "kvmclock",
                                                          "vmclock",         "phc",
                                                          "counter"};
    return names[static_cast<std::size_t>(track)];
}

std::string_view name(Reason reason) {
    constexpr std::array<std::string_view, kReasons> names{"stop",        "step",       "rate",
                                                           "backward",    "disruption", "notice",
                                                           "republished", "reference",  "skew"};
    return names[static_cast<std::size_t>(reason)];
}

std::string_view name(Method method) {
    constexpr std::array<std::string_view, 3> names{"lines", "offset", "page"};
    return names[static_cast<std::size_t>(method)];
}

}  // namespace continuo::guest::watch
