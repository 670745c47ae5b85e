// Where passes come from: the clocks of the CPU that calls.
#pragma once

#include <cstdint>

#include "continuo/guest/watch/reading.h"

namespace continuo::guest::watch {

class ClockSource {
  public:
    ClockSource() = default;
    ClockSource(const ClockSource&) = delete;
    ClockSource& operator=(const ClockSource&) = delete;
    virtual ~ClockSource() = default;

    /// One pass on the CPU that this thread is pinned to; the cpu and what others have seen are the
    /// caller's to fill in. `number` counts this CPU's passes. Called by several threads at once.
    virtual void read(std::uint64_t number, Pass& pass) = 0;
    /// The counter, ordered after everything before it.
    virtual Count counter() = 0;
};

}  // namespace continuo::guest::watch
