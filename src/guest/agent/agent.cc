#include "agent.h"

#include <errno.h>
#include <fcntl.h>

#include <initializer_list>
#include <new>

#include "text.h"

namespace continuo::guest {
namespace {

constexpr std::size_t kPage = 4096;

using Line = Text<512>;

void log(System& system, const Line& line) {
    system.log(line.c_str(), line.size());
}

bool begins_with(const char* text, const char* start) {
    for (; *start != '\0'; ++start, ++text)
        if (*text != *start) return false;
    return true;
}

}  // namespace

bool Agent::complain(const char* what, const char* path, int error) {
    ++counters_.failures;
    Line line;
    line << what << " " << path << ": errno " << -error;
    log(system_, line);
    return false;
}

void* Agent::map(const char* what, const char* path, std::uint64_t offset, bool writable, int& fd) {
    fd = system_.open(path, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK);
    if (fd < 0) {
        complain(what, path, fd);
        return nullptr;
    }
    void* at = nullptr;
    const int error = system_.map(fd, offset, kPage, writable, at);
    if (error == 0) return at;
    system_.close(fd);
    fd = -1;
    complain(what, path, error);
    return nullptr;
}

bool Agent::open() {
    if (!open_notice() || !open_wake() || !open_vmclock() || !open_clock()) return false;
    if (notice_ != nullptr && !options_.once && fds_[kWake].fd < 0 && fds_[kVmclock].fd < 0 &&
        options_.check_every_s == 0) {
        Line line;
        line << "nothing tells of notices in " << notice_path_
             << ": give --wake, a vmclock that notifies, or --check-every";
        log(system_, line);
        return false;
    }
    if (notice_ != nullptr) repair_.resume(*notice_);
    repair_.begin();
    return true;
}

bool Agent::open_notice() {
    if (options_.discover && !find_notice_page()) return false;
    if (notice_path_ == nullptr) return true;
    int fd = -1;
    void* at = map("notice page", notice_path_, notice_offset_, true, fd);
    // One that was only found may be closed to the agent: vmclock tells of gaps, too.
    if (at == nullptr) return options_.notice_path == nullptr;
    system_.close(fd);
    auto* page = static_cast<continuo_time_travel_page*>(at);
    if (continuo_travel_page_valid(page) == 0) {
        Line line;
        line << notice_path_ << " is no notice page: magic " << std::uint64_t{page->magic}
             << ", version " << std::uint64_t{page->version} << ", size "
             << std::uint64_t{page->size};
        log(system_, line);
        return false;
    }
    notice_ = page;
    return true;
}

bool Agent::find_notice_page() {
    const FoundNotice found = find_notice(system_);
    if (!found.device) return true;
    if (found.page == kNoPage) {
        Line line;
        line << "the device CTNO0001 does not say where its page is: give --notice, or none";
        log(system_, line);
        return false;
    }
    notice_path_ = "/dev/mem";
    notice_offset_ = found.page;
    return true;
}

bool Agent::open_wake() {
    if (wake_path_ == nullptr && notice_ != nullptr && options_.discover) {
        found_wake_ = find_wake(system_);
        if (found_wake_.size() != 0) wake_path_ = found_wake_.c_str();
    }
    if (wake_path_ == nullptr) return true;
    // For writing too: a UIO device is armed so, and a FIFO without a writer would be at its end.
    fds_[kWake].fd = system_.open(wake_path_, O_RDWR | O_NONBLOCK | O_NOCTTY);
    if (fds_[kWake].fd >= 0) {
        wake_is_uio_ = begins_with(wake_path_, "/dev/uio");
        if (wake_is_uio_) {
            const std::uint32_t arm = 1;
            system_.write(fds_[kWake].fd, &arm, sizeof(arm));
        }
        return true;
    }
    return complain("wake", wake_path_, fds_[kWake].fd);
}

bool Agent::open_vmclock() {
    const char* const path = options_.vmclock_path;
    if (path == nullptr || (!options_.vmclock_named && !system_.exists(path))) return true;
    int fd = -1;
    void* at = map("vmclock", path, 0, false, fd);
    // One that was only hoped for may be closed to the agent.
    if (at == nullptr) return !options_.vmclock_named;
    vmclock_ = static_cast<const continuo_vmclock_page*>(at);
    vmclock_watch_ = ::new (vmclock_watch_storage_) VmclockWatch{system_, *vmclock_};
    fds_[kVmclock].fd = fd;
    // A line that was found is woken by notices alone; vmclock's notification by each new mapping.
    if (found_wake_.size() != 0 || !vmclock_can_be_waited_for()) {
        system_.close(fd);
        fds_[kVmclock].fd = -1;
    }
    return true;
}

// A device whose host never notifies hangs up at once; the driver's first releases have no poll(2),
// and what has none is always readable. A host that writes the page meanwhile is read again.
bool Agent::vmclock_can_be_waited_for() {
    constexpr int kLooks = 3;
    for (int i = 0; i < kLooks; ++i) {
        take(kVmclock);
        pollfd& fd = fds_[kVmclock];
        if (fd.fd < 0) return true;  // and said
        const int ready = system_.wait(&fd, 1, 0);
        const short events = fd.revents;
        fd.revents = 0;
        if (ready <= 0) return true;
        if ((events & POLLIN) == 0) break;
    }
    return false;
}

bool Agent::open_clock() {
    const int fd = system_.watch_clock();
    if (fd < 0) return complain("timerfd", "CLOCK_REALTIME", fd);
    fds_[kClock].fd = fd;
    return true;
}

bool Agent::wait() {
    const int timeout =
        options_.check_every_s == 0 ? -1 : static_cast<int>(options_.check_every_s) * 1000;
    const int ready = system_.wait(fds_, kSources, timeout);
    repair_.begin();
    if (ready == -EINTR) return true;
    if (ready < 0) return complain("poll", "", ready);
    ++counters_.wakeups;
    for (const Source source : {kWake, kVmclock, kClock}) {
        const short events = fds_[source].revents;
        fds_[source].revents = 0;
        if ((events & POLLIN) != 0)
            take(source);
        else if (events != 0)
            drop(source);
    }
    pass();
    // Deaf to notices it is of no use: whoever has started it starts it again.
    if (wake_path_ != nullptr) return fds_[kWake].fd >= 0;
    return notice_ == nullptr || fds_[kVmclock].fd >= 0 || options_.check_every_s != 0;
}

// Empties a source, so that it is quiet until the next time.
void Agent::take(Source source) {
    const int fd = fds_[source].fd;
    if (source == kClock) {
        clock_set_ = true;
        const int error = system_.rewatch_clock(fd);
        if (error < 0) drop(kClock);
        return;
    }
    if (source == kWake) {
        empty_wake();
        return;
    }
    // vmclock's driver takes the page for seen when it was read.
    continuo_vmclock_page page;
    if (system_.read(fd, &page, sizeof(page)) < 0) drop(source);
}

void Agent::empty_wake() {
    const int fd = fds_[kWake].fd;
    if (wake_is_uio_) {
        // It gives the count of its interrupts, and is armed by writing 1; one that arms itself
        // refuses that.
        std::uint32_t word = 0;
        if (system_.read(fd, &word, sizeof(word)) != sizeof(word)) return drop(kWake);
        word = 1;
        system_.write(fd, &word, sizeof(word));
        return;
    }
    char bytes[64];
    int got = 0;
    do
        got = system_.read(fd, bytes, sizeof(bytes));
    while (got == sizeof(bytes));
    // At its end (a file, a port that the host has closed) it would be readable for ever.
    if (got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR)) drop(kWake);
}

void Agent::drop(Source source) {
    constexpr const char* kNames[kSources] = {"wake", "vmclock's notification", "clock watch"};
    Line line;
    line << kNames[source] << ": lost; nothing more is heard from there";
    log(system_, line);
    system_.close(fds_[source].fd);
    fds_[source].fd = -1;
}

bool Agent::pass() {
    const std::uint64_t notices = counters_.notices;
    bool whole = notice_ == nullptr || repair_.notices(*notice_);
    if (counters_.notices != notices) {
        // What vmclock tells of the same gap is told already.
        if (vmclock_watch_ != nullptr) vmclock_watch_->settle();
        clock_set_ = false;
    } else {
        whole = look_at_vmclock() && whole;
    }
    whole = look_for_jumps() && whole;
    note_clock_set();
    publish();
    return whole;
}

bool Agent::look_at_vmclock() {
    if (vmclock_watch_ == nullptr) return true;
    const VmclockWatch::Disruption seen = vmclock_watch_->look();
    if (seen.found == VmclockWatch::Found::kNothing) return true;
    ++counters_.disruptions;
    const char* const source = seen.measured ? "vmclock tells of a disruption"
                                             : "vmclock tells of a disruption, but not the time";
    const bool whole = repair_.measured(source, seen.measured ? seen.delta_ns : 0, seen.bound_ns);
    vmclock_watch_->settle();
    return whole;
}

bool Agent::look_for_jumps() {
    const std::int64_t behind = jumps_.look();
    if (behind == 0 || notice_ != nullptr || vmclock_ != nullptr) return true;
    ++counters_.jumps;
    Line line;
    line << "CLOCK_MONOTONIC_RAW has come ";
    line.signed_seconds(-behind) << " s against the counter: this guest was stopped";
    log(system_, line);
    return repair_.measured("own detection", 0, 0);
}

void Agent::note_clock_set() {
    const std::int64_t moved = repair_.settle();
    if (!clock_set_) return;
    clock_set_ = false;
    if (moved == 0) return;
    ++counters_.clock_sets;
    Line line;
    line << "somebody else has set REALTIME, by ";
    line.signed_seconds(moved) << " s";
    log(system_, line);
    if (vmclock_watch_ != nullptr) vmclock_watch_->settle();
}

void Agent::publish() {
    if (options_.metrics_path == nullptr) return;
    const int error = write_counters(system_, counters_, options_.metrics_path);
    if (error < 0) complain("metrics", options_.metrics_path, error);
}

}  // namespace continuo::guest
