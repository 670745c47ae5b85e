// The agent's command line.
#pragma once

#include <cstdint>

#include "repair.h"

namespace continuo::guest {

struct Options {
    bool discover = true;               ///< looks for the notice page where none is named
    const char* notice_path = nullptr;  ///< what to map the notice page from
    std::uint64_t notice_offset = 0;    ///< where in it
    const char* wake_path = nullptr;    ///< becomes readable with each notice
    const char* vmclock_path = "/dev/vmclock0";
    bool vmclock_named = false;  ///< on the command line: it must be there then
    const char* metrics_path = nullptr;
    std::uint32_t check_every_s = 0;  ///< 0: never, so that nothing wakes an idle agent
    bool once = false;                ///< handles what is open, and ends
    Policy policy;
};

enum class Parsed : std::uint8_t { kRun, kHelp, kVersion, kWrong };

/// `wrong` is then the argument that was not understood.
Parsed parse(int count, char* const* arguments, Options& options, const char*& wrong);

/// What --help prints.
const char* usage();

}  // namespace continuo::guest
