// The agent's kernel: Linux, by libc.
#pragma once

#include "system.h"

namespace continuo::guest {

class LinuxSystem final : public System {
  public:
    int clock_ns(int clock, std::int64_t& ns) override;
    int adjust(timex& request) override;
    std::uint64_t counter() override;
    int watch_clock() override;
    int rewatch_clock(int fd) override;
    int wait(pollfd* fds, unsigned count, int timeout_ms) override;
    int open(const char* path, int flags) override;
    int map(int fd, std::uint64_t offset, std::size_t size, bool writable, void*& at) override;
    int read(int fd, void* to, std::size_t size) override;
    int write(int fd, const void* from, std::size_t size) override;
    int close(int fd) override;
    int rename(const char* from, const char* to) override;
    int remove(const char* path) override;
    bool exists(const char* path) override;
    int connect_datagram(const char* own_path, const char* peer_path) override;
    int send(int fd, const void* from, std::size_t size) override;
    int receive(int fd, void* to, std::size_t size, int timeout_ms) override;
    int run(const char* const* arguments) override;
    int process_id() override;
    void log(const char* text, std::size_t size) override;
};

}  // namespace continuo::guest
