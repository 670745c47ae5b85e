#include "plan_table.h"

#include <fmt/format.h>

#include <set>

#include "text.h"

namespace continuo::cli {

using state::Plan;
using Align = Table::Align;

namespace {

std::string head(const Plan& plan) {
    Table table{{{""}, {""}}};
    table.add({"policy", std::string{state::name(plan.policy)}});
    table.add(
        {"gap", fmt::format("{} ns ({}), within {} ns, measured by {}{}", plan.gap.raw(),
                            show_ns(plan.gap.raw()), plan.gap_bound_ns,
                            state::name(plan.elapsed_by), plan.gap_clamped ? ", clamped" : "")});
    add_measures(table, plan.measures);
    table.add({"resume at", fmt::format("host counter {}", plan.resume_at.raw())});
    table.add({"rate", fmt::format("{}: the guest's counter at {} Hz, off by {}",
                                   state::name(plan.rate), grouped(plan.guest_frequency.hz()),
                                   rate_error_text(plan.tsc_rate_error))});
    return "Verdict: accepted\n" + table.text("  ") +
           wrapped(std::string{state::meaning(plan.policy)} + ".", "  The guest: ", "    ");
}

std::string clocks(const Plan& plan) {
    Table table{{{"clock"},
                 {"vCPU", Align::kRight},
                 {"at the resume", Align::kRight},
                 {"advanced by", Align::kRight},
                 {"unit"},
                 {"offset", Align::kRight},
                 {"bound", Align::kRight},
                 {"made of"}}};
    const std::string counter{state::name(state::guest_counter(plan.architecture))};
    for (const auto& tsc : plan.tsc)
        table.add({counter, std::to_string(tsc.vcpu), std::to_string(tsc.at_resume.raw()),
                   std::to_string(tsc.advanced.raw()), "ticks",
                   std::to_string(static_cast<std::int64_t>(tsc.map.offset())),
                   std::to_string(tsc.bound.total()), terms_text(tsc.bound)});
    if (plan.kvmclock)
        table.add({"kvmclock", "all", std::to_string(plan.kvmclock->at_resume.raw()),
                   std::to_string(plan.kvmclock->advanced.raw()), "ns", "",
                   std::to_string(plan.kvmclock->bound.total()), terms_text(plan.kvmclock->bound)});
    return table.text();
}

bool for_all_vcpus(state::WriteKind kind) {
    return kind == state::WriteKind::kKvmclock || kind == state::WriteKind::kNotice;
}

std::string value_of(const state::Write& write) {
    switch (write.kind) {
        case state::WriteKind::kKvmclock:
            return "the prescribed line";
        case state::WriteKind::kGuestStopped:
            return "";
        case state::WriteKind::kVcpuTscKhz:
            return fmt::format("{} kHz", write.value);
        case state::WriteKind::kTscByValue:
            return "the prescribed line's value when it is written";
        default:
            return std::to_string(static_cast<std::int64_t>(write.value));
    }
}

std::string writes(const Plan& plan) {
    if (plan.writes.empty()) return "Writes: none, the guest's clocks are right as they are\n";
    Table table{{{"write"}, {"vCPU", Align::kRight}, {"value", Align::kRight}}};
    Table after{{{""}, {""}}};
    std::set<state::WriteKind> explained;
    for (const auto& write : plan.writes) {
        table.add({std::string{state::name(write.kind)},
                   for_all_vcpus(write.kind) ? "all" : std::to_string(write.vcpu),
                   value_of(write)});
        if (explained.insert(write.kind).second)
            after.add({std::string{state::name(write.kind)},
                       std::string{state::postcondition(write.kind)}});
    }
    return table.text() + "\nAfterwards:\n" + after.text("  ");
}

std::string notes(const Plan& plan) {
    std::string text;
    for (const auto& note : plan.notes)
        text += wrapped(note, "Note: ", "      ");
    return text.empty() ? text : "\n" + text;
}

}  // namespace

void add_measures(Table& table, const state::GapMeasures& measures) {
    if (!measures.by_exchange || !measures.by_tai) return;  // there was nothing to choose
    const state::ExchangeMeasure& exchange = *measures.by_exchange;
    table.add({"by exchange",
               fmt::format("{} ns, within {} ns: {} rounds, bracket {} ns, drift since {} ns",
                           exchange.gap.raw(), exchange.bound_ns, exchange.rounds,
                           exchange.bracket_ns, exchange.drift_ns)});
    table.add({"by TAI", fmt::format("{} ns, within {} ns", measures.by_tai->gap.raw(),
                                     measures.by_tai->bound_ns)});
    table.add({"clock offset",
               fmt::format("the destination's TAI less the source's: {} ns, within {} ns",
                           measures.clock_offset->gap.raw(), measures.clock_offset->bound_ns)});
}

std::string terms_text(const state::Bound& bound) {
    std::string text;
    for (const auto& term : bound)
        text +=
            fmt::format("{}{} {}", text.empty() ? "" : " + ", term.size, state::name(term.source));
    return text;
}

std::string rate_error_text(state::RateError error) {
    constexpr double two_pow_64 = 18446744073709551616.0;
    return fmt::format("{:.4g} ppb",
                       static_cast<double>(error.two_pow_minus_64) / two_pow_64 * 1e9);
}

std::string plan_table(const Plan& plan) {
    return head(plan) + "\n" + clocks(plan) + "\n" + writes(plan) + notes(plan);
}

std::string refusal_text(const state::Refusals& refusals) {
    std::string text = "Verdict: refused\n";
    for (const auto& refusal : refusals) {
        const std::string who =
            refusal.vcpu ? fmt::format("{}, vCPU {}", state::name(refusal.clock), *refusal.vcpu)
                         : std::string{state::name(refusal.clock)};
        text += "\n" + wrapped(fmt::format("{} ({}): {}.", who, state::name(refusal.reason),
                                           refusal.message),
                               "  ", "    ");
        text += wrapped(refusal.advice + ".", "    do next: ", "    ");
    }
    return text;
}

}  // namespace continuo::cli
