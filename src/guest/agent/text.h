// Text in a buffer of fixed size, without stdio, which alone would double the agent. What does not
// fit is left out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::guest {

inline constexpr std::uint64_t kTextNanosPerSecond = 1'000'000'000;

template <std::size_t kSize>
class Text {
  public:
    Text& operator<<(const char* text) {
        while (*text != '\0')
            put(*text++);
        return *this;
    }
    Text& operator<<(std::uint64_t value) {
        char digits[20];
        std::size_t count = 0;
        do {
            digits[count++] = static_cast<char>('0' + value % 10);
            value /= 10;
        } while (value != 0);
        while (count > 0)
            put(digits[--count]);
        return *this;
    }
    Text& operator<<(std::int64_t value) {
        if (value < 0) put('-');
        return *this << magnitude(value);
    }
    Text& operator<<(int value) { return *this << static_cast<std::int64_t>(value); }

    /// Seconds with nine digits, of ns.
    Text& seconds(std::uint64_t ns) {
        *this << ns / kTextNanosPerSecond;
        put('.');
        for (std::uint64_t unit = kTextNanosPerSecond / 10; unit != 0; unit /= 10)
            put(static_cast<char>('0' + ns / unit % 10));
        return *this;
    }
    /// The same with a sign, always.
    Text& signed_seconds(std::int64_t ns) {
        put(ns < 0 ? '-' : '+');
        return seconds(magnitude(ns));
    }

    const char* c_str() const { return text_; }
    std::size_t size() const { return size_; }

  private:
    static std::uint64_t magnitude(std::int64_t value) {
        const auto bits = static_cast<std::uint64_t>(value);
        return value < 0 ? 0 - bits : bits;
    }
    void put(char c) {
        if (size_ + 1 >= kSize) return;
        text_[size_++] = c;
        text_[size_] = '\0';
    }

    char text_[kSize] = {};
    std::size_t size_ = 0;
};

}  // namespace continuo::guest
