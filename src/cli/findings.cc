#include "findings.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace continuo::cli {

using state::Record;

namespace {

void add(Findings& out, std::string field, std::string text) {
    out.push_back({std::move(field), std::move(text)});
}

std::string vcpu_field(std::size_t vcpu, std::string_view key) {
    return fmt::format("/vcpus/{}/{}", vcpu, key);
}

void anchor_findings(const Record& record, Findings& out) {
    const auto& anchor = record.anchor;
    if (!anchor.synchronised)
        add(out, "/anchor/synchronised",
            "the source's clock was not synchronised: its TAI means little, and so does a gap "
            "that is measured with it");
    if (anchor.tai_offset_sec == 0)
        add(out, "/anchor/tai_offset_sec",
            "0: nobody told the source's kernel TAI - UTC, so that tai_ns is UTC");
    constexpr std::uint64_t year_2000_ns = 946'684'800ULL * time::kNanosPerSecond;
    if (anchor.tai.raw() < year_2000_ns)
        add(out, "/anchor/tai_ns",
            fmt::format("{} ns is before the year 2000: the source's clock was not set",
                        anchor.tai.raw()));
}

/// An unscaled vCPU's counter is the host's plus its offset, to the tick.
void offset_finding(const Record& record, std::size_t i, Findings& out) {
    const auto& vcpu = record.vcpus[i];
    if (!vcpu.tsc_offset || vcpu.frequency.floor_khz() != record.anchor.frequency.floor_khz())
        return;
    const std::uint64_t expected = record.anchor.counter.raw() + *vcpu.tsc_offset;
    const auto off = vcpu.counter - time::Count<time::GuestCounter>::from_raw(expected);
    if (off.magnitude() > vcpu.counter_bound_ticks)
        add(out, vcpu_field(i, "counter"),
            fmt::format("{} is {} ticks away from the anchor's counter plus tsc_offset, {}",
                        vcpu.counter.raw(), off.magnitude(), expected));
}

/// Ticks between the counters of a vCPU and of vCPU 0 that their bounds do not explain.
void skew_finding(const Record& record, std::size_t i, Findings& out) {
    const auto& first = record.vcpus.front();
    const auto& vcpu = record.vcpus[i];
    if (vcpu.frequency != first.frequency) {
        add(out, vcpu_field(i, "frequency_hz"),
            fmt::format("{} Hz, and vCPU 0 has {} Hz", vcpu.frequency.hz(), first.frequency.hz()));
        return;
    }
    const std::uint64_t apart = (vcpu.counter - first.counter).magnitude();
    std::uint64_t explained = 0;
    if (__builtin_add_overflow(vcpu.counter_bound_ticks, first.counter_bound_ticks, &explained))
        explained = UINT64_MAX;
    if (record.kvmclock && record.kvmclock->masterclock && apart > explained)
        add(out, vcpu_field(i, "counter"),
            fmt::format("{} ticks away from vCPU 0's, and yet kvmclock is said to have one line "
                        "for all vCPUs (masterclock)",
                        apart));
}

void kvmclock_findings(const Record& record, Findings& out) {
    if (!record.kvmclock) return;
    const auto& line = record.kvmclock->line;
    const auto since = record.vcpus.front().counter - line.tsc_timestamp();
    if (since.raw() < 0)
        add(out, "/kvmclock/tsc_timestamp",
            fmt::format("{} ticks after vCPU 0's counter: a guest that reads the line now reads "
                        "nonsense",
                        since.magnitude()));
    if (line.scale().mul() < 0x8000'0000U)
        add(out, "/kvmclock/mul",
            fmt::format("{:#x} has its top bit clear: KVM always publishes it set",
                        line.scale().mul()));
    if (line.system_time().raw() >> 63 != 0)
        add(out, "/kvmclock/system_time",
            fmt::format("{} ns is over 2^63: a negative kvmclock", line.system_time().raw()));
}

}  // namespace

Findings inconsistencies(const Record& record) {
    Findings out;
    anchor_findings(record, out);
    for (std::size_t i = 0; i < record.vcpus.size(); ++i) {
        offset_finding(record, i, out);
        skew_finding(record, i, out);
    }
    kvmclock_findings(record, out);
    if (record.notice_sequence % 2 != 0)
        add(out, "/notice_sequence",
            fmt::format("{} is odd: the guest has not answered the notice of its last move",
                        record.notice_sequence));
    return out;
}

state::Json to_json(const Findings& findings) {
    auto list = state::Json::array();
    for (const auto& finding : findings)
        list.push_back({{"field", finding.field}, {"text", finding.text}});
    return list;
}

std::string without_findings(std::string_view text) {
    const std::string quoted = fmt::format("\"{}\"", kFindingsKey);
    if (text.size() > state::kJsonBytesMax || text.find(quoted) == std::string_view::npos)
        return std::string{text};
    auto json = state::Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || json.erase(kFindingsKey) == 0) return std::string{text};
    return state::json_text(json);
}

}  // namespace continuo::cli
