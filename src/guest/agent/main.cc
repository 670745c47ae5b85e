// continuo-agent: see docs/agent.md. Links libc alone: no exceptions, no run-time types, no heap.
#include <stdlib.h>
#include <unistd.h>

#include "agent.h"
#include "linux_system.h"
#include "options.h"
#include "text.h"

// What a call of a pure virtual function would come to; the C++ library's own drags in a demangler.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the C++ ABI's name.
extern "C" [[noreturn]] void __cxa_pure_virtual() {
    abort();
}

namespace {

constexpr int kFailed = 1;
constexpr int kUsageError = 2;

using continuo::guest::Agent;
using continuo::guest::LinuxSystem;
using continuo::guest::Options;
using continuo::guest::Parsed;

void print(int fd, const char* text) {
    std::size_t size = 0;
    while (text[size] != '\0')
        ++size;
    (void)!write(fd, text, size);
}

int run(const Options& options) {
    LinuxSystem system;
    Agent agent{system, options};
    if (!agent.open()) return kFailed;
    const bool whole = agent.pass();
    if (options.once) return whole ? 0 : kFailed;
    while (agent.wait()) {
    }
    return kFailed;
}

}  // namespace

int main(int count, char** arguments) {
    Options options;
    const char* wrong = nullptr;
    switch (continuo::guest::parse(count, arguments, options, wrong)) {
        case Parsed::kRun:
            return run(options);
        case Parsed::kHelp:
            print(STDOUT_FILENO, continuo::guest::usage());
            return 0;
        case Parsed::kVersion:
            print(STDOUT_FILENO, "continuo-agent " CONTINUO_VERSION "\n");
            return 0;
        case Parsed::kWrong:
            break;
    }
    print(STDERR_FILENO, "continuo-agent: not understood: ");
    print(STDERR_FILENO, wrong);
    print(STDERR_FILENO, "; continuo-agent --help lists the options\n");
    return kUsageError;
}
