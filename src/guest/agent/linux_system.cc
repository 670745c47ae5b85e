#include "linux_system.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "continuo/guest/counter.h"

namespace continuo::guest {
namespace {

constexpr std::int64_t kNanosPerSecond = 1'000'000'000;

template <class T>
int result(T value) {
    return value < 0 ? -errno : static_cast<int>(value);
}

/// False where the path is too long.
bool address(const char* path, sockaddr_un& out) {
    out = {};
    out.sun_family = AF_UNIX;
    std::size_t i = 0;
    for (; path[i] != '\0'; ++i) {
        if (i + 1 >= sizeof(out.sun_path)) return false;
        out.sun_path[i] = path[i];
    }
    return i > 0;
}

/// Binds with a mode that lets the peer answer, whoever it runs as. By the umask, not by chmod():
/// the folder is the peer's, and it could put a link there in between.
int bind_for_all(int fd, const sockaddr_un& own) {
    const mode_t mask = umask(0);
    const int bound = result(bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof(own)));
    umask(mask);
    return bound;
}

}  // namespace

int LinuxSystem::clock_ns(int clock, std::int64_t& ns) {
    timespec now{};
    if (clock_gettime(static_cast<clockid_t>(clock), &now) != 0) return -errno;
    ns = static_cast<std::int64_t>(now.tv_sec) * kNanosPerSecond + now.tv_nsec;
    return 0;
}

int LinuxSystem::adjust(timex& request) {
    return result(adjtimex(&request));
}

std::uint64_t LinuxSystem::counter() {
    return continuo_counter();
}

int LinuxSystem::watch_clock() {
    const int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0) return -errno;
    const int armed = rewatch_clock(fd);
    if (armed == 0) return fd;
    ::close(fd);
    return armed;
}

// An expiry that never comes: the timer is there for being cancelled. A cancelled timer reads as
// ECANCELED once, and arming it says so too where the clock was set since.
int LinuxSystem::rewatch_clock(int fd) {
    std::uint64_t expirations = 0;
    (void)!::read(fd, &expirations, sizeof(expirations));
    itimerspec never{};
    never.it_value.tv_sec = std::int64_t{1} << 33;  // in the year 2242
    for (int tries = 0; tries < 3; ++tries) {
        if (timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, nullptr) == 0)
            return 0;
        if (errno != ECANCELED) return -errno;
    }
    return -ECANCELED;
}

int LinuxSystem::wait(pollfd* fds, unsigned count, int timeout_ms) {
    return result(poll(fds, count, timeout_ms));
}

int LinuxSystem::open(const char* path, int flags) {
    return result(::open(path, flags | O_CLOEXEC, 0644));
}

int LinuxSystem::map(int fd, std::uint64_t offset, std::size_t size, bool writable, void*& at) {
    at = mmap(nullptr, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
              static_cast<off_t>(offset));
    if (at == MAP_FAILED) return -errno;
    // A file that is shorter than the page would kill whoever reads it.
    struct stat status {};
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
        static_cast<std::uint64_t>(status.st_size) < offset + size) {
        munmap(at, size);
        return -ENXIO;
    }
    return 0;
}

int LinuxSystem::read(int fd, void* to, std::size_t size) {
    // vmclock's device has a position, and is read from its start each time.
    const ssize_t at_start = pread(fd, to, size, 0);
    return at_start >= 0 || errno != ESPIPE ? result(at_start) : result(::read(fd, to, size));
}

int LinuxSystem::write(int fd, const void* from, std::size_t size) {
    return result(::write(fd, from, size));
}

int LinuxSystem::close(int fd) {
    return result(::close(fd));
}

int LinuxSystem::rename(const char* from, const char* to) {
    return result(::rename(from, to));
}

int LinuxSystem::remove(const char* path) {
    return result(unlink(path));
}

bool LinuxSystem::exists(const char* path) {
    return access(path, F_OK) == 0;
}

int LinuxSystem::connect_datagram(const char* own_path, const char* peer_path) {
    sockaddr_un own, peer;
    if (!address(own_path, own) || !address(peer_path, peer)) return -ENAMETOOLONG;
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    int error = bind_for_all(fd, own);
    if (error == 0)
        error = result(connect(fd, reinterpret_cast<const sockaddr*>(&peer), sizeof(peer)));
    if (error == 0) return fd;
    ::close(fd);
    unlink(own_path);
    return error;
}

int LinuxSystem::send(int fd, const void* from, std::size_t size) {
    return result(::send(fd, from, size, MSG_DONTWAIT | MSG_NOSIGNAL));
}

int LinuxSystem::receive(int fd, void* to, std::size_t size, int timeout_ms) {
    pollfd waiting{fd, POLLIN, 0};
    const int ready = poll(&waiting, 1, timeout_ms);
    if (ready <= 0) return ready < 0 ? -errno : -ETIMEDOUT;
    return result(recv(fd, to, size, MSG_DONTWAIT));
}

int LinuxSystem::run(const char* const* arguments) {
    static const char* const kEnvironment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", nullptr};
    pid_t child = 0;
    const int error =
        posix_spawn(&child, arguments[0], nullptr, nullptr, const_cast<char* const*>(arguments),
                    const_cast<char* const*>(kEnvironment));
    if (error != 0) return -error;
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -errno;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int LinuxSystem::process_id() {
    return getpid();
}

void LinuxSystem::log(const char* text, std::size_t size) {
    (void)!::write(STDERR_FILENO, text, size);
    (void)!::write(STDERR_FILENO, "\n", 1);
}

}  // namespace continuo::guest
