#include "guest_console.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <string_view>

#include "progress.h"

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Result;

namespace {

/// False where the file takes no more.
bool write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t done = ::write(fd, text.data(), text.size());
        if (done < 0 && errno != EINTR) return false;
        if (done > 0) text.remove_prefix(static_cast<std::size_t>(done));
    }
    return true;
}

Result<kvm::Fd> open_file(const std::string& path, int flags) {
    kvm::Fd file{::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY, 0600)};
    if (file) return file;
    return fail(ErrorCode::kIo, path, "cannot be opened", "Check the path", errno);
}

/// A named pipe is opened for writing too: so nobody waits for its writer, and when one writer has
/// gone another may come.
Result<kvm::Fd> open_input(const std::string& path) {
    struct stat info {};
    const bool pipe = ::stat(path.c_str(), &info) == 0 && S_ISFIFO(info.st_mode);
    return open_file(path, (pipe ? O_RDWR : O_RDONLY) | O_NONBLOCK);
}

}  // namespace

void add_console_options(CLI::App& command, ConsoleOptions& options) {
    command
        .add_option("--console", options.console,
                    "What the guest prints goes into this file (-: stdout)")
        ->type_name("PATH");
    command
        .add_option("--input", options.input,
                    "What this file or pipe holds is typed at the guest's console (-: stdin)")
        ->type_name("PATH");
}

Result<GuestConsole> GuestConsole::open(const ConsoleOptions& options, int fd) {
    GuestConsole console;
    console.output_fd_ = fd;
    if (options.console == "-") {
        console.output_fd_ = STDOUT_FILENO;
    } else if (!options.console.empty()) {
        auto file = open_file(options.console, O_WRONLY | O_CREAT | O_APPEND);
        if (!file) return tl::unexpected(std::move(file.error()));
        console.output_ = std::move(*file);
        console.output_fd_ = console.output_.get();
    }
    if (options.input == "-") {
        console.input_fd_ = STDIN_FILENO;
    } else if (!options.input.empty()) {
        auto file = open_input(options.input);
        if (!file) return tl::unexpected(std::move(file.error()));
        console.input_ = std::move(*file);
        console.input_fd_ = console.input_.get();
    }
    return console;
}

void GuestConsole::print(vmm::VirtualMachine& machine) {
    const std::string text = machine.take_console();
    if (text.empty() || output_fd_ < 0) return;
    if (write_all(output_fd_, text)) return;
    progress("the guest's console cannot be written any more: {}", std::strerror(errno));
    output_fd_ = -1;
}

void GuestConsole::read_input() {
    std::array<char, 1024> bytes;
    const ssize_t got = ::read(input_fd_, bytes.data(), bytes.size());
    if (got > 0) typed_.assign(bytes.data(), static_cast<std::size_t>(got));
    const bool again = got < 0 && (errno == EINTR || errno == EAGAIN);
    if (got <= 0 && !again) input_fd_ = -1;
}

void GuestConsole::type(vmm::VirtualMachine& machine) {
    if (typed_.empty()) return;
    typed_.erase(0, machine.type(std::as_bytes(std::span{typed_})));
}

}  // namespace continuo::cli
