#include "continuo/kvm/fd.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

namespace continuo::kvm {

Fd& Fd::operator=(Fd&& other) noexcept {
    if (this != &other) {
        reset();
        fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
}

void Fd::reset() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

tl::unexpected<state::Error> kernel_failure(std::string where, int sys_errno, std::string advice) {
    return state::fail(state::ErrorCode::kKernel, std::move(where), "the kernel refused the call",
                       std::move(advice), sys_errno);
}

Result<int> checked_ioctl(int fd, unsigned long request, void* arg, const char* name) {
    int answer = 0;
    do {
        answer = ::ioctl(fd, request, arg);
    } while (answer < 0 && errno == EINTR);
    if (answer < 0) return kernel_failure(name, errno);
    return answer;
}

Result<int> checked_ioctl(int fd, unsigned long request, unsigned long arg, const char* name) {
    return checked_ioctl(fd, request, reinterpret_cast<void*>(arg), name);
}

}  // namespace continuo::kvm
