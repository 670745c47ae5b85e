// Whole numbers as people and sysfs write them, without stdio.
#pragma once

#include <cstdint>

namespace continuo::guest {

/// Decimal, or hexadecimal behind 0x; the whole text. False, and `out` is untouched, where it is
/// something else or above the limit.
inline bool parse_number(const char* text, std::uint64_t limit, std::uint64_t& out) {
    const auto digit = [](char c) -> unsigned {
        if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
        if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
        if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
        return 16;
    };
    unsigned base = 10;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        base = 16;
        text += 2;
    }
    if (*text == '\0') return false;
    std::uint64_t value = 0;
    for (; *text != '\0'; ++text) {
        const unsigned next = digit(*text);
        if (next >= base || next > limit || value > (limit - next) / base) return false;
        value = value * base + next;
    }
    out = value;
    return true;
}

}  // namespace continuo::guest
