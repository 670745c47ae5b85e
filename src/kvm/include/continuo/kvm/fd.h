// Owned file descriptors, and the one way from a failed system call to a typed Error. Every ioctl
// of this module goes through checked_ioctl, so every failure names its ioctl and carries its
// errno.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "continuo/state/error.h"

namespace continuo::kvm {

using state::Result;
using state::Status;

/// A file descriptor that is closed when its owner goes. Move-only; -1 means none.
class Fd {
  public:
    Fd() = default;
    explicit Fd(int fd) : fd_{fd} {}
    Fd(Fd&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
    Fd& operator=(Fd&& other) noexcept;
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd() { reset(); }

    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    /// Gives the descriptor away; this object holds none after it.
    int release() { return std::exchange(fd_, -1); }
    /// Closes it now.
    void reset();

  private:
    int fd_ = -1;
};

/// The Error (kKernel) of a failed call: `where` is the call's name, and `sys_errno` its errno.
tl::unexpected<state::Error> kernel_failure(std::string where, int sys_errno,
                                            std::string advice = {});

/// ioctl(fd, request, arg), again where a signal interrupts it.
/// Returns the ioctl's non-negative answer; fails with kKernel, `where` = `name`, and the errno.
/// No heap use where it succeeds.
Result<int> checked_ioctl(int fd, unsigned long request, void* arg, const char* name);
/// The same for ioctls whose argument is a number.
Result<int> checked_ioctl(int fd, unsigned long request, unsigned long arg, const char* name);

}  // namespace continuo::kvm
