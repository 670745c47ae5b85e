// The seccomp filters: what confined threads still do, and what ends the process. Each attempt that
// must end it is made in a process of its own.
#include "continuo/vmm/confinement.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace continuo::vmm {
namespace {

using Work = std::function<void()>;

/// True in builds in which nothing is confined.
bool unconfined() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#elif defined(__has_feature)
    return __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
    return false;
#endif
}

class Confined : public testing::TestWithParam<Confinement> {
  protected:
    void SetUp() override {
        if (unconfined()) GTEST_SKIP() << "a build with sanitizers confines nothing";
        GTEST_FLAG_SET(death_test_style, "threadsafe");
    }
    /// In a process of its own: ends with 0 where the work was done, with SIGSYS where it was not
    /// allowed.
    void run(const Work& work) {
        const auto done = run_confined(GetParam(), work);
        _exit(done ? 0 : 1);
    }
    void expect_allowed(const Work& work) {
        EXPECT_EXIT(run(work), testing::ExitedWithCode(0), "");
    }
    void expect_killed(const Work& work) {
        EXPECT_EXIT(run(work), testing::KilledBySignal(SIGSYS), "");
    }
};

TEST_P(Confined, HeapTimeAndTextAreLeft) {
    expect_allowed([] {
        std::vector<std::string> many(1000, std::string(100'000, 'x'));
        many.clear();
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
        if (::write(STDERR_FILENO, "text\n", 5) != 5) _exit(2);
    });
}

TEST_P(Confined, NoProgramIsStarted) {
    expect_killed([] { ::execl("/bin/true", "true", nullptr); });
    expect_killed([] { (void)::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr); });
}

TEST_P(Confined, NothingOfTheSystemIsChanged) {
    expect_killed([] { (void)::syscall(SYS_mount, nullptr, "/", nullptr, 0, nullptr); });
    expect_killed([] { (void)::syscall(SYS_setuid, 0); });
    expect_killed([] { (void)::syscall(SYS_bpf, 0, nullptr, 0); });
    expect_killed([] { (void)::syscall(SYS_rename, "/tmp/a", "/tmp/b"); });
}

TEST_P(Confined, NoMemoryBecomesCode) {
    expect_killed([] {
        (void)::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    });
    expect_killed([] {
        void* page = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        (void)::mprotect(page, 4096, PROT_READ | PROT_EXEC);
    });
}

TEST_P(Confined, NoDeviceButKvm) {
    expect_killed([] { (void)::ioctl(0, 0x5412, nullptr); });    // TIOCSTI
    expect_allowed([] { (void)::ioctl(-1, 0xae80, nullptr); });  // KVM_RUN
    expect_killed([] { (void)::syscall(SYS_ptrace, 0, 0, nullptr, nullptr); });
}

std::string name_of(const testing::TestParamInfo<Confinement>& each) {
    switch (each.param) {
        case Confinement::kVcpu:
            return "Vcpu";
        case Confinement::kMigration:
            return "Migration";
        case Confinement::kControl:
            return "Control";
    }
    return "";
}
INSTANTIATE_TEST_SUITE_P(All, Confined,
                         testing::Values(Confinement::kVcpu, Confinement::kMigration,
                                         Confinement::kControl),
                         name_of);

class ConfinedVcpu : public Confined {};
INSTANTIATE_TEST_SUITE_P(Vcpu, ConfinedVcpu, testing::Values(Confinement::kVcpu));

TEST_P(ConfinedVcpu, ReachesNoFileAndNoNetwork) {
    expect_allowed([] {
        for (const int how : {O_RDONLY, O_WRONLY, O_RDWR})
            if (::open("/dev/null", how) >= 0 || errno != EACCES) _exit(2);
    });
    expect_killed([] { (void)::socket(AF_UNIX, SOCK_STREAM, 0); });
    expect_killed([] { std::thread{[] {}}.join(); });
    expect_killed([] { (void)::unlink("/tmp/continuo-confined"); });
    expect_killed([] { (void)::ioctl(0, TCGETS, nullptr); });
}

class ConfinedMigration : public Confined {};
INSTANTIATE_TEST_SUITE_P(Two, ConfinedMigration,
                         testing::Values(Confinement::kMigration, Confinement::kControl), name_of);

TEST_P(ConfinedMigration, ReadsFilesTalksAndMakesThreads) {
    expect_allowed([] {
        if (::open("/proc/self/stat", O_RDONLY) < 0) _exit(2);
        const int one = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (one < 0) _exit(3);
        bool ran = false;
        std::thread{[&] { ran = true; }}.join();
        if (!ran) _exit(4);
    });
}

TEST_P(ConfinedMigration, OpensNoFileForWriting) {
    expect_killed([] { (void)::open("/tmp/continuo-confined", O_WRONLY | O_CREAT, 0600); });
    expect_killed([] { (void)::open("/tmp/continuo-confined", O_RDONLY | O_CREAT, 0600); });
    expect_killed([] { (void)::open("/dev/null", O_RDWR); });
}

TEST_P(ConfinedMigration, ItsThreadsCanBeConfinedFurther) {
    expect_allowed([] {
        if (!run_confined(Confinement::kVcpu, [] {})) _exit(2);
        if (::socket(AF_UNIX, SOCK_STREAM, 0) < 0) _exit(3);
    });
    expect_killed([] {
        (void)run_confined(Confinement::kVcpu, [] { (void)::socket(AF_UNIX, SOCK_STREAM, 0); });
    });
}

class ConfinedControl : public Confined {};
INSTANTIATE_TEST_SUITE_P(Control, ConfinedControl, testing::Values(Confinement::kControl));

TEST_P(ConfinedControl, ConfinesWhatItStartsAndRemovesItsSockets) {
    expect_allowed([] {
        if (!run_confined(Confinement::kMigration, [] {})) _exit(2);
        (void)::unlink("/tmp/continuo-confined");
        (void)::ioctl(0, TCGETS, nullptr);
    });
    expect_killed([] {
        (void)run_confined(Confinement::kMigration,
                           [] { (void)::unlink("/tmp/continuo-confined"); });
    });
}

}  // namespace
}  // namespace continuo::vmm
