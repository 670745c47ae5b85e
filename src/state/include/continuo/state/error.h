// The one error type below the command line. Foreign bytes, kernels, peers and callers' arguments
// fail with it; it says what went wrong, where, and what to do next. Our own bugs are asserts
// (CONTINUO_CHECK), never Errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace continuo::state {

/// Classes of failure, stable: the command line's exit codes and the JSON of errors are made from
/// them.
enum class ErrorCode : std::uint8_t {
    kInvalidArgument,  ///< a caller's or command line's value outside its domain
    kMalformed,        ///< bytes or JSON that are not what they claim to be
    kTruncated,        ///< fewer bytes than the format needs
    kIntegrity,        ///< the hash does not match the bytes
    kVersion,          ///< a version or a mandatory field that this build does not know
    kTooLarge,         ///< over a stated limit
    kRefused,          ///< a plan would break a guest clock; see state::Refusal
    kKernel,           ///< an ioctl or system call failed, or answered what cannot be
    kUnsupported,      ///< this host or kernel lacks a control, or the control has no effect
    kGuest,    ///< guest memory holds what cannot be: a page outside memory, a damaged clock page
    kPeer,     ///< the other side of a migration broke the protocol, closed, or said that it failed
    kTimeout,  ///< a stated limit of time was reached
    kBusy,     ///< somebody else holds what is needed: a socket, a VM
    kIo,       ///< a file or socket failed
};

/// The name as it stands in JSON: "invalid_argument", "malformed", ...
std::string_view name(ErrorCode code);

/// A failure: `what` went wrong, `where` (clock, vCPU, byte offset, ioctl, path), `advice` (what to
/// do next).
struct Error {
    ErrorCode code = ErrorCode::kInvalidArgument;
    std::string where;
    std::string what;
    std::string advice;
    int sys_errno = 0;  ///< errno of the failed call; 0 where none failed

    /// "where: what (errno text). advice"
    std::string message() const;
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = tl::expected<void, Error>;

/// An Error as the unexpected alternative of any Result.
inline tl::unexpected<Error> fail(ErrorCode code, std::string where, std::string what,
                                  std::string advice = {}, int sys_errno = 0) {
    return tl::unexpected<Error>(
        Error{code, std::move(where), std::move(what), std::move(advice), sys_errno});
}

/// Reports a broken invariant of this library and aborts. Stays on in release.
[[noreturn]] void check_failed(const char* expression, const char* file, int line);

}  // namespace continuo::state

#define CONTINUO_CHECK(expression) \
    ((expression) ? void(0) : ::continuo::state::check_failed(#expression, __FILE__, __LINE__))
