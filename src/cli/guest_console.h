// A guest's console on this side: what it prints goes to a file, the terminal or nowhere, and what
// is to be typed comes from a file, a pipe or the terminal.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "continuo/kvm/fd.h"
#include "continuo/vmm/virtual_machine.h"

namespace continuo::cli {

/// --console and --input, as the line has them; empty: not given.
struct ConsoleOptions {
    std::string console;
    std::string input;
};
void add_console_options(CLI::App& command, ConsoleOptions& options);

class GuestConsole {
  public:
    /// Nothing is printed and nothing typed.
    GuestConsole() = default;
    /// What is printed goes to `fd` where --console says nothing. kIo where a file cannot be
    /// opened.
    static state::Result<GuestConsole> open(const ConsoleOptions& options, int fd);

    /// Prints what the guest has printed. A file that takes no more is given up, once and aloud.
    void print(vmm::VirtualMachine& machine);
    /// To be polled for input: -1 where there is none, or while the guest has no room for what has
    /// come already.
    int input_fd() const { return typed_.empty() ? input_fd_ : -1; }
    /// Reads what has come, and types as much as there is room for.
    void read_input();
    void type(vmm::VirtualMachine& machine);

  private:
    kvm::Fd output_;  ///< owned: --console
    kvm::Fd input_;   ///< owned: --input
    int output_fd_ = -1;
    int input_fd_ = -1;
    std::string typed_;  ///< come, and not typed yet
};

}  // namespace continuo::cli
