#include "number.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "text.h"

namespace continuo::cli {

using state::ErrorCode;
using state::fail;

state::Result<std::uint64_t> parse_u64(std::string_view option, std::string_view text,
                                       Range range) {
    const auto refuse = [&](std::string_view why) {
        return fail(ErrorCode::kInvalidArgument, std::string{option},
                    fmt::format("'{}' {}", printable(text), why),
                    fmt::format("Give a whole number from {} to {}, decimal or 0x and hexadecimal",
                                range.min, range.max));
    };
    if (text.starts_with('-')) return refuse("is negative");
    const bool hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    const std::string_view digits = hexadecimal ? text.substr(2) : text;
    std::uint64_t value = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, hexadecimal ? 16 : 10);
    if (error == std::errc::invalid_argument || end != digits.data() + digits.size())
        return refuse("is not a whole number");
    if (error == std::errc::result_out_of_range) return refuse("does not fit 64 bits");
    if (value < range.min) return refuse(fmt::format("is below {}", range.min));
    if (value > range.max) return refuse(fmt::format("is above {}", range.max));
    return value;
}

state::Result<std::uint64_t> parse_duration(std::string_view option, std::string_view text) {
    struct Unit {
        std::string_view name;
        std::uint64_t ns;
    };
    constexpr std::array units{Unit{"", 1},
                               Unit{"ns", 1},
                               Unit{"us", 1'000},
                               Unit{"ms", 1'000'000},
                               Unit{"s", 1'000'000'000},
                               Unit{"min", 60'000'000'000},
                               Unit{"h", 3'600'000'000'000},
                               Unit{"d", 86'400'000'000'000}};
    const std::size_t split = std::min(text.find_first_not_of("0123456789"), text.size());
    for (const Unit& unit : units) {
        if (text.substr(split) != unit.name) continue;
        const auto count =
            parse_u64(option, text.substr(0, split), {.min = 0, .max = INT64_MAX / unit.ns});
        if (!count) return tl::unexpected(count.error());
        return *count * unit.ns;
    }
    return fail(ErrorCode::kInvalidArgument, std::string{option},
                fmt::format("'{}' is no length of time", printable(text)),
                "Give a whole number and one of ns, us, ms, s, min, h, d: 90s");
}

}  // namespace continuo::cli
