#include "certificate_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "plan_table.h"
#include "text.h"

namespace continuo::cli {

using state::Certificate;
using state::ClockCertificate;
using Align = Table::Align;

namespace {

constexpr int kColumnsADecade = 4;
constexpr int kDecades = 11;  ///< 1 ns to 100 s
constexpr int kFirst = 3;     ///< column of 1 ns; nothing at all stands in column 0
constexpr int kWidth = kDecades * kColumnsADecade + kFirst;

std::string clock_name(const ClockCertificate& clock) {
    const std::string name{state::name(clock.clock)};
    return clock.vcpu ? fmt::format("{} vCPU {}", name, *clock.vcpu) : name;
}

double in_ns(std::uint64_t size, std::string_view unit, time::Hz counter) {
    const auto value = static_cast<double>(size);
    return unit == "ticks" ? value * 1e9 / static_cast<double>(counter.hz()) : value;
}

std::uint64_t magnitude(std::int64_t value) {
    const auto bits = static_cast<std::uint64_t>(value);
    return value < 0 ? 0 - bits : bits;
}

/// Column of a length: 0 for nothing, then `kColumnsADecade` columns for each power of ten from 1
/// ns on; shorter lengths stand where 1 ns does.
std::size_t column(double ns) {
    if (ns <= 0) return 0;
    const double at = kFirst + std::max(0.0, std::log10(ns)) * kColumnsADecade;
    return std::min(static_cast<std::size_t>(kWidth), static_cast<std::size_t>(std::lround(at)));
}

std::string scale_line() {
    std::string line(static_cast<std::size_t>(kWidth + kColumnsADecade + 3), ' ');
    const std::vector<std::string> labels{"1ns", "10", "100", "1us", "10", "100",
                                          "1ms", "10", "100", "1s",  "10"};
    line.replace(0, 1, "0");
    for (std::size_t i = 0; i < labels.size(); ++i)
        line.replace(kFirst + i * kColumnsADecade, labels[i].size(), labels[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    return line;
}

/// One line of the plot: the bound, then the seams over it.
std::string plot_line(double seam_ns, double bound_ns, std::optional<double> by_value_ns) {
    std::string line(static_cast<std::size_t>(kWidth) + 1, ' ');
    for (std::size_t i = 0; i < column(bound_ns); ++i)
        line[i] = '.';
    line[column(bound_ns)] = '|';
    if (by_value_ns) line[column(*by_value_ns)] = 'x';
    line[column(seam_ns)] = 'o';
    line.erase(line.find_last_not_of(' ') + 1);
    return line;
}

struct Row {
    std::string name;
    std::string line;
    std::string text;
};

/// A row's clock without the number behind it.
std::string_view stem(std::string_view name) {
    return name.substr(0, name.rfind(' '));
}

/// Rows of one clock whose lines are equal, as one: "tsc vCPU 0..3".
std::vector<Row> merged(std::vector<Row> rows) {
    std::vector<Row> out;
    std::size_t first = 0;
    for (std::size_t i = 1; i <= rows.size(); ++i) {
        const bool same = i < rows.size() && rows[i].line == rows[first].line &&
                          rows[i].text == rows[first].text &&
                          stem(rows[i].name).ends_with(" vCPU") &&
                          stem(rows[i].name) == stem(rows[first].name);
        if (same) continue;
        Row row = rows[first];
        if (i - first > 1)
            row.name += ".." + rows[i - 1].name.substr(rows[i - 1].name.rfind(' ') + 1);
        out.push_back(std::move(row));
        first = i;
    }
    return out;
}

bool has_kvmclock(const Certificate& certificate) {
    return std::any_of(certificate.clocks.begin(), certificate.clocks.end(),
                       [](const auto& row) { return row.clock == state::ClockKind::kKvmclock; });
}

/// What a guest reads its counter with.
std::string_view reading_of(const Certificate& certificate) {
    const bool arm64 = !certificate.clocks.empty() &&
                       certificate.clocks.front().clock == state::ClockKind::kVirtualCounter;
    return arm64 ? "CNTVCT" : "RDTSC";
}

std::string verdict_text(const Certificate& certificate) {
    Table table{{{""}, {""}}};
    table.add({"policy", std::string{state::name(certificate.policy)}});
    table.add({"gap", fmt::format("{} ns ({}), within {} ns, measured by {}{}",
                                  certificate.gap.raw(), show_ns(certificate.gap.raw()),
                                  certificate.gap_bound_ns, state::name(certificate.elapsed_by),
                                  certificate.gap_clamped ? ", clamped" : "")});
    add_measures(table, certificate.measures);
    table.add({"rate", fmt::format("{}, off by {}", state::name(certificate.rate),
                                   rate_error_text(certificate.tsc_rate_error))});
    if (has_kvmclock(certificate))
        table.add(
            {"kvmclock trim", fmt::format("{} rounds, {} ns left{}", certificate.trim.rounds,
                                          certificate.trim.residual_ns,
                                          certificate.trim.converged ? "" : ", NOT converged")});
    if (certificate.notice)
        table.add({"notice", fmt::format("the guest is told of a gap of {} ns; its REALTIME lags "
                                         "{} ns until it is repaired",
                                         certificate.notice->gap.raw(),
                                         certificate.notice->delta_realtime.raw())});
    return fmt::format("Certificate: {}\n", certificate.holds() ? "it holds" : "it does NOT hold") +
           table.text("  ");
}

}  // namespace

std::string certificate_table(const Certificate& certificate) {
    Table table{{{"clock"},
                 {"prescribed", Align::kRight},
                 {"realised", Align::kRight},
                 {"seam", Align::kRight},
                 {"at most", Align::kRight},
                 {"unit"},
                 {""},
                 {"bound", Align::kRight},
                 {"made of"}}};
    for (const auto& clock : certificate.clocks)
        table.add({clock_name(clock), std::to_string(clock.prescribed),
                   std::to_string(clock.realised), std::to_string(clock.seam),
                   std::to_string(clock.seam_bound), std::string{clock.unit},
                   clock.holds() ? "holds" : "BROKEN", std::to_string(clock.bound.total()),
                   terms_text(clock.bound)});
    std::string text = verdict_text(certificate) + "\n" + table.text("  ");
    for (const auto& note : certificate.notes)
        text += wrapped(note, "  Note: ", "        ");
    return text;
}

std::string observed_table(const Certificate& certificate) {
    if (certificate.observed.empty()) return "";
    Table table{{{"vCPU", Align::kRight},
                 {fmt::format("first {}", reading_of(certificate)), Align::kRight},
                 {"after the instant", Align::kRight},
                 {"its page's kvmclock seam", Align::kRight},
                 {"backward steps", Align::kRight}}};
    for (const auto& seen : certificate.observed)
        table.add(
            {std::to_string(seen.vcpu), std::to_string(seen.first_tsc),
             show_ns(seen.after_resume_ns),
             seen.kvmclock_seam_ns ? fmt::format("{} ns", *seen.kvmclock_seam_ns) : "no kvmclock",
             std::to_string(seen.backward_steps)});
    return "What the guest saw:\n" + table.text("  ");
}

std::string seam_plot(const Certificate& certificate, const std::optional<Certificate>& by_value,
                      time::Hz counter) {
    std::vector<Row> rows;
    for (std::size_t i = 0; i < certificate.clocks.size(); ++i) {
        const auto& clock = certificate.clocks[i];
        std::optional<double> beside;
        std::string text = fmt::format("{} {}", clock.seam, clock.unit);
        if (by_value && i < by_value->clocks.size()) {
            const auto& other = by_value->clocks[i];
            beside = in_ns(magnitude(other.seam), other.unit, counter);
            text += fmt::format(", by value {}", show_ns(static_cast<std::int64_t>(*beside)));
        }
        rows.push_back({clock_name(clock),
                        plot_line(in_ns(magnitude(clock.seam), clock.unit, counter),
                                  in_ns(clock.seam_bound, clock.unit, counter), beside),
                        std::move(text)});
    }
    Table table{{{""}, {scale_line()}, {""}}};
    for (const Row& row : merged(std::move(rows)))
        table.add({row.name, row.line, row.text});
    return fmt::format("Seams: o = this restore{}, | = its bound\n",
                       by_value ? ", x = by value, the way VMMs do it today" : "") +
           table.text("  ");
}

}  // namespace continuo::cli
