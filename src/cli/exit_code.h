// What the program ends with; docs/cli.md and `continuo --help` have the table.
#pragma once

#include "continuo/state/error.h"

namespace continuo::cli {

enum class ExitCode : int {
    kDone = 0,         ///< done, and what was checked holds
    kDoesNotHold = 1,  ///< a certificate does not hold, a host is unfit, a page is inconsistent
    kUsage = 2,        ///< the command line asks for something that cannot be
    kBadInput = 3,     ///< a file, page, record or guest holds what cannot be
    kRefused = 4,      ///< the plan is refused: a guest clock would go wrong
    kUnsupported = 5,  ///< this host or kernel lacks a control
    kKernel = 6,       ///< a system call, ioctl or file failed
    kPeer = 7,         ///< the other side of a migration failed, or did not answer in time
    kInternal = 8,     ///< a bug of continuo's own
};

/// The code that an error of this class ends the program with.
ExitCode exit_code(state::ErrorCode code);

/// The table for people, one line a code.
const char* exit_code_table();

}  // namespace continuo::cli
