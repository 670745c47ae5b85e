#include "child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Result;

namespace {

[[noreturn]] void become(const std::string& program, char* const* words) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int nowhere = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nowhere >= 0) {
        ::dup2(nowhere, STDIN_FILENO);
        ::dup2(nowhere, STDOUT_FILENO);
    }
    ::execv(program.c_str(), words);
    ::_exit(127);
}

}  // namespace

std::string this_program() {
    std::array<char, 4096> path{};
    const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
    return length > 0 ? std::string(path.data(), static_cast<std::size_t>(length)) : "continuo";
}

std::vector<char*> argv_of(std::vector<std::string>& words) {
    std::vector<char*> pointers;
    pointers.reserve(words.size() + 1);
    for (std::string& word : words)
        pointers.push_back(word.data());
    pointers.push_back(nullptr);
    return pointers;
}

Result<ChildProcess> ChildProcess::start(const std::vector<std::string>& arguments) {
    const std::string program = this_program();
    std::vector<std::string> words{program};
    words.insert(words.end(), arguments.begin(), arguments.end());
    const std::vector<char*> pointers = argv_of(words);
    const pid_t pid = ::fork();
    if (pid < 0) return fail(ErrorCode::kKernel, "fork", "no process could be made", {}, errno);
    if (pid == 0) become(program, pointers.data());
    return ChildProcess{pid};
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept : pid_{std::exchange(other.pid_, -1)} {}

ChildProcess::~ChildProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
}

std::optional<int> ChildProcess::wait(std::chrono::milliseconds timeout) {
    const auto until = std::chrono::steady_clock::now() + timeout;
    for (;;) {
        int status = 0;
        const pid_t done = ::waitpid(pid_, &status, WNOHANG);
        if (done == pid_) {
            pid_ = -1;
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        if (done < 0 && errno != EINTR) return std::nullopt;
        if (std::chrono::steady_clock::now() > until) return std::nullopt;
        std::this_thread::sleep_for(std::chrono::milliseconds{5});
    }
}

Result<TemporaryFolder> TemporaryFolder::make() {
    std::error_code error;
    auto parent = std::filesystem::temp_directory_path(error);
    // An emulated host may have no /tmp yet.
    if (error) {
        parent = "/tmp";
        std::filesystem::create_directory(parent, error);
    }
    std::string path = (parent / "continuo-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr)
        return fail(ErrorCode::kIo, path, "no folder for sockets could be made",
                    "Set TMPDIR to a folder that can be written", errno);
    return TemporaryFolder{std::move(path)};
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace continuo::cli
