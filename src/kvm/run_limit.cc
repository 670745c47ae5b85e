#include "run_limit.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "signal_mask.h"

namespace continuo::kvm {

namespace {

int limit_signal() {
    return SIGRTMAX - 1;
}

}  // namespace

Result<std::unique_ptr<RunLimit>> RunLimit::create() {
    std::unique_ptr<RunLimit> limit{new RunLimit};
    const sigset_t ours = signal_set(limit_signal());
    if (const int failed = ::pthread_sigmask(SIG_BLOCK, &ours, &limit->mask_before_); failed != 0)
        return kernel_failure("pthread_sigmask", failed);
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = limit_signal();
    event._sigev_un._tid = static_cast<pid_t>(::syscall(SYS_gettid));
    if (::timer_create(CLOCK_MONOTONIC, &event, &limit->timer_) != 0)
        return kernel_failure("timer_create", errno);
    limit->has_timer_ = true;
    return limit;
}

RunLimit::~RunLimit() {
    if (has_timer_) ::timer_delete(timer_);
    drain();
    ::pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

void RunLimit::drain() const {
    const sigset_t ours = signal_set(limit_signal());
    const timespec at_once{};
    while (::sigtimedwait(&ours, nullptr, &at_once) > 0) {
    }
}

Result<RunEnd> RunLimit::run(VcpuCore& vcpu, int limit_ms) const {
    if (auto set = let_in_only(vcpu, limit_signal()); !set) return tl::unexpected(set.error());
    itimerspec when{};
    when.it_value.tv_sec = limit_ms / 1000;
    when.it_value.tv_nsec = static_cast<long>(limit_ms % 1000) * 1'000'000;
    if (::timer_settime(timer_, 0, &when, nullptr) != 0)
        return kernel_failure("timer_settime", errno);
    auto end = vcpu.run();
    const itimerspec off{};
    ::timer_settime(timer_, 0, &off, nullptr);
    drain();
    if (auto unset = let_in_as_outside(vcpu); !unset) return tl::unexpected(unset.error());
    if (end && *end == RunEnd::kInterrupted)
        return state::fail(
            state::ErrorCode::kTimeout, "KVM_RUN",
            "a few bytes of guest code did not end within " + std::to_string(limit_ms) + " ms");
    return end;
}

}  // namespace continuo::kvm
