#include "text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>

namespace continuo::cli {

std::string printable(std::string_view text) {
    constexpr std::size_t shown_max = 60;
    std::string clean{text.substr(0, shown_max)};
    std::replace_if(
        clean.begin(), clean.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
    if (text.size() > shown_max) clean += "...";
    return clean;
}

namespace {

std::string line_of(const std::vector<std::string>& cells,
                    const std::vector<Table::Column>& columns,
                    const std::vector<std::size_t>& widths, std::string_view indent) {
    std::string line{indent};
    for (std::size_t i = 0; i < cells.size() && i < columns.size(); ++i) {
        if (i > 0) line += "  ";
        line += columns[i].align == Table::Align::kRight
                    ? fmt::format("{:>{}}", cells[i], widths[i])
                    : fmt::format("{:<{}}", cells[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
}

}  // namespace

std::string Table::text(std::string_view indent) const {
    std::vector<std::size_t> widths;
    std::vector<std::string> titles;
    bool titled = false;
    for (const Column& column : columns_) {
        widths.push_back(column.title.size());
        titles.push_back(column.title);
        titled = titled || !column.title.empty();
    }
    for (const auto& row : rows_)
        for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i)
            widths[i] = std::max(widths[i], row[i].size());
    std::string out = titled ? line_of(titles, columns_, widths, indent) : "";
    for (const auto& row : rows_)
        out += line_of(row, columns_, widths, indent);
    return out;
}

std::string show_ns(std::int64_t ns) {
    struct Unit {
        std::int64_t ns;
        const char* name;
    };
    constexpr std::array units{Unit{86'400'000'000'000, "d"}, Unit{3'600'000'000'000, "h"},
                               Unit{1'000'000'000, "s"}, Unit{1'000'000, "ms"}, Unit{1'000, "us"}};
    for (const Unit& unit : units)
        if (ns >= unit.ns || ns <= -unit.ns)
            return fmt::format("{:.4g} {}", static_cast<double>(ns) / static_cast<double>(unit.ns),
                               unit.name);
    return fmt::format("{} ns", ns);
}

std::string show_ns_unsigned(std::uint64_t ns) {
    return ns > INT64_MAX ? "more than 292 years" : show_ns(static_cast<std::int64_t>(ns));
}

std::string show_date(std::uint64_t seconds) {
    constexpr std::uint64_t day_seconds = 86'400;
    constexpr std::uint64_t end_of_9999 = 253'402'300'800;
    if (seconds >= end_of_9999) return "beyond the year 9999";
    const std::chrono::sys_days day{
        std::chrono::days{static_cast<std::int64_t>(seconds / day_seconds)}};
    const std::chrono::year_month_day date{day};
    const std::uint64_t second = seconds % day_seconds;
    return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02}", static_cast<int>(date.year()),
                       static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                       second / 3600, second / 60 % 60, second % 60);
}

std::string grouped(std::uint64_t value) {
    std::string digits = std::to_string(value);
    for (std::size_t i = digits.size(); i > 3; i -= 3)
        digits.insert(i - 3, 1, ' ');
    return digits;
}

std::string grouped(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    return value < 0 ? "-" + grouped(0 - bits) : grouped(bits);
}

std::string wrapped(std::string_view paragraph, std::string_view first, std::string_view indent,
                    std::size_t width) {
    std::string out;
    std::string line{first};
    bool fresh = true;
    while (!paragraph.empty()) {
        const std::size_t space = paragraph.find(' ');
        const std::string_view word = paragraph.substr(0, space);
        paragraph.remove_prefix(space == std::string_view::npos ? paragraph.size() : space + 1);
        if (!fresh && line.size() + 1 + word.size() > width) {
            out += line + "\n";
            line = indent;
            fresh = true;
        }
        if (!fresh) line += ' ';
        line += word;
        fresh = false;
    }
    return out + line + "\n";
}

}  // namespace continuo::cli
