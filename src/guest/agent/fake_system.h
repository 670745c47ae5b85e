// A Linux for the agent's tests: clocks that a migration freezes, adjtimex(), chronyd, files; any
// call can fail, and the agent can die before any of them.
#pragma once

#include <sys/timex.h>
#include <time.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "chrony.h"
#include "system.h"

namespace continuo::guest::test {

/// Thrown where the agent dies.
struct Death {};

class FakeSystem final : public System {
  public:
    // -- the world --
    std::int64_t boot_ns = 1'000'000'000'000;
    std::int64_t realtime_offset_ns = 1'700'000'000'000'000'000;  ///< REALTIME - BOOTTIME
    std::int64_t counter_lead_ns = 0;  ///< of the counter (1 GHz) before CLOCK_MONOTONIC_RAW
    int status = STA_PLL;
    long maxerror_us = 1'000;
    long esterror_us = 50;
    bool may_step = true;          ///< CAP_SYS_TIME
    std::uint64_t clock_sets = 0;  ///< that a TFD_TIMER_CANCEL_ON_SET timer would see
    std::vector<std::string> lines;
    std::map<std::string, std::string> files;
    std::map<std::string, void*> pages;
    std::vector<std::vector<std::string>> programs;
    int program_status = 0;
    std::vector<std::uint16_t> chrony_commands;
    std::uint16_t chrony_status = 0;  ///< what chronyd answers
    bool chrony_answers = true;
    bool at_end = false;       ///< what read() reads
    std::vector<short> ready;  ///< revents of the next wait()
    std::uint64_t mapped_offset = 0;
    short vmclock_poll = 0;  ///< what vmclock's device says to a look without waiting
    // -- the test's hand --
    std::function<void()> before_call;  ///< may throw Death
    std::size_t calls = 0;
    std::size_t fail_at = SIZE_MAX;  ///< this call, counted from 0, fails
    int fail_with = EIO;
    std::string failed;  ///< its name

    std::int64_t realtime_ns() const { return boot_ns + realtime_offset_ns; }

    int clock_ns(int clock, std::int64_t& ns) override {
        if (const int error = call("clock_gettime")) return error;
        boot_ns += 40;  // time goes by
        ns = clock == CLOCK_REALTIME ? realtime_ns() : boot_ns;
        return 0;
    }
    int adjust(timex& request) override {
        if (const int error = call("adjtimex")) return error;
        if ((request.modes & ADJ_SETOFFSET) != 0 && !may_step) return -EPERM;
        if ((request.modes & ADJ_SETOFFSET) != 0 && !step(request)) return -EINVAL;
        if ((request.modes & ADJ_STATUS) != 0) status = request.status;
        if ((request.modes & ADJ_NANO) != 0) status |= STA_NANO;
        if ((request.modes & ADJ_MICRO) != 0) status &= ~STA_NANO;
        if ((request.modes & ADJ_MAXERROR) != 0) maxerror_us = request.maxerror;
        if ((request.modes & ADJ_ESTERROR) != 0) esterror_us = request.esterror;
        request.status = status;
        request.maxerror = maxerror_us;
        request.esterror = esterror_us;
        return (status & STA_UNSYNC) != 0 ? TIME_ERROR : TIME_OK;
    }
    std::uint64_t counter() override {
        return static_cast<std::uint64_t>(boot_ns + counter_lead_ns);
    }

    int watch_clock() override { return call("timerfd") ? -fail_with : kClockFd; }
    int rewatch_clock(int) override { return call("timerfd_settime"); }
    int wait(pollfd* fds, unsigned count, int timeout_ms) override {
        if (const int error = call("poll")) return error;
        if (timeout_ms == 0) return (fds[0].revents = vmclock_poll) != 0 ? 1 : 0;
        int some = 0;
        for (unsigned i = 0; i < count; ++i) {
            fds[i].revents = i < ready.size() && fds[i].fd >= 0 ? ready[i] : short{0};
            some += fds[i].revents != 0 ? 1 : 0;
        }
        ready.clear();
        return some;
    }

    int open(const char* path, int) override {
        if (const int error = call("open")) return error;
        open_path_ = path;
        return kFileFd;
    }
    int map(int, std::uint64_t offset, std::size_t, bool, void*& at) override {
        if (const int error = call("mmap")) return error;
        mapped_offset = offset;
        const auto page = pages.find(open_path_);
        if (page == pages.end()) return -ENODEV;
        at = page->second;
        return 0;
    }
    int read(int, void* to, std::size_t size) override {
        if (const int error = call("read")) return error;
        if (open_path_.starts_with("/sys/")) {
            const std::string& text = files[open_path_];
            std::memcpy(to, text.data(), std::min(size, text.size()));
            return static_cast<int>(std::min(size, text.size()));
        }
        return at_end ? 0 : size == 64 ? -EAGAIN : static_cast<int>(size);
    }
    int write(int, const void* from, std::size_t size) override {
        if (const int error = call("write")) return error;
        const std::size_t half = size > 1 ? size / 2 : size;  // the caller must go on
        files[open_path_].append(static_cast<const char*>(from), half);
        return static_cast<int>(half);
    }
    int close(int) override { return call("close"); }
    int rename(const char* from, const char* to) override {
        if (const int error = call("rename")) return error;
        files[to] = files[from];
        files.erase(from);
        return 0;
    }
    int remove(const char* path) override {
        if (const int error = call("unlink")) return error;
        return files.erase(path) != 0 ? 0 : -ENOENT;
    }
    bool exists(const char* path) override { return files.contains(path) || pages.contains(path); }

    int connect_datagram(const char* own_path, const char*) override {
        if (const int error = call("connect")) return error;
        files[own_path];
        return kSocketFd;
    }
    int send(int, const void* from, std::size_t size) override {
        if (const int error = call("send")) return error;
        const auto* bytes = static_cast<const std::uint8_t*>(from);
        chrony_commands.push_back(static_cast<std::uint16_t>(bytes[4] << 8 | bytes[5]));
        if (chrony_answers) replies_.push_back(reply(bytes));
        return static_cast<int>(size);
    }
    int receive(int, void* to, std::size_t size, int) override {
        if (const int error = call("recv")) return error;
        if (replies_.empty()) return -ETIMEDOUT;
        const std::string reply = replies_.front();
        replies_.erase(replies_.begin());
        std::memcpy(to, reply.data(), std::min(size, reply.size()));
        return static_cast<int>(reply.size());
    }
    int run(const char* const* arguments) override {
        if (const int error = call("execve")) return error;
        programs.emplace_back();
        for (; *arguments != nullptr; ++arguments)
            programs.back().emplace_back(*arguments);
        return program_status;
    }
    int process_id() override { return 77; }
    void log(const char* text, std::size_t size) override { lines.emplace_back(text, size); }

    /// The journal as one text.
    std::string journal() const {
        std::string text;
        for (const std::string& line : lines)
            text += line + "\n";
        return text;
    }

  private:
    static constexpr int kFileFd = 3, kClockFd = 4, kSocketFd = 5;

    int call(const char* name) {
        if (before_call) before_call();
        if (calls++ != fail_at) return 0;
        failed = name;
        return -fail_with;
    }
    /// As do_adjtimex(): ns below 10^9, and all that a step forgets.
    bool step(const timex& request) {
        if (request.time.tv_usec < 0 || request.time.tv_usec >= 1'000'000'000) return false;
        const std::int64_t by = request.time.tv_sec * 1'000'000'000 + request.time.tv_usec;
        realtime_offset_ns += by;
        if (by != 0) ++clock_sets;
        status |= STA_UNSYNC;
        maxerror_us = esterror_us = 16'000'000;
        return true;
    }
    std::string reply(const std::uint8_t* request) const {
        std::string bytes(28, '\0');
        bytes[0] = 6;
        bytes[1] = 2;
        bytes[4] = static_cast<char>(request[4]);
        bytes[5] = static_cast<char>(request[5]);
        bytes[8] = static_cast<char>(chrony_status >> 8);
        bytes[9] = static_cast<char>(chrony_status & 0xff);
        for (std::size_t i = 0; i < 4; ++i)
            bytes[16 + i] = static_cast<char>(request[8 + i]);
        return bytes;
    }

    std::string open_path_;
    std::vector<std::string> replies_;
};

}  // namespace continuo::guest::test
