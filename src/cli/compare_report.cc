#include "compare_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "text.h"

namespace continuo::cli {

namespace {

using sim::Comparison;
using sim::Invariant;
using sim::InvariantTally;
using sim::Quantity;
using sim::Spread;
using sim::Tally;
using state::Json;

/// What the tables for people have; the document has all of them.
constexpr std::array kShown{Quantity::kTscSkew, Quantity::kForwardJump, Quantity::kLostTime,
                            Quantity::kStaleRealtime};

std::string text_of(std::string_view view) {
    return std::string{view};
}

/// The name of the scenario of a run, and its seed.
void put_run(const Comparison& comparison, const sim::RunKey& run, Json& to) {
    to["scenario"] = comparison.work.scenarios[run.scenario].name;
    to["seed"] = run.seed;
}

Json invariant_json(const Comparison& comparison, const InvariantTally& tally) {
    Json out;
    out["checked"] = tally.checked;
    out["broken"] = tally.broken;
    out["worst_ns"] = tally.worst.value;
    if (tally.broken > 0) put_run(comparison, tally.worst.run, out);
    return out;
}

Json buckets_json(const Spread& spread) {
    Json out = Json::array();
    for (std::size_t i = 0; i < Spread::kBuckets; ++i)
        if (spread.count_in(i) > 0)
            out.push_back(
                Json::array({std::min(Spread::edge(i), spread.max()), spread.count_in(i)}));
    return out;
}

Json quantity_json(const Comparison& comparison, const Spread& spread, bool with_buckets) {
    Json out;
    out["count"] = spread.count();
    out["min_ns"] = spread.min();
    out["median_ns"] = spread.median();
    out["p99_ns"] = spread.quantile(990);
    out["max_ns"] = spread.max();
    if (spread.count() > 0) put_run(comparison, spread.worst().run, out);
    if (with_buckets) out["buckets"] = buckets_json(spread);
    return out;
}

Json probes_json(sim::ProbeSet probes) {
    Json out = Json::array();
    for (std::size_t i = 0; i < sim::kProbes; ++i)
        if ((probes & sim::bit(static_cast<sim::Probe>(i))) != 0)
            out.push_back(text_of(sim::name(static_cast<sim::Probe>(i))));
    return out;
}

void put_tally(const Comparison& comparison, const Tally& tally, bool with_buckets, Json& to) {
    to["runs"] = tally.runs;
    to["moved"] = tally.moved;
    to["refused"] = tally.refused;
    to["failed"] = tally.failed;
    to["limit"] = tally.limit;
    for (std::size_t i = 0; i < sim::kInvariants; ++i)
        to["invariants"][text_of(sim::name(static_cast<Invariant>(i)))] =
            invariant_json(comparison, tally.invariants[i]);
    for (std::size_t i = 0; i < sim::kQuantities; ++i)
        to["quantities"][text_of(sim::name(static_cast<Quantity>(i)))] =
            quantity_json(comparison, tally.quantities[i], with_buckets);
    to["probes"] = probes_json(tally.probes);
}

Json totals_json(const Comparison& comparison) {
    Json out = Json::array();
    for (std::size_t i = 0; i < comparison.work.strategies.size(); ++i) {
        Json total;
        total["strategy"] = text_of(comparison.work.strategies[i]->name());
        put_tally(comparison, comparison.tallies.total(i), true, total);
        out.push_back(std::move(total));
    }
    return out;
}

Json cells_json(const Comparison& comparison) {
    Json out = Json::array();
    for (std::size_t i = 0; i < comparison.work.strategies.size(); ++i)
        for (std::size_t j = 0; j < comparison.work.scenarios.size(); ++j) {
            Json cell;
            cell["strategy"] = text_of(comparison.work.strategies[i]->name());
            cell["scenario"] = comparison.work.scenarios[j].name;
            put_tally(comparison, comparison.tallies.at(i, j), false, cell);
            out.push_back(std::move(cell));
        }
    return out;
}

Json claims_json(const std::vector<RuledClaim>& claims) {
    Json out = Json::array();
    for (const RuledClaim& ruled : claims) {
        Json claim;
        claim["name"] = ruled.claim->name;
        claim["thread"] = ruled.claim->thread;
        claim["who"] = ruled.claim->who;
        claim["claim"] = ruled.claim->text;
        claim["decided_by"] = ruled.claim->decided_by;
        claim["verdict"] = text_of(sim::name(ruled.ruling.standing));
        claim["figures"] = ruled.ruling.figures;
        claim["why"] = ruled.ruling.why;
        out.push_back(std::move(claim));
    }
    return out;
}

/// What the names of the document mean, so that the page needs no list of its own.
void put_legend(const Comparison& comparison, Json& to) {
    for (const sim::Strategy* strategy : comparison.work.strategies)
        to["strategies"].push_back({{"name", text_of(strategy->name())},
                                    {"thread", text_of(strategy->source())},
                                    {"about", text_of(strategy->about())}});
    for (const sim::Scenario& scenario : comparison.work.scenarios)
        to["scenarios"].push_back({{"name", scenario.name}, {"about", scenario.about}});
    for (std::size_t i = 0; i < sim::kInvariants; ++i) {
        const auto invariant = static_cast<Invariant>(i);
        to["invariants"].push_back({{"name", text_of(sim::name(invariant))},
                                    {"number", text_of(sim::number(invariant))},
                                    {"about", text_of(sim::meaning(invariant))}});
    }
    for (std::size_t i = 0; i < sim::kQuantities; ++i) {
        const auto quantity = static_cast<Quantity>(i);
        const bool shown = std::find(kShown.begin(), kShown.end(), quantity) != kShown.end();
        to["quantities"].push_back({{"name", text_of(sim::name(quantity))},
                                    {"title", text_of(sim::title(quantity))},
                                    {"about", text_of(sim::meaning(quantity))},
                                    {"shown", shown}});
    }
}

// ---- text

/// "4 counter_per_vcpu": invariants that some run was held against, in their order.
std::vector<Invariant> checked_somewhere(const std::vector<Tally>& totals) {
    std::vector<Invariant> out;
    for (std::size_t i = 0; i < sim::kInvariants; ++i) {
        const bool any = std::any_of(totals.begin(), totals.end(), [i](const Tally& total) {
            return total.invariants[i].checked > 0;
        });
        if (any) out.push_back(static_cast<Invariant>(i));
    }
    return out;
}

/// Tenths of a percent, rounded up so that what happened is never 0: "0.1%", "43.2%", "100%".
std::string percent(std::uint64_t part, std::uint64_t whole) {
    if (part == whole) return "100%";
    const auto tenths =
        static_cast<std::uint64_t>((static_cast<time::u128>(part) * 1000 + whole - 1) / whole);
    const std::uint64_t shown = std::min<std::uint64_t>(tenths, 999);
    return fmt::format("{}.{}%", shown / 10, shown % 10);
}

std::string cell_text(const InvariantTally& tally) {
    if (tally.checked == 0) return "-";
    return tally.broken == 0 ? "kept" : percent(tally.broken, tally.checked);
}

std::string matrix_text(const Comparison& comparison, const std::vector<Tally>& totals) {
    const std::vector<Invariant> invariants = checked_somewhere(totals);
    std::vector<Table::Column> columns{{"strategy"}};
    std::string legend;
    char letter = 'a';
    for (const Invariant invariant : invariants) {
        columns.push_back({std::string(1, letter), Table::Align::kRight});
        legend += wrapped(sim::meaning(invariant), fmt::format("  {}  ", letter), "     ");
        ++letter;
    }
    Table table{columns};
    for (std::size_t i = 0; i < totals.size(); ++i) {
        std::vector<std::string> row{text_of(comparison.work.strategies[i]->name())};
        for (const Invariant invariant : invariants)
            row.push_back(cell_text(totals[i].of(invariant)));
        table.add(std::move(row));
    }
    return "Invariants: kept, or the share of runs in which they were broken; -: not promised\n" +
           table.text("  ") + "\n" + legend;
}

std::string broken_text(const Comparison& comparison, const std::vector<Tally>& totals) {
    Table table{{{"strategy"},
                 {"invariant"},
                 {"broken", Table::Align::kRight},
                 {"by up to", Table::Align::kRight},
                 {"seen in"},
                 {"seed", Table::Align::kRight}}};
    for (std::size_t i = 0; i < totals.size(); ++i)
        for (std::size_t j = 0; j < sim::kInvariants; ++j) {
            const InvariantTally& tally = totals[i].invariants[j];
            if (tally.broken == 0) continue;
            table.add({text_of(comparison.work.strategies[i]->name()),
                       text_of(sim::name(static_cast<Invariant>(j))),
                       fmt::format("{} of {}", tally.broken, tally.checked),
                       // What either holds or does not has no size but 1.
                       tally.worst.value > 1 ? show_ns_unsigned(tally.worst.value) : "-",
                       comparison.work.scenarios[tally.worst.run.scenario].name,
                       std::to_string(tally.worst.run.seed)});
        }
    if (table.empty()) return "No invariant was broken in any run.\n";
    return "What was broken, and the run that shows it at its worst\n" + table.text("  ");
}

std::string quantities_text(const Comparison& comparison, const std::vector<Tally>& totals) {
    std::vector<Table::Column> columns{{"strategy"}, {"moved", Table::Align::kRight}};
    for (const Quantity quantity : kShown)
        columns.push_back({text_of(sim::title(quantity)), Table::Align::kRight});
    Table table{columns};
    for (std::size_t i = 0; i < totals.size(); ++i) {
        std::vector<std::string> row{text_of(comparison.work.strategies[i]->name()),
                                     fmt::format("{} of {}", totals[i].moved, totals[i].runs)};
        for (const Quantity quantity : kShown) {
            const Spread& spread = totals[i].of(quantity);
            row.push_back(spread.count() == 0 ? "-"
                                              : show_ns_unsigned(spread.median()) + " / " +
                                                    show_ns_unsigned(spread.max()));
        }
        table.add(std::move(row));
    }
    std::string legend;
    for (const Quantity quantity : kShown)
        legend +=
            wrapped(sim::meaning(quantity), fmt::format("  {}: ", sim::title(quantity)), "    ");
    return "How far off the guest's clocks were: median / worst of the runs that moved\n" +
           table.text("  ") + "\n" + legend;
}

std::string claims_text(const std::vector<RuledClaim>& claims) {
    std::string out = "What the threads claim\n";
    std::array<std::size_t, 3> counts{};
    constexpr std::array<const char*, 3> marks{"reproduced     ", "NOT REPRODUCED ",
                                               "not decided    "};
    for (const RuledClaim& ruled : claims) {
        const auto standing = static_cast<std::size_t>(ruled.ruling.standing);
        ++counts[standing];
        out += wrapped(ruled.claim->text,
                       fmt::format("  {}{:<6}", marks[standing], ruled.claim->thread), "      ");
        if (!ruled.ruling.figures.empty())
            out += wrapped(ruled.ruling.figures, "      figures: ", "        ");
        if (!ruled.ruling.why.empty()) out += wrapped(ruled.ruling.why, "      why: ", "        ");
    }
    return out + fmt::format("  {} reproduced, {} not, {} not decided by a simulation\n", counts[0],
                             counts[1], counts[2]);
}

}  // namespace

Json compare_json(const Comparison& comparison, const std::vector<RuledClaim>& claims) {
    Json out;
    out["schema"] = "continuo/compare/1";
    out["version"] = CONTINUO_VERSION;
    out["seeds"] = {{"first", comparison.work.seeds.first}, {"last", comparison.work.seeds.last}};
    out["runs"] = comparison.tallies.runs();
    out["hash"] = fmt::format("{:#018x}", comparison.tallies.hash());
    put_legend(comparison, out);
    out["totals"] = totals_json(comparison);
    out["cells"] = cells_json(comparison);
    out["claims"] = claims_json(claims);
    return out;
}

std::string compare_text(const Comparison& comparison, const std::vector<RuledClaim>& claims) {
    std::vector<Tally> totals;
    for (std::size_t i = 0; i < comparison.work.strategies.size(); ++i)
        totals.push_back(comparison.tallies.total(i));
    return fmt::format("{} strategies in {} scenarios, seeds {} to {}: {} runs, hash {:#018x}\n\n",
                       totals.size(), comparison.work.scenarios.size(), comparison.work.seeds.first,
                       comparison.work.seeds.last, grouped(comparison.tallies.runs()),
                       comparison.tallies.hash()) +
           matrix_text(comparison, totals) + "\n" + broken_text(comparison, totals) + "\n" +
           quantities_text(comparison, totals) + "\n" + claims_text(claims);
}

}  // namespace continuo::cli
