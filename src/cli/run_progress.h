// Progress of many runs on stderr, on one line that is written over; nothing where stderr is no
// terminal.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace continuo::cli {

/// One thread at a time.
class RunProgress {
  public:
    ~RunProgress() { end(); }

    /// "continuo: 123456 of 1000000 runs, 12%", at most some ten times a second.
    void show_share(std::string_view what, std::uint64_t done, std::uint64_t all) {
        if (!due() && done < all) return;
        show(fmt::format("{} of {} {}, {}%", done, all, what, all == 0 ? 100 : done * 100 / all));
    }
    void show(const std::string& text) {
        if (!terminal_) return;
        std::fprintf(stderr, "\rcontinuo: %s\033[K", text.c_str());
        std::fflush(stderr);
        shown_ = true;
    }
    /// Leaves the line empty.
    void end() {
        if (shown_) std::fputs("\r\033[K", stderr);
        shown_ = false;
    }

  private:
    using Clock = std::chrono::steady_clock;

    bool due() {
        if (!terminal_) return false;
        const Clock::time_point now = Clock::now();
        if (now - last_ < std::chrono::milliseconds{100}) return false;
        last_ = now;
        return true;
    }

    bool terminal_ = isatty(STDERR_FILENO) == 1;
    bool shown_ = false;
    Clock::time_point last_{};
};

}  // namespace continuo::cli
