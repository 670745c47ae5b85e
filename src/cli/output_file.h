// A file that comes to be whole or not at all: it is written under another name beside its own,
// made durable, and then renamed.
#pragma once

#include <string>

#include "continuo/kvm/fd.h"

namespace continuo::cli {

class OutputFile {
  public:
    /// An empty file for its owner alone (0600), in the folder of `path` and named after it. kIo;
    /// kInvalidArgument where `path` is there and no regular file.
    static state::Result<OutputFile> create(const std::string& path);
    OutputFile(OutputFile&& other) noexcept;
    OutputFile& operator=(OutputFile&&) = delete;
    OutputFile(const OutputFile&) = delete;
    /// Removes what was not kept. SIGINT, SIGTERM and SIGHUP do the same before they end the
    /// process.
    ~OutputFile();

    int fd() const { return fd_.get(); }
    /// Has it on the disk and under its name, in place of what may have been there. kIo; the file
    /// is removed then, and what was there is as it was.
    state::Status keep();

  private:
    OutputFile() = default;
    kvm::Fd fd_;
    std::string path_;
    std::string part_;  ///< its name until it is kept; empty after that
};

}  // namespace continuo::cli
