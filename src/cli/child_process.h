// Another process of this same program, which never outlives this one.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "continuo/state/error.h"

namespace continuo::cli {

/// The path of this program.
std::string this_program();

/// The words as exec takes them: valid for as long as `words` is as it is.
std::vector<char*> argv_of(std::vector<std::string>& words);

class ChildProcess {
  public:
    /// Runs this program with `arguments`. Its stdout goes nowhere, its stderr is ours. Call it
    /// before any thread is made: the child dies with the thread that starts it.
    static state::Result<ChildProcess> start(const std::vector<std::string>& arguments);
    /// Kills it where it still runs.
    ~ChildProcess();
    ChildProcess(ChildProcess&& other) noexcept;
    ChildProcess& operator=(ChildProcess&&) = delete;
    ChildProcess(const ChildProcess&) = delete;

    pid_t pid() const { return pid_; }
    /// Its exit code (128 + N where signal N ended it); none while it still runs after `timeout`.
    std::optional<int> wait(std::chrono::milliseconds timeout);

  private:
    explicit ChildProcess(pid_t pid) : pid_{pid} {}
    pid_t pid_ = -1;
};

/// A folder for sockets, deleted with what is in it.
class TemporaryFolder {
  public:
    static state::Result<TemporaryFolder> make();
    ~TemporaryFolder();
    TemporaryFolder(TemporaryFolder&& other) noexcept : path_{std::exchange(other.path_, {})} {}
    TemporaryFolder& operator=(TemporaryFolder&&) = delete;
    TemporaryFolder(const TemporaryFolder&) = delete;

    std::string file(const std::string& name) const { return path_ + "/" + name; }

  private:
    explicit TemporaryFolder(std::string path) : path_{std::move(path)} {}
    std::string path_;
};

}  // namespace continuo::cli
