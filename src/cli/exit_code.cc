#include "exit_code.h"

namespace continuo::cli {

ExitCode exit_code(state::ErrorCode code) {
    using state::ErrorCode;
    switch (code) {
        case ErrorCode::kInvalidArgument:
            return ExitCode::kUsage;
        case ErrorCode::kMalformed:
        case ErrorCode::kTruncated:
        case ErrorCode::kIntegrity:
        case ErrorCode::kVersion:
        case ErrorCode::kTooLarge:
        case ErrorCode::kGuest:
            return ExitCode::kBadInput;
        case ErrorCode::kRefused:
            return ExitCode::kRefused;
        case ErrorCode::kUnsupported:
            return ExitCode::kUnsupported;
        case ErrorCode::kKernel:
        case ErrorCode::kBusy:
        case ErrorCode::kIo:
            return ExitCode::kKernel;
        case ErrorCode::kPeer:
        case ErrorCode::kTimeout:
            return ExitCode::kPeer;
    }
    return ExitCode::kInternal;
}

const char* exit_code_table() {
    return "Exit codes:\n"
           "  0  done, and what was checked holds\n"
           "  1  a certificate does not hold, a host is unfit, or (--check) a page is "
           "inconsistent\n"
           "  2  the command line asks for something that cannot be\n"
           "  3  bad input: a file, page, record or guest holds what cannot be\n"
           "  4  the plan is refused: a guest clock would go wrong\n"
           "  5  this host or kernel lacks a control\n"
           "  6  a system call, ioctl or file failed\n"
           "  7  the other side of a migration failed, or did not answer in time\n"
           "  8  a bug of continuo's own";
}

}  // namespace continuo::cli
