// What must hold of a record across its fields, once for the wire format and JSON: each tells the
// place of a flaw in its own terms, as a byte offset or a JSON pointer. Private to state/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "continuo/state/error.h"
#include "continuo/state/record.h"

namespace continuo::state {

/// Which part of a record a flaw is in.
enum class Part : std::uint8_t {
    kKernel,
    kHostFrequency,
    kHostRateBound,
    kVcpus,
    kVcpuFrequency,
    kVcpuTscAdjust,
    kVcpuSystemTimeMsr,
    kVcpuGuestStopped,
    kKvmclock,
    kKvmclockMul,
    kKvmclockOrigin,
};

struct Flaw {
    Part part{};
    std::uint32_t vcpu = 0;  ///< for the kVcpu... parts
    ErrorCode code = ErrorCode::kMalformed;
    std::string what;
};

/// The first flaw; none where check() holds.
std::optional<Flaw> find_flaw(const Record& record);

/// A string that a JSON file and a terminal can carry: well-formed UTF-8, no control characters.
bool is_printable_utf8(std::string_view text);

/// "/vcpus/3/frequency_hz": where the flaw stands in the record's JSON.
std::string json_pointer(const Flaw& flaw);

}  // namespace continuo::state
