#include "ntp_daemon.h"

#include <cerrno>

namespace continuo::guest {
namespace {

constexpr int kReplyTimeoutMs = 1000;
/// chronyd's answer to a burst where all its sources are reference clocks, or it has none:
/// STT_NOSUCHSOURCE.
constexpr int kNoSuchSource = 4;
constexpr char kTimesyncdState[] = "/run/systemd/timesync";
constexpr char kNtpdPid[] = "/run/ntpd.pid";

/// The folder of a path, with its slash.
Text<128> folder(const char* path) {
    const char* end = path;
    for (const char* c = path; *c != '\0'; ++c)
        if (*c == '/') end = c + 1;
    Text<128> text;
    char one[2] = {};
    for (const char* c = path; c != end; ++c) {
        one[0] = *c;
        text << one;
    }
    return text;
}

}  // namespace

Daemon NtpDaemon::present() {
    if (daemon_ != Daemon::kAuto) return daemon_;
    if (system_.exists(chrony_socket_)) return Daemon::kChrony;
    if (system_.exists(kTimesyncdState)) return Daemon::kTimesyncd;
    if (system_.exists(kNtpdPid)) return Daemon::kNtpd;
    return Daemon::kNone;
}

void NtpDaemon::ask() {
    hang_up();  // a pass that was overtaken may have asked before
    error_ = 0;
    asked_ = present();
    if (asked_ == Daemon::kChrony) ask_chrony();
}

void NtpDaemon::ask_chrony() {
    // Bound in chronyd's own folder, where no stranger can put anything; the process's id is in the
    // name, so what lies there was left by a process that is gone.
    own_path_ = folder(chrony_socket_);
    own_path_ << "continuo-agent." << system_.process_id() << ".sock";
    system_.remove(own_path_.c_str());
    socket_ = system_.connect_datagram(own_path_.c_str(), chrony_socket_);
    if (socket_ < 0) {
        error_ = socket_;
        return;
    }
    send(chrony::Command::kResetSources);
    send(chrony::Command::kBurst);
}

void NtpDaemon::send(chrony::Command command) {
    if (error_ != 0) return;
    const chrony::Request request = chrony::request(command, ++sequence_);
    const int sent = system_.send(socket_, request.bytes, request.size);
    if (sent != static_cast<int>(request.size)) error_ = sent < 0 ? sent : -EMSGSIZE;
}

bool NtpDaemon::finish(Report& report) {
    const Daemon asked = asked_;
    asked_ = Daemon::kNone;
    switch (asked) {
        case Daemon::kChrony:
            return finish_chrony(report);
        case Daemon::kTimesyncd:
            report << "timesyncd sees the step itself";
            return true;
        case Daemon::kNtpd: {
            const char* const restart[] = {"/usr/bin/systemctl", "--no-block",  "try-restart",
                                           "ntpsec.service",     "ntp.service", nullptr};
            const int status = system_.run(restart);
            report << "ntpd: restart " << (status == 0 ? "asked for" : "failed: ");
            if (status != 0) report << status;
            return status == 0;
        }
        case Daemon::kAuto:
        case Daemon::kNone:
            break;
    }
    report << "no NTP daemon";
    return true;
}

bool NtpDaemon::finish_chrony(Report& report) {
    int reset = error_;
    int burst = error_;
    if (error_ == 0) {
        reset = hear(chrony::Command::kResetSources, sequence_ - 1);
        burst = hear(chrony::Command::kBurst, sequence_);
    }
    hang_up();
    report << "chronyd: reset sources ";
    if (reset == 0)
        report << "done";
    else
        report << "failed: " << reset;
    report << ", burst ";
    if (burst == 0)
        report << "done";
    else if (burst == kNoSuchSource)
        report << "not needed, no NTP source";
    else
        report << "failed: " << burst;
    return reset == 0 && (burst == 0 || burst == kNoSuchSource);
}

int NtpDaemon::hear(chrony::Command command, std::uint32_t sequence) {
    for (int others = 0; others < 8; ++others) {
        std::uint8_t bytes[512];
        const int size = system_.receive(socket_, bytes, sizeof(bytes), kReplyTimeoutMs);
        if (size < 0) return size;
        const chrony::Judged judged =
            chrony::judge(command, sequence, bytes, static_cast<std::size_t>(size));
        if (judged.reply == chrony::Reply::kDone) return 0;
        if (judged.reply == chrony::Reply::kRefused) return judged.status;
    }
    return -EPROTO;
}

void NtpDaemon::hang_up() {
    if (socket_ >= 0) {
        system_.close(socket_);
        system_.remove(own_path_.c_str());
    }
    socket_ = -1;
}

}  // namespace continuo::guest
