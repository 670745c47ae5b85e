#include "continuo/vmm/process.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>

#include "continuo/kvm/host.h"
#include "continuo/vmm/address.h"

namespace continuo::vmm {

namespace {

std::uint64_t own_pid_namespace() {
    struct stat info {};
    return ::stat("/proc/self/ns/pid", &info) == 0 ? info.st_ino : 0;
}

/// Field 22 of /proc/PID/stat; 0 where it cannot be read. The command in field 2 may hold anything
/// but ends at the last parenthesis.
std::uint64_t start_ticks_of(std::uint32_t pid) {
    std::ifstream file{"/proc/" + std::to_string(pid) + "/stat"};
    std::string text{std::istreambuf_iterator<char>{file}, {}};
    const std::size_t command_end = text.rfind(')');
    if (command_end == std::string::npos) return 0;
    std::istringstream fields{text.substr(command_end + 1)};
    std::string skipped;
    for (int field = 3; field < 22; ++field)
        fields >> skipped;
    std::uint64_t ticks = 0;
    fields >> ticks;
    return fields ? ticks : 0;
}

/// One process's life port of one family.
struct LifePort {
    pid_t owner = 0;  ///< a child of fork() has the descriptor, and must have a port of its own
    kvm::Fd listener;
    std::uint16_t port = 0;
};

void open_life_port(LifePort& into, bool v6) {
    into = LifePort{::getpid(), {}, 0};
    auto listener = listen_on({Address::Kind::kTcp, "", v6 ? "::" : "0.0.0.0", "0"});
    if (!listener) return;
    const auto port = port_of(*listener);
    if (!port) return;
    into.port = *port;
    into.listener = std::move(*listener);
}

bool same_place(const ProcessIdentity& a, const ProcessIdentity& b) {
    const bool known = a.boot_id != std::array<std::uint8_t, 16>{} && a.pid_namespace != 0;
    return known && a.boot_id == b.boot_id && a.pid_namespace == b.pid_namespace;
}

}  // namespace

std::uint16_t life_port(bool v6) {
    static std::mutex mutex;
    // Never destroyed: at exit the kernel closes it, after every thread that could run a VM.
    static auto& ports = *new std::array<LifePort, 2>;
    const std::lock_guard lock{mutex};
    LifePort& life = ports[v6 ? 1 : 0];
    if (life.owner != ::getpid()) open_life_port(life, v6);
    return life.port;
}

ProcessIdentity this_process() {
    ProcessIdentity self;
    self.boot_id = kvm::host_identity().boot_id;
    self.pid_namespace = own_pid_namespace();
    self.pid = static_cast<std::uint32_t>(::getpid());
    self.start_ticks = start_ticks_of(self.pid);
    return self;
}

ProcessWatch ProcessWatch::on(const ProcessIdentity& who) {
    ProcessWatch watch;
    if (who.pid == 0 || who.start_ticks == 0 || !same_place(who, this_process())) return watch;
    watch.pidfd_ = kvm::Fd{static_cast<int>(::syscall(SYS_pidfd_open, who.pid, 0))};
    if (!watch.pidfd_) {
        watch.was_dead_ = errno == ESRCH;
        return watch;
    }
    // Opened by number, so it may be a successor: the start time tells. It is read after the open,
    // while the descriptor keeps the number from naming another process unnoticed.
    const std::uint64_t ticks = start_ticks_of(who.pid);
    if (ticks == who.start_ticks) return watch;
    watch.pidfd_.reset();
    watch.was_dead_ = ticks != 0;
    return watch;
}

Life ProcessWatch::life() const {
    return wait(std::chrono::milliseconds{0});
}

Life ProcessWatch::wait(std::chrono::milliseconds grace) const {
    if (was_dead_) return Life::kDead;
    if (!pidfd_) return Life::kUnknown;
    pollfd poll_fd{pidfd_.get(), POLLIN, 0};
    return ::poll(&poll_fd, 1, static_cast<int>(grace.count())) > 0 ? Life::kDead : Life::kAlive;
}

}  // namespace continuo::vmm
