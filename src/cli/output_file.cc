#include "output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Result;
using state::Status;

namespace {

/// What a signal's handler removes; empty: nothing.
char unfinished[PATH_MAX];

extern "C" void remove_and_end(int number) {
    if (unfinished[0] != '\0') ::unlink(unfinished);
    ::signal(number, SIG_DFL);
    ::raise(number);
}

void remove_on_signals(const std::string& path) {
    path.copy(unfinished, sizeof unfinished - 1);
    for (const int number : {SIGINT, SIGTERM, SIGHUP})
        std::signal(number, remove_and_end);
}

}  // namespace

Result<OutputFile> OutputFile::create(const std::string& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
        return fail(ErrorCode::kInvalidArgument, path, "is there, and no regular file",
                    "Give the name of a file");
    OutputFile file;
    file.path_ = path;
    file.part_ = path + ".part-XXXXXX";
    if (file.part_.size() >= PATH_MAX)
        return fail(ErrorCode::kInvalidArgument, path, "is too long", "Give a shorter name");
    file.fd_ = kvm::Fd{::mkostemp(file.part_.data(), O_CLOEXEC)};
    if (!file.fd_) {
        const int sys_errno = errno;
        file.part_.clear();
        return fail(ErrorCode::kIo, path, "cannot be written", "Check the path", sys_errno);
    }
    remove_on_signals(file.part_);
    return file;
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : fd_{std::move(other.fd_)},
      path_{std::move(other.path_)},
      part_{std::exchange(other.part_, {})} {}

OutputFile::~OutputFile() {
    if (part_.empty()) return;
    ::unlink(part_.c_str());
    unfinished[0] = '\0';
}

Status OutputFile::keep() {
    if (::fsync(fd_.get()) != 0)
        return fail(ErrorCode::kIo, path_, "cannot be written in full",
                    "Check the disk and the space that is left", errno);
    if (std::rename(part_.c_str(), path_.c_str()) != 0)
        return fail(ErrorCode::kIo, path_, "cannot be given its name", "Check the path", errno);
    part_.clear();
    unfinished[0] = '\0';
    // The name, too, is to outlive a power cut.
    const std::string folder = std::filesystem::path{path_}.parent_path();
    const kvm::Fd at{
        ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!at || ::fsync(at.get()) != 0)
        return fail(ErrorCode::kIo, path_, "is whole, but its name may not outlive a power cut",
                    "Check the disk", errno);
    return {};
}

}  // namespace continuo::cli
