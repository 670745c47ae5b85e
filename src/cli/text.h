// Text for people: aligned tables, foreign text made harmless, numbers that can be read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace continuo::cli {

/// Foreign text for a message: at most 60 bytes of it, and no byte that a terminal would obey.
std::string printable(std::string_view text);

/// Rows of cells, each column as wide as its widest cell.
class Table {
  public:
    enum class Align : std::uint8_t { kLeft, kRight };
    struct Column {
        std::string title;
        Align align = Align::kLeft;
    };
    explicit Table(std::vector<Column> columns) : columns_{std::move(columns)} {}

    /// Fewer cells than columns leave the rest empty.
    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
    bool empty() const { return rows_.empty(); }
    /// With a line of titles unless all are empty; every line ends in a newline and in no space.
    std::string text(std::string_view indent = "") const;

  private:
    std::vector<Column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

/// A length of time with the unit that suits it, rounded to 4 digits: "0 ns", "412 ns", "5.186 us",
/// "1.5 s". For people only.
std::string show_ns(std::int64_t ns);

std::string show_ns_unsigned(std::uint64_t ns);

/// Seconds since 1970 on a calendar without leap seconds: "2026-11-20 07:36:44"; "beyond the year
/// 9999" for more.
std::string show_date(std::uint64_t seconds);

/// 1234567 as "1 234 567".
std::string grouped(std::uint64_t value);
std::string grouped(std::int64_t value);

/// Breaks a paragraph between words so that no line is longer than `width`; every line starts with
/// `indent`, the first with `first`.
std::string wrapped(std::string_view paragraph, std::string_view first, std::string_view indent,
                    std::size_t width = 100);

}  // namespace continuo::cli
