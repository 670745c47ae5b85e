// Which process a peer is, and whether it lives: the proof that a migration needs before one side
// may act for the other. A process is named by boot, pid namespace, pid and start time, so that a
// name is never reused; on the same host a pidfd then tells its death for certain.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

#include "continuo/kvm/fd.h"

namespace continuo::vmm {

/// The name of a process for all time. 48 bytes on the wire.
struct ProcessIdentity {
    std::array<std::uint8_t, 16> boot_id{};
    std::uint64_t pid_namespace = 0;  ///< inode of /proc/self/ns/pid
    std::uint64_t start_ticks = 0;    ///< field 22 of /proc/PID/stat: clock ticks since boot
    std::uint32_t pid = 0;
    std::uint32_t zero = 0;
    std::uint16_t life_port = 0;  ///< TCP port that listens while the process lives; 0: none
    std::uint16_t zero2[3] = {};

    friend bool operator==(const ProcessIdentity&, const ProcessIdentity&) = default;
};
static_assert(sizeof(ProcessIdentity) == 48);

/// A TCP port that listens on every interface, at IPv6 or IPv4, exactly as long as this process
/// lives: opened by the first call, never closed, nobody accepts. 0 where none can be opened. A
/// refused connection to it proves death; so it must not end with a migration, after which this
/// process may well run the VM. Any thread.
std::uint16_t life_port(bool v6);

/// This process. What cannot be found out is 0, and then nobody can prove our death.
ProcessIdentity this_process();

enum class Life : std::uint8_t {
    kAlive,
    kDead,     ///< proven: the process is gone and cannot come back
    kUnknown,  ///< no proof either way: another host, another pid namespace
};

/// Watches one process of this host.
class ProcessWatch {
  public:
    /// A watch on `who`; where `who` is not of this boot and pid namespace, or cannot be watched, a
    /// watch that always answers kUnknown.
    static ProcessWatch on(const ProcessIdentity& who);
    Life life() const;
    /// Waits until it is dead, at most `grace`.
    Life wait(std::chrono::milliseconds grace) const;

  private:
    kvm::Fd pidfd_;
    bool was_dead_ = false;
};

}  // namespace continuo::vmm
