#include "watch_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "text.h"

namespace continuo::cli {

namespace {

using namespace guest::watch;
using state::Json;

constexpr std::int64_t kNanosPerSecond = 1'000'000'000;
/// So many events are shown with all their clocks.
constexpr std::size_t kFewEvents = 12;

/// Middle and radius of an interval: what lies in it is the middle, give or take the radius.
struct Middle {
    std::int64_t ns;
    std::uint64_t radius;
};
Middle middle(NanosInterval interval) {
    const auto sum =
        static_cast<time::i128>(interval.lo().raw()) + static_cast<time::i128>(interval.hi().raw());
    const std::int64_t ns = time::sat_i64(sum / 2);
    const Nanos at = Nanos::from_raw(ns);
    return {ns, std::max((interval.hi() - at).magnitude(), (at - interval.lo()).magnitude())};
}

std::vector<std::string> reason_names(ReasonSet reasons) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < kReasons; ++i)
        if (reasons.has(static_cast<Reason>(i))) names.emplace_back(name(static_cast<Reason>(i)));
    return names;
}

Track track_at(std::size_t i) {
    return static_cast<Track>(i);
}

// ---- JSON

Json seam_json(Track track, const Seam& seam) {
    const Middle m = middle(seam.seam);
    Json out;
    out["clock"] = std::string{name(track)};
    out["seam_ns"] = m.ns;
    out["bound_ns"] = m.radius;
    out["method"] = std::string{name(seam.method)};
    out["cpus_agree"] = seam.cpus_agree;
    out["jump_ns"] = seam.jump.raw();
    out["lost_ns"] = nullptr;
    out["lost_bound_ns"] = nullptr;
    if (!seam.lost) return out;
    const Middle lost = middle(*seam.lost);
    out["lost_ns"] = lost.ns;
    out["lost_bound_ns"] = lost.radius;
    return out;
}

Json skew_json(const std::optional<SkewInterval>& skew) {
    if (!skew) return nullptr;
    return {{"ticks_min", skew->lo().raw()}, {"ticks_max", skew->hi().raw()}};
}

Json residuals_json(const std::vector<Residual>& residuals) {
    Json out = Json::array();
    for (const Residual& r : residuals)
        out.push_back(Json::array({r.at_ns, r.lo_ns, r.hi_ns}));
    return out;
}

Json event_json(const WatchSetup& setup, const Event& event) {
    Json out;
    out["number"] = event.number;
    out["reasons"] = reason_names(event.reasons);
    out["at_ns"] = event.at.raw();
    out["realtime_ns"] = event.realtime.raw();
    out["counter_before"] = event.from.raw();
    out["counter_after"] = event.to.raw();
    out["cpus"] = event.cpus;
    out["blackout_ns"] = event.blackout ? Json(event.blackout->raw()) : Json(nullptr);
    out["blackout_by"] =
        event.blackout ? Json(std::string{name(event.blackout_by)}) : Json(nullptr);
    out["since_stop_ns"] = event.since_stop ? Json(event.since_stop->raw()) : Json(nullptr);
    out["reference"] = event.reference ? Json(std::string{name(*event.reference)}) : Json(nullptr);
    out["clocks"] = Json::array();
    for (std::size_t i = 0; i < kTracks; ++i)
        if (event.seams[i]) out["clocks"].push_back(seam_json(track_at(i), *event.seams[i]));
    out["skew"] = Json::array();
    for (const CpuSkew& skew : event.skew)
        out["skew"].push_back({{"cpu", setup.cpus[skew.cpu]},
                               {"before", skew_json(skew.before)},
                               {"after", skew_json(skew.after)}});
    out["picture"] = {{"CLOCK_MONOTONIC", residuals_json(event.picture.monotonic)},
                      {"CLOCK_MONOTONIC_RAW", residuals_json(event.picture.monotonic_raw)}};
    return out;
}

Json backward_json(const WatchSetup& setup, const Backward& back) {
    return {{"at_ns", back.at.raw()},
            {"size", back.size},
            {"first",
             {{"cpu", setup.cpus[back.first_cpu]},
              {"value", back.first_value},
              {"counter_after", back.first_after.raw()}}},
            {"second",
             {{"cpu", setup.cpus[back.second_cpu]},
              {"value", back.second_value},
              {"counter_before", back.second_before.raw()}}}};
}

Json track_json(const WatchSetup& setup, Track track, const TrackReport& report) {
    const Middle sum = middle(report.seam_sum);
    Json out;
    out["clock"] = std::string{name(track)};
    out["readings"] = report.readings;
    out["largest_jump_ns"] = report.largest_jump.raw();
    out["backward_within_cpu"] = report.backward_within;
    out["backward_across_cpus"] = report.backward_across;
    out["worst_backward"] =
        report.worst_backward ? backward_json(setup, *report.worst_backward) : Json(nullptr);
    out["steps"] = report.steps;
    out["seam_sum_ns"] = sum.ns;
    out["seam_sum_bound_ns"] = sum.radius;
    out["rate_ppb"] = report.rate_ppb ? Json(*report.rate_ppb) : Json(nullptr);
    return out;
}

Json ntp_json(const NtpState& state) {
    return {{"unsync", state.unsync},
            {"maxerror_us", state.maxerror_us},
            {"esterror_us", state.esterror_us},
            {"frequency_2_pow_minus_16_ppm", state.frequency}};
}

Json cpu_json(const WatchSetup& setup, const CpuReport& cpu) {
    return {{"cpu", setup.cpus[cpu.cpu]},
            {"passes", cpu.passes},
            {"longest_hole_ns", cpu.longest_hole.raw()},
            {"holes", cpu.holes},
            {"exchanges", cpu.exchanges},
            {"skew", skew_json(cpu.skew)}};
}

Json timeline_json(const Report& report) {
    Json out;
    out["at_ns"] = Json::array();
    out["longest_hole_ns"] = Json::array();
    for (const TimelineBin& bin : report.timeline) {
        out["at_ns"].push_back(bin.at_ns);
        out["longest_hole_ns"].push_back(bin.longest_hole_ns);
    }
    out["less_monotonic_raw_ns"] = Json::object();
    for (std::size_t i = 0; i < kTracks; ++i) {
        const bool any = std::any_of(report.timeline.begin(), report.timeline.end(),
                                     [i](const TimelineBin& bin) { return bin.offset_ns[i]; });
        if (!any) continue;
        Json series = Json::array();
        for (const TimelineBin& bin : report.timeline)
            series.push_back(bin.offset_ns[i] ? Json(*bin.offset_ns[i]) : Json(nullptr));
        out["less_monotonic_raw_ns"][std::string{name(track_at(i))}] = std::move(series);
    }
    return out;
}

Json setup_json(const WatchSetup& setup) {
    const auto or_null = [](const std::string& text) {
        return text.empty() ? Json(nullptr) : Json(text);
    };
    return {{"kernel", setup.kernel},
            {"clocksource", setup.clocksource},
            {"cpus", setup.cpus},
            {"rate_hz", setup.rate_hz},
            {"window_ns", setup.window.raw()},
            {"hole_ns", setup.hole.raw()},
            {"vmclock", or_null(setup.vmclock)},
            {"notice", or_null(setup.notice)},
            {"phc", or_null(setup.phc)},
            {"kvmclock_page", setup.kvmclock}};
}

// ---- text

std::string show_middle(NanosInterval interval) {
    const Middle m = middle(interval);
    return fmt::format("{} +-{}", grouped(m.ns), grouped(m.radius));
}

std::string joined(const std::vector<std::string>& words, std::string_view between) {
    std::string out;
    for (const std::string& word : words)
        out += (out.empty() ? "" : std::string{between}) + word;
    return out;
}

std::string at_text(Nanos at) {
    return fmt::format("{:>10.3f} s", static_cast<double>(at.raw()) / 1e9);
}

/// "CLOCK_REALTIME" as "REALTIME", for narrow lines.
std::string short_name(Track track) {
    const std::string_view full = name(track);
    return std::string{full.starts_with("CLOCK_") ? full.substr(6) : full};
}

std::string ticks_text(const std::optional<SkewInterval>& skew) {
    if (!skew) return "-";
    return fmt::format("{} to {}", grouped(skew->lo().raw()), grouped(skew->hi().raw()));
}

std::string head_text(const WatchSetup& setup, const Report& report) {
    std::string pages = setup.kvmclock ? "kvmclock's page" : "no kvmclock page";
    pages += setup.vmclock.empty() ? ", no vmclock" : ", vmclock " + setup.vmclock;
    pages += setup.notice.empty() ? ", no notice page" : ", notice page " + setup.notice;
    pages += setup.phc.empty() ? ", no PTP clock of the host" : ", PTP clock " + setup.phc;
    std::string text = fmt::format(
        "Linux {}, clocksource {}, {} CPUs; {}\n{} passes in {}, {} a second on each CPU; a pass "
        "took {} to {}, mean {}\n",
        setup.kernel, setup.clocksource, setup.cpus.size(), pages, grouped(report.passes),
        show_ns(report.ran.raw()), setup.rate_hz, show_ns(report.pass_ns_min),
        show_ns(report.pass_ns_max), show_ns(report.pass_ns_mean));
    if (report.lost_passes > 0)
        text +=
            fmt::format("{} passes came faster than they could be judged, and are not in this\n",
                        grouped(report.lost_passes));
    return text;
}

std::string tracks_text(const Report& report) {
    Table table{{{"clock"},
                 {"readings", Table::Align::kRight},
                 {"largest jump", Table::Align::kRight},
                 {"back within", Table::Align::kRight},
                 {"back across", Table::Align::kRight},
                 {"steps", Table::Align::kRight},
                 {"all seams, ns", Table::Align::kRight}}};
    for (std::size_t i = 0; i < kTracks; ++i) {
        const TrackReport& track = report.tracks[i];
        if (track.readings == 0) continue;
        const bool page = i >= kClocks;
        const bool counter = track_at(i) == Track::kCounter;
        table.add({std::string{name(track_at(i))}, grouped(track.readings),
                   page ? "-" : show_ns(track.largest_jump.raw()),
                   page && !counter ? "-" : grouped(track.backward_within),
                   page && !counter ? "-" : grouped(track.backward_across), grouped(track.steps),
                   counter ? "-" : show_middle(track.seam_sum)});
    }
    return "Clocks\n" + table.text("  ");
}

std::string cpus_text(const WatchSetup& setup, const Report& report) {
    Table table{{{"cpu", Table::Align::kRight},
                 {"passes", Table::Align::kRight},
                 {"longest hole", Table::Align::kRight},
                 {"holes alone", Table::Align::kRight},
                 {"ahead of the first, ticks", Table::Align::kRight}}};
    for (const CpuReport& cpu : report.cpus)
        table.add({std::to_string(setup.cpus[cpu.cpu]), grouped(cpu.passes),
                   show_ns(cpu.longest_hole.raw()), grouped(cpu.holes), ticks_text(cpu.skew)});
    return "CPUs\n" + table.text("  ");
}

std::string skew_text(const WatchSetup& setup, const Event& event) {
    std::string text;
    for (const CpuSkew& skew : event.skew)
        text += fmt::format("    cpu {}: {} ticks ahead of the first before, {} since\n",
                            setup.cpus[skew.cpu], ticks_text(skew.before), ticks_text(skew.after));
    return text;
}

std::string event_text(const WatchSetup& setup, const Event& event) {
    Table table{{{"clock"},
                 {"seam, ns", Table::Align::kRight},
                 {"lost of the host's time, ns", Table::Align::kRight},
                 {"jump", Table::Align::kRight},
                 {"by"}}};
    for (std::size_t i = 0; i < kTracks; ++i) {
        const auto& seam = event.seams[i];
        const bool counter = track_at(i) == Track::kCounter;
        if (!seam || (counter && !seam->lost)) continue;
        table.add({std::string{name(track_at(i))}, counter ? "-" : show_middle(seam->seam),
                   seam->lost ? show_middle(*seam->lost) : "-",
                   counter ? "-" : show_ns(seam->jump.raw()),
                   std::string{name(seam->method)} + (seam->cpus_agree ? "" : ", CPUs differ")});
    }
    return "  " + event_line(event) + "\n" + (table.empty() ? "" : table.text("    ")) +
           skew_text(setup, event);
}

std::string events_text(const WatchSetup& setup, const Report& report) {
    if (report.events.empty()) return "No event: every clock kept its line.\n";
    std::string text = fmt::format("Events: {}\n", report.events_total);
    if (report.events_total > report.events.size())
        text += fmt::format("  of which the first and the last {} are shown\n",
                            report.events.size() / 2);
    const bool few = report.events.size() <= kFewEvents;
    for (const Event& event : report.events)
        text += few ? event_text(setup, event) : "  " + event_line(event) + "\n";
    if (!few) text += "  --json and --html have what each did to every clock\n";
    return text;
}

std::string ntp_text(const Report& report) {
    std::string text;
    for (const NtpChange& change : report.ntp_changes)
        text += "  " + ntp_line(change) + "\n";
    if (report.ntp_total > report.ntp_changes.size())
        text += fmt::format("  and {} more\n", report.ntp_total - report.ntp_changes.size());
    return text.empty() ? "" : "The kernel's NTP state\n" + text;
}

std::string backward_text(const Report& report) {
    std::string text;
    for (const TrackReport& track : report.tracks)
        if (track.worst_backward)
            text += "  " +
                    backward_line(*track.worst_backward,
                                  track.backward_within + track.backward_across) +
                    "\n";
    return text.empty() ? "" : "Worst steps back\n" + text;
}

}  // namespace

Json watch_json(const WatchSetup& setup, const Report& report) {
    Json out;
    out["schema"] = "continuo/watch/1";
    out["version"] = CONTINUO_VERSION;
    out["setup"] = setup_json(setup);
    out["ran_ns"] = report.ran.raw();
    out["passes"] = report.passes;
    out["passes_lost"] = report.lost_passes;
    out["passes_torn"] = report.torn_passes;
    out["pass_cost_ns"] = {
        {"min", report.pass_ns_min}, {"mean", report.pass_ns_mean}, {"max", report.pass_ns_max}};
    out["counter_rate"] = report.rate
                              ? Json{{"ns", report.rate->nanos}, {"ticks", report.rate->ticks}}
                              : Json(nullptr);
    out["clocks"] = Json::array();
    for (std::size_t i = 0; i < kTracks; ++i)
        if (report.tracks[i].readings > 0)
            out["clocks"].push_back(track_json(setup, track_at(i), report.tracks[i]));
    out["cpus"] = Json::array();
    for (const CpuReport& cpu : report.cpus)
        out["cpus"].push_back(cpu_json(setup, cpu));
    out["events_total"] = report.events_total;
    out["events"] = Json::array();
    for (const Event& event : report.events)
        out["events"].push_back(event_json(setup, event));
    out["ntp"] = report.ntp ? ntp_json(*report.ntp) : Json(nullptr);
    out["ntp_changes_total"] = report.ntp_total;
    out["ntp_changes"] = Json::array();
    for (const NtpChange& change : report.ntp_changes)
        out["ntp_changes"].push_back({{"at_ns", change.at.raw()},
                                      {"before", ntp_json(change.before)},
                                      {"after", ntp_json(change.after)}});
    out["timeline"] = timeline_json(report);
    return out;
}

std::string watch_text(const WatchSetup& setup, const Report& report) {
    std::string text = head_text(setup, report) + "\n" + tracks_text(report) + "\n" +
                       cpus_text(setup, report) + "\n" + events_text(setup, report);
    for (const std::string& part : {ntp_text(report), backward_text(report)})
        if (!part.empty()) text += "\n" + part;
    return text;
}

std::string event_line(const Event& event) {
    std::string line = at_text(event.at) + "  " + joined(reason_names(event.reasons), "+");
    if (event.blackout)
        line += fmt::format(", blackout at most {}", show_ns(event.blackout->raw()));
    for (const Track track : {Track::kMonotonic, Track::kRealtime}) {
        const auto& seam = event.of(track);
        if (!seam) continue;
        line += fmt::format(", {} seam {} ns", short_name(track), show_middle(seam->seam));
        if (seam->lost) line += fmt::format(" lost {}", show_middle(*seam->lost));
    }
    return line;
}

std::string ntp_line(const NtpChange& change) {
    const auto show = [](const NtpState& state) {
        return fmt::format("{}, maxerror {} us", state.unsync ? "unsynchronised" : "synchronised",
                           grouped(state.maxerror_us));
    };
    return fmt::format("{}  ntp: {} -> {}", at_text(change.at), show(change.before),
                       show(change.after));
}

std::string backward_line(const Backward& back, std::uint64_t count) {
    return fmt::format(
        "{}  backward, {} time{}: {} by {}: cpu {} read {} and was done at counter {}; then cpu {} "
        "began at {} and read {}",
        at_text(back.at), count, count == 1 ? "" : "s", name(back.track),
        back.track == Track::kCounter ? grouped(back.size) + " ticks" : show_ns_unsigned(back.size),
        back.first_cpu, back.first_value, back.first_after.raw(), back.second_cpu,
        back.second_before.raw(), back.second_value);
}

std::string summary_line(const Report& report) {
    std::uint64_t back = 0;
    for (const TrackReport& track : report.tracks)
        back += track.backward_within + track.backward_across;
    std::int64_t hole = 0;
    for (const CpuReport& cpu : report.cpus)
        hole = std::max(hole, cpu.longest_hole.raw());
    return fmt::format("{} s, {} passes, {} events, {} steps back, longest hole {}",
                       report.ran.raw() / kNanosPerSecond, grouped(report.passes),
                       report.events_total, back, show_ns(hole));
}

}  // namespace continuo::cli
