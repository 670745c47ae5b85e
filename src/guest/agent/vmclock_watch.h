// What vmclock says of a gap to an agent that has no notice page: that there was one, and, where
// the page holds TAI, how far REALTIME stands from where it should.
#pragma once

#include <cstdint>

#include "continuo/guest/vmclock_reader.h"
#include "system.h"

namespace continuo::guest {

class VmclockWatch {
  public:
    enum class Found : std::uint8_t { kNothing, kDisrupted };
    struct Disruption {
        Found found;
        bool measured;          ///< the two below mean something
        std::int64_t delta_ns;  ///< to be added to REALTIME; 0 where it is right within bound_ns
        std::uint64_t bound_ns;
    };

    VmclockWatch(System& system, const continuo_vmclock_page& page) : system_{system}, page_{page} {
        settle();
    }

    /// Whether the disruption marker has changed since settle(), and what that did to REALTIME.
    Disruption look();
    /// REALTIME is right, as far as anybody knows, and the marker is seen.
    void settle();

  private:
    /// TAI - REALTIME at one instant.
    struct Difference {
        bool known;
        std::int64_t ns;
        std::uint64_t radius_ns;
    };
    Difference difference();

    System& system_;
    const continuo_vmclock_page& page_;
    std::uint64_t marker_ = 0;
    Difference settled_{false, 0, 0};
};

}  // namespace continuo::guest
