// The agent: waits on whatever tells of a gap, and repairs in one pass what the gap broke. Nothing
// wakes it while nothing happens.
#pragma once

#include <poll.h>

#include <cstdint>

#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"
#include "counters.h"
#include "discovery.h"
#include "jump_watch.h"
#include "options.h"
#include "repair.h"
#include "system.h"
#include "vmclock_watch.h"

namespace continuo::guest {

class Agent {
  public:
    Agent(System& system, const Options& options)
        : system_{system},
          options_{options},
          notice_path_{options.notice_path},
          notice_offset_{options.notice_offset},
          wake_path_{options.wake_path},
          repair_{system, options.policy, counters_},
          jumps_{system} {}

    /// Opens what the options name and what there is. False, and said in the journal, where
    /// something that was named is not there or is not what it should be, or nothing could ever
    /// wake the agent.
    bool open();

    /// Handles what is open, and settles. False where a repair failed: its notice stays open.
    bool pass();

    /// Waits once, and handles what came. False where waiting itself failed, or what tells of
    /// notices is gone.
    bool wait();

    const Counters& counters() const { return counters_; }

  private:
    enum Source : std::uint8_t { kWake, kVmclock, kClock, kSources };

    bool open_notice();
    bool find_notice_page();
    bool open_wake();
    bool open_vmclock();
    bool vmclock_can_be_waited_for();
    bool open_clock();
    void empty_wake();
    void* map(const char* what, const char* path, std::uint64_t offset, bool writable, int& fd);
    bool complain(const char* what, const char* path, int error);
    void take(Source source);
    void drop(Source source);
    bool look_at_vmclock();
    bool look_for_jumps();
    void note_clock_set();
    void publish();

    System& system_;
    const Options& options_;
    const char* notice_path_ = nullptr;
    std::uint64_t notice_offset_ = 0;
    const char* wake_path_ = nullptr;
    DevicePath found_wake_;
    Counters counters_;
    Repair repair_;
    JumpWatch jumps_;
    continuo_time_travel_page* notice_ = nullptr;
    const continuo_vmclock_page* vmclock_ = nullptr;
    alignas(VmclockWatch) unsigned char vmclock_watch_storage_[sizeof(VmclockWatch)] = {};
    VmclockWatch* vmclock_watch_ = nullptr;
    pollfd fds_[kSources] = {{-1, POLLIN, 0}, {-1, POLLIN, 0}, {-1, POLLIN, 0}};
    bool clock_set_ = false;
    bool wake_is_uio_ = false;
};

}  // namespace continuo::guest
