// Has the guest's NTP daemon forget what it measured before the gap and measure anew. Asking and
// hearing the answer are two calls, so that readers of REALTIME do not wait for a daemon.
#pragma once

#include <cstdint>

#include "chrony.h"
#include "system.h"
#include "text.h"

namespace continuo::guest {

enum class Daemon : std::uint8_t {
    kAuto,       ///< whichever is there, in this order
    kChrony,     ///< by its command socket
    kTimesyncd,  ///< nothing to be said: it watches TFD_TIMER_CANCEL_ON_SET itself
    kNtpd,       ///< restarted: it takes requests only from those who have a key
    kNone,
};

class NtpDaemon {
  public:
    using Report = Text<256>;

    NtpDaemon(System& system, Daemon daemon, const char* chrony_socket)
        : system_{system}, daemon_{daemon}, chrony_socket_{chrony_socket} {}

    /// Asks; what failed is told by finish().
    void ask();
    /// Hears the answer, at most for a second. Returns whether the daemon does as asked, and says
    /// in `report` what it was asked and what it answered. A daemon that is not there is no
    /// failure.
    bool finish(Report& report);

  private:
    Daemon present();
    void ask_chrony();
    void send(chrony::Command command);
    bool finish_chrony(Report& report);
    /// 0, -errno, or chronyd's status.
    int hear(chrony::Command command, std::uint32_t sequence);
    void hang_up();

    System& system_;
    Daemon daemon_;
    const char* chrony_socket_;
    Daemon asked_ = Daemon::kNone;
    Text<128> own_path_;
    int socket_ = -1;
    int error_ = 0;  ///< of asking
    std::uint32_t sequence_ = 0;
};

}  // namespace continuo::guest
