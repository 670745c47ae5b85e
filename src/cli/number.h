// Numbers of a command line: whole, unsigned, 64 bits wide, never by way of a double. CLI11's own
// conversions take octal and wrap negative numbers, so options are read as text and parsed here.
#pragma once

#include <cstdint>
#include <string_view>

#include "continuo/state/error.h"

namespace continuo::cli {

/// The range in which an option's value must lie, both ends included.
struct Range {
    std::uint64_t min = 0;
    std::uint64_t max = UINT64_MAX;
};

/// Decimal digits, or hexadecimal ones after 0x; the whole text and nothing else. kInvalidArgument
/// naming the option and the range.
state::Result<std::uint64_t> parse_u64(std::string_view option, std::string_view text,
                                       Range range = {});

/// A length of time in ns: a whole number and its unit, "90s", "500ms", "30d"; ns without a unit.
/// Units: ns us ms s min h d. kInvalidArgument, naming the option; 2^63-1 ns is the most.
state::Result<std::uint64_t> parse_duration(std::string_view option, std::string_view text);

}  // namespace continuo::cli
