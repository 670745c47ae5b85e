#include "bench_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "text.h"

namespace continuo::cli {

namespace {

using state::Json;
using vmm::CounterBench;
using vmm::CounterRead;
using vmm::ReadCost;
using vmm::ReadPath;

/// A table with lines round its cells, as the thread has it. The first row is the titles.
class BoxTable {
  public:
    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

    std::string text() const {
        std::vector<std::size_t> widths(rows_.front().size(), 0);
        for (const auto& row : rows_)
            for (std::size_t i = 0; i < row.size(); ++i)
                widths[i] = std::max(widths[i], row[i].size());
        std::string rule = "+";
        for (const std::size_t width : widths)
            rule += std::string(width + 2, '-') + "+";
        rule += "\n";
        std::string out = rule;
        for (std::size_t r = 0; r < rows_.size(); ++r) {
            out += "|";
            for (std::size_t i = 0; i < widths.size(); ++i)
                out += fmt::format(" {:<{}} |", rows_[r][i], widths[i]);
            out += "\n";
            if (r == 0) out += rule;
        }
        return out + rule;
    }

  private:
    std::vector<std::vector<std::string>> rows_;
};

/// `ticks`/`denominator` of the guest's counter for people: in ns, or in instructions where they
/// are what the host counts.
std::string show_ticks(const CounterBench& bench, std::uint64_t ticks, std::uint64_t denominator) {
    if (!bench.instructions.shift)
        return show_ps(vmm::nearest_ps(ticks, denominator, bench.counter));
    const std::uint64_t milli = bench.instructions.nearest_milli_instructions(ticks, denominator);
    const std::uint64_t tenths = (milli + 50) / 100;
    return fmt::format("{}.{} instr", tenths / 10, tenths % 10);
}

std::string titled(std::string_view path) {
    std::string title{path};
    title.front() = static_cast<char>(title.front() - 'a' + 'A');
    return title;
}

/// The letter under which a series stands in its tables.
std::string letter_of(const CounterBench& bench, const CounterRead& read) {
    return std::string(1, static_cast<char>('a' + (&read - bench.series.data())));
}

std::vector<std::string_view> clocks_of(const CounterBench& bench) {
    std::vector<std::string_view> clocks;
    for (const CounterRead& read : bench.series)
        if (read.path != ReadPath::kNothing &&
            std::find(clocks.begin(), clocks.end(), read.clock) == clocks.end())
            clocks.push_back(read.clock);
    return clocks;
}

std::vector<const CounterRead*> reads_of(const CounterBench& bench, std::string_view clock) {
    std::vector<const CounterRead*> reads;
    for (const CounterRead& read : bench.series)
        if (read.clock == clock) reads.push_back(&read);
    return reads;
}

/// One clock in the thread's form: its native and trapped reads, then the published ones.
std::string clock_text(const CounterBench& bench, std::string_view clock) {
    std::vector<std::string> titles{"Metric"};
    std::vector<std::string> average{"Average"};
    std::vector<std::string> deviation{"Standard Deviation"};
    std::vector<std::string> p95{"95th Percentile"};
    const auto column = [&](std::string title, std::string a, std::string d, std::string p) {
        titles.push_back(std::move(title));
        average.push_back(std::move(a));
        deviation.push_back(std::move(d));
        p95.push_back(std::move(p));
    };
    for (const CounterRead* read : reads_of(bench, clock)) {
        const std::string title =
            titled(vmm::name(read->path)) + " (" + letter_of(bench, *read) + ")";
        if (!read->cost) {
            column(title, "-", "-", "-");
            continue;
        }
        const vmm::SampleStatistics& samples = read->cost->samples;
        column(title, show_ticks(bench, samples.sum, samples.count),
               show_ticks(bench, samples.floor_milli_deviation(), 1000),
               show_ticks(bench, samples.p95, 1));
    }
    for (const PublishedReads& published : kPublishedReads)
        column(fmt::format("[{}]", published.mode),
               fmt::format("{}/{}ns", published.native.average, published.trapped.average),
               fmt::format("{}/{}ns", published.native.deviation, published.trapped.deviation),
               fmt::format("{}/{}ns", published.native.p95, published.trapped.p95));
    BoxTable table;
    for (auto* row : {&titles, &average, &deviation, &p95})
        table.add(std::move(*row));
    return "\n" + std::string{clock} + "\n" + table.text();
}

std::string legend(const CounterBench& bench) {
    Table table{{{""}, {""}, {""}}};
    for (const CounterRead& read : bench.series)
        table.add({"(" + letter_of(bench, read) + ")", std::string{vmm::name(read.path)},
                   std::string{read.how}});
    return table.text("  ");
}

/// A quotient with three decimals, rounded to the nearest.
std::string show_quotient(std::uint64_t numerator, std::uint64_t denominator) {
    const auto milli = static_cast<std::uint64_t>(
        (static_cast<time::u128>(numerator) * 1000 + denominator / 2) / denominator);
    return fmt::format("{}.{:03}", milli / 1000, milli % 1000);
}

std::uint64_t reads_in(const ReadCost& cost) {
    return cost.samples.count + cost.batches.count * vmm::kBatchReads;
}

std::optional<std::uint64_t> net_ps(const CounterBench& bench, const CounterRead& read) {
    const auto ticks = vmm::net_batch_ticks(bench, read);
    if (!ticks) return std::nullopt;
    return vmm::nearest_ps(*ticks, vmm::kBatchReads, bench.counter);
}

std::optional<std::uint64_t> net_milli_instructions(const CounterBench& bench,
                                                    const CounterRead& read) {
    const auto ticks = vmm::net_batch_ticks(bench, read);
    if (!ticks || !bench.instructions.shift) return std::nullopt;
    return bench.instructions.nearest_milli_instructions(*ticks, vmm::kBatchReads);
}

std::vector<std::string> detail_row(const CounterBench& bench, const CounterRead& read) {
    const std::string letter = "(" + letter_of(bench, read) + ")";
    if (!read.cost) return {letter, "-", "-", "-", "-", "-"};
    const auto& samples = read.cost->samples;
    const auto net = read.path == ReadPath::kNothing ? std::nullopt : net_batch_ticks(bench, read);
    return {letter,
            show_ticks(bench, samples.min, 1),
            show_ticks(bench, samples.median, 1),
            show_ticks(bench, samples.max, 1),
            net ? show_ticks(bench, *net, vmm::kBatchReads) : "-",
            read.cost->exits ? show_quotient(*read.cost->exits, reads_in(*read.cost)) : "-"};
}

std::string details_text(const CounterBench& bench) {
    using Align = Table::Align;
    Table table{{{"read"},
                 {"least", Align::kRight},
                 {"median", Align::kRight},
                 {"most", Align::kRight},
                 {"back to back", Align::kRight},
                 {"exits counted/read", Align::kRight}}};
    for (const CounterRead& read : bench.series)
        table.add(detail_row(bench, read));
    return "\n" + table.text("  ") +
           wrapped(
               "\"back to back\" is one read in a loop of 100, the loop taken off: the median "
               "of all such loops. The other columns are of samples, each with the two "
               "readings of the counter round its read; \"nothing\" is what these cost alone.",
               "  ", "  ");
}

std::string reasons_text(const CounterBench& bench) {
    std::string text;
    for (const CounterRead& read : bench.series) {
        if (read.cost) continue;
        text += wrapped(fmt::format("({}) {}", letter_of(bench, read), read.cost.error().message()),
                        "  ", "      ");
    }
    return text.empty() ? text : "\nNo figures, and why:\n" + text;
}

std::string host_text(const CounterBench& bench) {
    Table table{{{""}, {""}}};
    for (const vmm::HostFact& fact : bench.host)
        table.add({std::string{fact.title}, fact.value});
    table.add({"guest's counter", fmt::format("{} Hz, a tick is {}", grouped(bench.counter.hz()),
                                              show_ps(vmm::nearest_ps(1, 1, bench.counter)))});
    return table.text("  ");
}

/// What the figures are figures of.
std::string meaning_text(const CounterBench& bench, bool emulated) {
    if (bench.instructions.shift) {
        const auto ns = std::uint64_t{1} << *bench.instructions.shift;
        return wrapped(
            fmt::format("This host's counter counts instructions: runs of three kinds of them took "
                        "{} ns an instruction alike. The figures are instructions, those of the "
                        "host's kernel included, and no times.",
                        ns),
            "  ", "  ");
    }
    if (emulated)
        return "  This host is emulated: its times are those of an emulator, and of no "
               "processor.\n";
    return "";
}

Json statistics_json(const vmm::SampleStatistics& samples) {
    Json json;
    json["count"] = samples.count;
    json["min"] = samples.min;
    json["median"] = samples.median;
    json["p95"] = samples.p95;
    json["max"] = samples.max;
    json["sum"] = samples.sum;
    json["milli_deviation"] = samples.floor_milli_deviation();
    return json;
}

Json optional_json(const std::optional<std::uint64_t>& value) {
    return value ? Json(*value) : Json(nullptr);
}

Json cost_json(const CounterBench& bench, const CounterRead& read) {
    const ReadCost& cost = *read.cost;
    const auto ps = [&](std::uint64_t ticks, std::uint64_t denominator) {
        return vmm::nearest_ps(ticks, denominator, bench.counter);
    };
    Json json;
    json["average_ps"] = ps(cost.samples.sum, cost.samples.count);
    json["standard_deviation_ps"] = ps(cost.samples.floor_milli_deviation(), 1000);
    json["p95_ps"] = ps(cost.samples.p95, 1);
    const bool empty = read.path == ReadPath::kNothing;
    json["back_to_back_ps"] = empty ? Json(nullptr) : optional_json(net_ps(bench, read));
    json["back_to_back_milli_instructions"] =
        empty ? Json(nullptr) : optional_json(net_milli_instructions(bench, read));
    json["exits"] = optional_json(cost.exits);
    json["reads"] = reads_in(cost);
    json["backward"] = cost.backward;
    json["sample_ticks"] = statistics_json(cost.samples);
    json["batch_ticks"] = statistics_json(cost.batches);
    return json;
}

Json series_json(const CounterBench& bench, const CounterRead& read) {
    Json json;
    json["id"] = read.id;
    json["clock"] = read.clock;
    json["how"] = read.how;
    json["path"] = vmm::name(read.path);
    json["cost"] = read.cost ? cost_json(bench, read) : Json(nullptr);
    json["no_cost"] = read.cost ? Json(nullptr) : state::error_to_json(read.cost.error())["error"];
    return json;
}

Json instructions_json(const vmm::InstructionClock& clock) {
    Json json;
    json["ns_each"] = clock.shift ? Json(std::uint64_t{1} << *clock.shift) : Json(nullptr);
    json["runs"] = Json::array();
    for (std::size_t i = 0; i < clock.ticks.size(); ++i)
        json["runs"].push_back(
            {{"instructions", clock.instructions[i]}, {"ticks", clock.ticks[i]}});
    return json;
}

Json published_json() {
    Json json = Json::array();
    for (const PublishedReads& published : kPublishedReads) {
        for (const auto path : {ReadPath::kNative, ReadPath::kTrapped}) {
            const PublishedNs& ns =
                path == ReadPath::kNative ? published.native : published.trapped;
            Json row;
            row["mode"] = published.mode;
            row["path"] = vmm::name(path);
            row["average_ns"] = ns.average;
            row["standard_deviation_ns"] = ns.deviation;
            row["p95_ns"] = ns.p95;
            json.push_back(std::move(row));
        }
    }
    return json;
}

}  // namespace

std::string show_ps(std::uint64_t ps) {
    const std::uint64_t tenths = ps / 100 + (ps % 100 >= 50 ? 1 : 0);
    return fmt::format("{}.{}ns", tenths / 10, tenths % 10);
}

std::string counter_bench_text(const CounterBench& bench, bool emulated) {
    std::string text = "Host\n" + host_text(bench) + meaning_text(bench, emulated);
    text += fmt::format("\nReads, {} of each\n", bench.reads) + legend(bench);
    for (const std::string_view clock : clocks_of(bench))
        text += clock_text(bench, clock);
    text += wrapped(
        "[...] are published figures, native/trapped: the physical counter of an Ampere Mt. Jade, "
        "10000 reads (Oliver Upton, \"KVM: Add idempotent controls for migrating system counter "
        "state\", 2021).",
        "  ", "  ");
    return text + details_text(bench) + reasons_text(bench);
}

Json counter_bench_json(const CounterBench& bench, bool emulated) {
    Json json;
    json["schema"] = "continuo/counter-bench/1";
    for (const vmm::HostFact& fact : bench.host)
        json["host"][std::string{fact.id}] = fact.value;
    json["host"]["emulated"] = emulated;
    json["counter_hz"] = bench.counter.hz();
    json["reads"] = bench.reads;
    json["batch_reads"] = vmm::kBatchReads;
    json["instructions"] = instructions_json(bench.instructions);
    json["series"] = Json::array();
    for (const CounterRead& read : bench.series)
        json["series"].push_back(series_json(bench, read));
    json["published"] = published_json();
    return json;
}

}  // namespace continuo::cli
