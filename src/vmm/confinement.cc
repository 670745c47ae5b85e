#include "continuo/vmm/confinement.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

#include "continuo/kvm/fd.h"

namespace continuo::vmm {

namespace {

using state::Status;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

#if defined(__x86_64__)
constexpr std::uint32_t kThisArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t kThisArchitecture = AUDIT_ARCH_AARCH64;
#endif

/// A system call, allowed where the low half of one argument has those bits of `mask`.
struct Allowed {
    std::uint32_t number;
    std::uint32_t argument = 0;
    std::uint32_t mask = 0;
    std::uint32_t wanted = 0;
};

/// Threads, heap, signals and clocks, as glibc uses them; KVM; and writing to what is open.
constexpr Allowed kForAll[] = {
    {SYS_ioctl, 1, 0xff00, KVMIO << 8},
    {SYS_read},
    {SYS_write},
    {SYS_writev},
    {SYS_futex},
    {SYS_brk},
    {SYS_mmap, 2, PROT_EXEC, 0},
    {SYS_mprotect, 2, PROT_EXEC, 0},
    {SYS_mremap},
    {SYS_munmap},
    {SYS_madvise},
    {SYS_rt_sigreturn},
    {SYS_rt_sigprocmask},
    {SYS_rt_sigtimedwait},
    {SYS_rt_sigaction},
    {SYS_sigaltstack},
    {SYS_restart_syscall},
    {SYS_tgkill},
    {SYS_gettid},
    {SYS_getpid},
    {SYS_sched_yield},
    {SYS_sched_getaffinity},
    {SYS_clock_gettime},
    {SYS_clock_nanosleep},
    {SYS_nanosleep},
    {SYS_gettimeofday},
    {SYS_set_robust_list},
    {SYS_rseq},
    {SYS_prctl},    // the name of a thread, and a further filter
    {SYS_seccomp},  // a further filter
    {SYS_exit},
    {SYS_exit_group},
};

/// What making a VM, its clocks and a peer's death need beside that.
constexpr Allowed kForMigration[] = {
    {SYS_openat, 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY},
    {SYS_close},
    {SYS_newfstatat},
    {SYS_fstat},
    {SYS_lseek},
    {SYS_pread64},
    {SYS_readlinkat},
    {SYS_readv},
    {SYS_fcntl},
    {SYS_socket},
    {SYS_connect},
    {SYS_bind},
    {SYS_listen},
    {SYS_accept4},
    {SYS_shutdown},
    {SYS_getsockname},
    {SYS_getpeername},
    {SYS_getsockopt},
    {SYS_setsockopt},
    {SYS_sendto},
    {SYS_sendmsg},
    {SYS_sendmmsg},
    {SYS_recvfrom},
    {SYS_recvmsg},
    {SYS_ppoll},
    {SYS_eventfd2},
    {SYS_memfd_create},
    {SYS_ftruncate},
    {SYS_clone, 0, CLONE_THREAD, CLONE_THREAD},
    {SYS_pidfd_open},
    {SYS_getrandom},
    {SYS_adjtimex},
    {SYS_clock_adjtime},
    {SYS_clock_getres},
    {SYS_uname},
    {SYS_sysinfo},
    {SYS_getuid},
    {SYS_geteuid},
    {SYS_timer_create},
    {SYS_timer_settime},
    {SYS_timer_delete},
#if defined(__x86_64__)
    {SYS_open, 1, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY},
    {SYS_stat},
    {SYS_readlink},
    {SYS_poll},
    {SYS_time},
#endif
};

/// What a VM's control thread does at its end.
constexpr Allowed kForControl[] = {
    {SYS_ioctl, 1, ~std::uint32_t{0}, TCGETS},  // is it a terminal? so asks the C library
    {SYS_unlinkat},
#if defined(__x86_64__)
    {SYS_unlink},
#endif
};

sock_filter load(std::size_t offset) {
    return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset));
}

sock_filter answer(std::uint32_t action) {
    return BPF_STMT(BPF_RET | BPF_K, action);
}

/// The next instruction where the accumulator is `value`, else that behind `skipped` more.
sock_filter unless_equal_skip(std::uint32_t value, std::uint8_t skipped) {
    return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skipped);
}

using Filter = std::vector<sock_filter>;

void add(Filter& filter, const Allowed& call) {
    if (call.mask == 0) {
        filter.push_back(unless_equal_skip(call.number, 1));
        filter.push_back(answer(SECCOMP_RET_ALLOW));
        return;
    }
    const std::size_t argument = offsetof(seccomp_data, args) + 8 * std::size_t{call.argument};
    filter.push_back(unless_equal_skip(call.number, 5));
    filter.push_back(load(argument));
    filter.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, call.mask));
    filter.push_back(unless_equal_skip(call.wanted, 1));
    filter.push_back(answer(SECCOMP_RET_ALLOW));
    // Another entry may allow the call with another argument.
    filter.push_back(load(offsetof(seccomp_data, nr)));
}

Filter make_filter(Confinement confinement) {
    Filter filter;
    filter.push_back(load(offsetof(seccomp_data, arch)));
    filter.push_back(unless_equal_skip(kThisArchitecture, 1));
    filter.push_back(BPF_STMT(BPF_JMP | BPF_JA, 1));
    filter.push_back(answer(SECCOMP_RET_KILL_PROCESS));
    filter.push_back(load(offsetof(seccomp_data, nr)));
    for (const Allowed& call : kForAll)
        add(filter, call);
    if (confinement != Confinement::kVcpu) {
        for (const Allowed& call : kForMigration)
            add(filter, call);
    }
    if (confinement == Confinement::kControl) {
        for (const Allowed& call : kForControl)
            add(filter, call);
    }
    // glibc's heap looks for a setting in /proc before it shrinks, and does without.
    if (confinement == Confinement::kVcpu) {
        filter.push_back(unless_equal_skip(SYS_openat, 1));
        filter.push_back(answer(SECCOMP_RET_ERRNO | EACCES));
    }
    // clone3's flags lie in memory, where no filter sees them: glibc then takes clone.
    filter.push_back(unless_equal_skip(SYS_clone3, 1));
    filter.push_back(answer(SECCOMP_RET_ERRNO | ENOSYS));
    filter.push_back(answer(SECCOMP_RET_KILL_PROCESS));
    return filter;
}

}  // namespace

Status confine_this_thread(Confinement confinement) {
    if (kSanitized) return {};
    Filter filter = make_filter(confinement);
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    // Without it, only root may set a filter: a program that it starts could be set-user-ID.
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return kvm::kernel_failure("prctl(PR_SET_NO_NEW_PRIVS)", errno);
    if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) {
        return kvm::kernel_failure("seccomp(SECCOMP_SET_MODE_FILTER)", errno,
                                   "use a kernel with CONFIG_SECCOMP_FILTER");
    }
    return {};
}

Status run_confined(Confinement confinement, const std::function<void()>& work) {
    Status confined;
    try {
        std::thread thread{[&] {
            confined = confine_this_thread(confinement);
            if (confined) work();
        }};
        thread.join();
    } catch (const std::system_error& error) {
        return kvm::kernel_failure("a thread", error.code().value(),
                                   "raise the limit of processes (ulimit -u)");
    }
    return confined;
}

}  // namespace continuo::vmm
