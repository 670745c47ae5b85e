#include "continuo/state/error.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace continuo::state {

std::string_view name(ErrorCode code) {
    switch (code) {
        case ErrorCode::kInvalidArgument:
            return "invalid_argument";
        case ErrorCode::kMalformed:
            return "malformed";
        case ErrorCode::kTruncated:
            return "truncated";
        case ErrorCode::kIntegrity:
            return "integrity";
        case ErrorCode::kVersion:
            return "version";
        case ErrorCode::kTooLarge:
            return "too_large";
        case ErrorCode::kRefused:
            return "refused";
        case ErrorCode::kKernel:
            return "kernel";
        case ErrorCode::kUnsupported:
            return "unsupported";
        case ErrorCode::kGuest:
            return "guest";
        case ErrorCode::kPeer:
            return "peer";
        case ErrorCode::kTimeout:
            return "timeout";
        case ErrorCode::kBusy:
            return "busy";
        case ErrorCode::kIo:
            return "io";
    }
    return "unknown";
}

std::string Error::message() const {
    std::string text = where.empty() ? what : where + ": " + what;
    if (sys_errno != 0) text += std::string{" ("} + strerrordesc_np(sys_errno) + ")";
    if (!advice.empty()) text += ". " + advice;
    return text;
}

void check_failed(const char* expression, const char* file, int line) {
    std::fprintf(stderr, "continuo: internal error: %s does not hold (%s:%d)\n", expression, file,
                 line);
    std::abort();
}

}  // namespace continuo::state
