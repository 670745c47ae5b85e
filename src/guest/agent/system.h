// Everything that the agent asks of its kernel, behind one interface, so that tests can stand in
// for it and fail each call. Every method returns what the system call returned, or -errno.
#pragma once

#include <poll.h>
#include <sys/timex.h>

#include <cstddef>
#include <cstdint>

namespace continuo::guest {

class System {
  public:
    System(const System&) = delete;
    System& operator=(const System&) = delete;

    // -- clocks --
    virtual int clock_ns(int clock, std::int64_t& ns) = 0;
    /// adjtimex(2).
    virtual int adjust(timex& request) = 0;
    virtual std::uint64_t counter() = 0;

    // -- what wakes the agent --
    /// A descriptor that becomes readable when somebody sets CLOCK_REALTIME
    /// (TFD_TIMER_CANCEL_ON_SET).
    virtual int watch_clock() = 0;
    /// Makes it wait for the next time.
    virtual int rewatch_clock(int fd) = 0;
    /// poll(2); timeout_ms < 0: until something happens.
    virtual int wait(pollfd* fds, unsigned count, int timeout_ms) = 0;

    // -- files --
    virtual int open(const char* path, int flags) = 0;
    virtual int map(int fd, std::uint64_t offset, std::size_t size, bool writable, void*& at) = 0;
    virtual int read(int fd, void* to, std::size_t size) = 0;
    virtual int write(int fd, const void* from, std::size_t size) = 0;
    virtual int close(int fd) = 0;
    virtual int rename(const char* from, const char* to) = 0;
    virtual int remove(const char* path) = 0;
    virtual bool exists(const char* path) = 0;

    // -- NTP daemons --
    /// A datagram socket bound to own_path, which anybody may write to, connected to peer_path.
    virtual int connect_datagram(const char* own_path, const char* peer_path) = 0;
    /// Never blocks.
    virtual int send(int fd, const void* from, std::size_t size) = 0;
    /// -ETIMEDOUT where nothing came in time.
    virtual int receive(int fd, void* to, std::size_t size, int timeout_ms) = 0;
    /// Runs a program to its end: its exit status.
    virtual int run(const char* const* arguments) = 0;
    virtual int process_id() = 0;

    /// One line for the journal, without its newline.
    virtual void log(const char* text, std::size_t size) = 0;

  protected:
    System() = default;
    // Nobody owns a System through this class: no virtual destructor, and so no operator delete.
    ~System() = default;
};

}  // namespace continuo::guest
