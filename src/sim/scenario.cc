#include "continuo/sim/scenario.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>

#include "continuo/sim/oracle.h"
#include "continuo/sim/strategy.h"
#include "toml_section.h"

namespace continuo::sim {

namespace {

using state::ErrorCode;

/// Every length of time that a scenario states: 16 years in ns, which true time holds.
constexpr Domain kLength{0, 16LL * 365 * 86'400 * 1'000'000'000};
constexpr Domain kSignedLength{-kLength.hi, kLength.hi};
constexpr Domain kPpb{-500'000'000, 500'000'000};
/// KVM states kHz in 32 bits; true time has an instant for every tick up to 16 GHz.
constexpr Domain kKhz{1, 16'000'000};

std::int64_t furthest(const Draw& draw) {
    return std::max(draw.lo < 0 ? -draw.lo : draw.lo, draw.hi < 0 ? -draw.hi : draw.hi);
}

void read_kernel(Section& section, HostSpec& host) {
    std::string release;
    section.text("kernel", release);
    if (release.empty()) return;
    const char* const end = release.data() + release.size();
    const auto major = std::from_chars(release.data(), end, host.kernel_major);
    const bool dotted = major.ec == std::errc{} && major.ptr != end && *major.ptr == '.';
    const auto minor = dotted ? std::from_chars(major.ptr + 1, end, host.kernel_minor) : major;
    if (dotted && minor.ec == std::errc{} && minor.ptr == end && host.kernel_major >= 3) return;
    section.fail("kernel", fmt::format("\"{}\" stands there", release),
                 "Expected a release of Linux from 3.0 on, such as \"6.12\"");
}

void read_oscillator(Section& section, HostSpec& host) {
    section.draw("tsc_khz", host.tsc_khz, kKhz);
    section.draw("tsc_sub_khz_hz", host.tsc_sub_khz_hz, {0, 999});
    section.draw("drift_ppb", host.drift_ppb, kPpb);
    section.draw("wander_ppb", host.wander_ppb, kPpb);
    section.number("wander_step_ns", host.wander_step_ns, kLength);
    section.number("wander_max_ppb", host.wander_max_ppb, {0, kPpb.hi});
    section.draw("counter_start", host.counter_start, {});
    section.draw("cpu_skew_ticks", host.cpu_skew_ticks, {-1'000'000'000, 1'000'000'000});
}

void read_host_clock(Section& section, HostSpec& host) {
    section.number("rate_bound_ppb", host.rate_bound_ppb, {0, kPpb.hi});
    section.draw("tai_error_ns", host.tai_error_ns, kSignedLength);
    section.draw("tai_rate_ppb", host.tai_rate_ppb, {-500'000, 500'000});
    section.number("tai_bound_ns", host.tai_bound_ns, kLength);
    section.flag("synchronised", host.synchronised);
    section.flag("lies", host.lies);
    section.number("tai_offset_sec", host.tai_offset_sec, {0, 1000});
}

/// What a host states must be true of it: a lie is a scenario of its own, by its own key.
void check_honest(Section& section, const HostSpec& host) {
    if (host.lies) return;
    const std::int64_t off = furthest(host.drift_ppb) + host.wander_max_ppb;
    if (off > host.rate_bound_ppb)
        section.fail("rate_bound_ppb",
                     fmt::format("the counter can be {} ppb off and the host states {}", off,
                                 host.rate_bound_ppb),
                     "Expected at least the largest drift_ppb and wander_max_ppb together");
    const std::int64_t admitted =
        host.synchronised ? static_cast<std::int64_t>(host.tai_bound_ns) : 15'999'999'999;
    if (furthest(host.tai_error_ns) > admitted)
        section.fail("tai_error_ns",
                     fmt::format("the clock can be {} ns off and the host admits {}",
                                 furthest(host.tai_error_ns), admitted),
                     "Expected at most tai_bound_ns, or 16 s where synchronised is false");
}

HostSpec read_host(TomlFile& file, const toml::table& table, std::size_t index) {
    HostSpec host;
    Section section{file, table, "host"};
    host.name = fmt::format("host {}", index);
    section.text("name", host.name);
    read_kernel(section, host);
    read_oscillator(section, host);
    constexpr std::string_view clocksources[] = {"tsc", "hpet"};
    host.tsc_clocksource = section.choice("clocksource", clocksources).value_or(0) == 0;
    section.flag("tsc_unstable", host.tsc_unstable);
    constexpr std::string_view scalings[] = {"none", "svm", "vmx"};
    constexpr std::optional<int> bits[] = {std::nullopt, 32, 48};
    host.scaling_bits = bits[section.choice("scaling", scalings).value_or(0)];
    read_host_clock(section, host);
    check_honest(section, host);
    if (host.tsc_unstable && host.tsc_clocksource)
        section.fail("tsc_unstable", "Linux uses no unstable TSC as its clocksource",
                     "Expected clocksource = \"hpet\" with it");
    return host;
}

void read_guest_clock(Section& section, GuestSpec& guest) {
    section.number("vcpus", guest.vcpus, {1, static_cast<std::int64_t>(kVcpusMax)});
    section.number("tsc_khz", guest.tsc_khz, {0, kKhz.hi});
    constexpr std::string_view sources[] = {"tsc", "kvm-clock"};
    if (const auto which = section.choice("clocksource", sources))
        guest.clocksource = *which == 0 ? Clocksource::kTsc : Clocksource::kKvmclock;
    section.draw("uptime_ns", guest.uptime_ns, {0, INT64_MAX});
    section.draw("tsc_adjust", guest.tsc_adjust, {});
    section.flag("old_msrs", guest.old_msrs);
    section.flag("clamps_large_deltas", guest.clamps_large_deltas);
    section.number("tick_ns", guest.tick_ns, {1, 1'000'000'000'000});
    section.flag("plugs_vcpu", guest.plugs_vcpu);
    section.flag("starts_sched_clock", guest.starts_sched_clock);
}

void read_guest_ntp(Section& section, GuestSpec& guest) {
    section.flag("agent", guest.has_agent);
    section.flag("agent_dies", guest.agent_dies);
    section.draw("agent_latency_ns", guest.agent_latency_ns, kLength);
    section.draw("realtime_error_ns", guest.realtime_error_ns, kSignedLength);
    section.draw("ntp_poll_ns", guest.ntp_poll_ns, kLength);
    section.number("ntp_step_ns", guest.ntp_step_ns, kLength);
    section.number("ntp_slew_ppm", guest.ntp_slew_ppm, {1, 100'000});
    section.draw("ntp_accuracy_ns", guest.ntp_accuracy_ns, kSignedLength);
}

/// Keys that stand for every site, or for one.
void read_site(Section& section, SiteSpec& site) {
    section.draw("cost_ns", site.cost_ns, kLength);
    section.draw("jitter_ns", site.jitter_ns, kLength);
    section.ppm("preempt_ppm", site.preempt);
    section.draw("preempt_ns", site.preempt_ns, kLength);
}

void read_vmm(TomlFile& file, const toml::table& table, VmmSpec& vmm) {
    Section section{file, table, "vmm"};
    SiteSpec all = vmm.sites.front();
    read_site(section, all);
    vmm.sites.fill(all);
    section.draw("exit_skew_ns", vmm.exit_skew_ns, kLength);
    section.draw("entry_skew_ns", vmm.entry_skew_ns, kLength);
    section.number("resume_lead_ns", vmm.resume_lead_ns, kLength);
    section.flag("ctrl_at_stop", vmm.ctrl_at_stop);
    const toml::table* sites = section.table("site");
    if (sites == nullptr) return;
    Section names{file, *sites, "vmm.site"};
    for (std::size_t i = 0; i < kSites; ++i) {
        const std::string_view key = name(static_cast<Site>(i));
        if (const toml::table* site = names.table(key)) {
            Section one{file, *site, names.path_of(key)};
            read_site(one, vmm.sites[i]);
        }
    }
}

void read_channel(TomlFile& file, const toml::table& table, ChannelSpec& channel) {
    Section section{file, table, "channel"};
    section.number("rounds", channel.rounds, {0, 64});
    section.draw("there_ns", channel.there_ns, kLength);
    section.draw("back_ns", channel.back_ns, kLength);
}

/// The index of the host of this name.
std::optional<unsigned> host_named(Section& section, std::string_view key,
                                   const Scenario& scenario) {
    std::string wanted;
    section.text(key, wanted);
    if (wanted.empty()) return std::nullopt;
    for (unsigned i = 0; i < scenario.hosts.size(); ++i)
        if (scenario.hosts[i].name == wanted) return i;
    section.fail(key, fmt::format("no host is named \"{}\"", wanted),
                 "Expected the name of a [[host]] of this file");
    return std::nullopt;
}

MoveSpec read_move(TomlFile& file, const toml::table& table, const Scenario& scenario) {
    MoveSpec move;
    const unsigned from = scenario.moves.empty() ? 0 : scenario.moves.back().to;
    Section section{file, table, "move"};
    section.flag("in_place", move.in_place);
    move.to = move.in_place ? from : 1;
    if (const auto to = host_named(section, "to", scenario)) move.to = *to;
    section.draw("run_ns", move.run_ns, kLength);
    section.draw("blackout_ns", move.blackout_ns, kLength);
    section.flag("before_agent", move.before_agent);
    if (move.to >= scenario.hosts.size())
        section.fail("to", "the file has one host",
                     "Expected a second [[host]], or to = the first one's name, or in_place");
    else if (move.in_place && move.to != from)
        section.fail("to", "a VM that stays in place goes nowhere else",
                     fmt::format("Expected \"{}\", where the VM is", scenario.hosts[from].name));
    return move;
}

EventSpec read_event(TomlFile& file, const toml::table& table, const Scenario& scenario) {
    EventSpec event;
    Section section{file, table, "event"};
    constexpr std::string_view kinds[] = {"ntp_step",         "ntp_slew",     "leap_second",
                                          "clocksource_lost", "tsc_unstable", "suspend"};
    if (!section.has("kind")) section.fail("kind", "the event has none", "Expected a kind");
    event.kind = static_cast<EventKind>(section.choice("kind", kinds).value_or(0));
    event.host = host_named(section, "host", scenario).value_or(0);
    const auto last_move = static_cast<std::int64_t>(scenario.moves.size()) - 1;
    section.number("move", event.move, {0, std::max<std::int64_t>(last_move, 0)});
    constexpr std::string_view phases[] = {"running", "blackout", "after"};
    event.phase = static_cast<Phase>(section.choice("phase", phases).value_or(1));
    section.number("at_ppm", event.at_ppm, {0, 1'000'000});
    for (const EventSpec& before : scenario.events)
        if (before.move == event.move && before.phase == event.phase &&
            before.at_ppm > event.at_ppm)
            section.fail("at_ppm", fmt::format("an event at {} stands before it", before.at_ppm),
                         "Expected the events of a phase in their order");
    const bool leap = event.kind == EventKind::kLeapSecond;
    section.draw("size", event.size, leap ? Domain{-1, 1} : kSignedLength);
    return event;
}

void read_faults(TomlFile& file, const toml::table& table, Scenario& scenario) {
    Section section{file, table, "fault"};
    for (std::size_t i = 0; i < kFaults; ++i)
        section.ppm(name(static_cast<Fault>(i)), scenario.faults[i]);
}

KeepSpec read_must_keep(TomlFile& file, const toml::table& table) {
    KeepSpec keep;
    Section section{file, table, "must_keep"};
    section.words("strategies", keep.strategies);
    for (const std::string& strategy : keep.strategies)
        if (strategy_from_name(strategy) == nullptr)
            section.fail("strategies", fmt::format("no strategy is named \"{}\"", strategy),
                         "Expected one of those that `continuo sim list` has");
    std::vector<std::string> invariants;
    section.words("invariants", invariants);
    if (!section.has("invariants")) keep.invariants = ~0U;
    for (const std::string& word : invariants) {
        if (const auto invariant = invariant_from_name(word))
            keep.invariants |= 1U << static_cast<unsigned>(*invariant);
        else
            section.fail("invariants", fmt::format("no invariant is named \"{}\"", word),
                         "Expected one of those that `continuo sim list` has");
    }
    return keep;
}

void read_limits(TomlFile& file, const toml::table& table, Limits& limits) {
    Section section{file, table, "limits"};
    section.number("steps", limits.steps, {1, 100'000'000});
    section.number("true_time_ns", limits.true_time_ns, {1, kLength.hi});
}

void read_world(TomlFile& file, Section& top, Scenario& scenario) {
    const auto hosts = top.tables("host");
    for (const toml::table* host : hosts)
        scenario.hosts.push_back(read_host(file, *host, scenario.hosts.size()));
    if (scenario.hosts.empty() || scenario.hosts.size() > kHostsMax)
        top.fail("host", fmt::format("the scenario has {} hosts", scenario.hosts.size()),
                 fmt::format("Expected 1 to {} of [[host]]", kHostsMax));
    if (const toml::table* guest = top.table("guest")) {
        Section section{file, *guest, "guest"};
        read_guest_clock(section, scenario.guest);
        read_guest_ntp(section, scenario.guest);
    }
    if (const toml::table* vmm = top.table("vmm")) read_vmm(file, *vmm, scenario.vmm);
    if (const toml::table* channel = top.table("channel"))
        read_channel(file, *channel, scenario.channel);
}

void read_story(TomlFile& file, Section& top, Scenario& scenario) {
    for (const toml::table* move : top.tables("move"))
        if (!file.failed()) scenario.moves.push_back(read_move(file, *move, scenario));
    if (scenario.moves.empty() || scenario.moves.size() > kMovesMax)
        top.fail("move", fmt::format("the scenario has {} moves", scenario.moves.size()),
                 fmt::format("Expected 1 to {} of [[move]]", kMovesMax));
    for (const toml::table* event : top.tables("event"))
        if (!file.failed()) scenario.events.push_back(read_event(file, *event, scenario));
    for (const toml::table* keep : top.tables("must_keep"))
        if (!file.failed()) scenario.must_keeps.push_back(read_must_keep(file, *keep));
    if (const toml::table* faults = top.table("fault")) read_faults(file, *faults, scenario);
    if (const toml::table* limits = top.table("limits"))
        read_limits(file, *limits, scenario.limits);
}

/// True time has 63 bits, and the whole story must fit.
void check_length(Section& top, const Scenario& scenario) {
    std::int64_t sum = 0;
    for (const MoveSpec& move : scenario.moves)
        for (const std::int64_t part : {move.run_ns.hi, move.blackout_ns.hi, scenario.observe_ns})
            sum = std::min(sum + std::min(part, kLength.hi), 2 * kLength.hi);
    if (sum > kLength.hi)
        top.fail("move", fmt::format("the moves together may last {} s", sum / 1'000'000'000),
                 fmt::format("Expected at most {} s", kLength.hi / 1'000'000'000));
}

VmmSpec usual_vmm() {
    VmmSpec vmm;
    vmm.sites.fill(SiteSpec{Draw{200, 2'000, false}, Draw{0, 500, true}, Ppm{0},
                            Draw{10'000, 10'000'000, true}});
    return vmm;
}

}  // namespace

bool Scenario::must_keep(const Strategy& strategy, Invariant invariant) const {
    const std::uint32_t wanted = 1U << static_cast<unsigned>(invariant);
    return std::any_of(must_keeps.begin(), must_keeps.end(), [&](const KeepSpec& keep) {
        const auto& names = keep.strategies;
        const bool named =
            names.empty() || std::find(names.begin(), names.end(), strategy.name()) != names.end();
        return named && (keep.invariants & wanted) != 0;
    });
}

Result<Scenario> parse_scenario(std::string_view toml, std::string_view file_name) {
    TomlFile file{file_name};
    Scenario scenario;
    scenario.vmm = usual_vmm();
    const toml::parse_result parsed = toml::parse(toml, file_name);
    if (!parsed) {
        file.fail(parsed.error().source(), "", std::string{parsed.error().description()},
                  "Expected TOML 1.0");
        return tl::unexpected(file.error());
    }
    {
        Section top{file, parsed.table(), ""};
        top.text("name", scenario.name);
        top.text("about", scenario.about);
        std::int64_t epoch_sec = 1'750'000'000;
        // To the end of 64 bits of ns, in the year 2554 (S3.10).
        top.number("epoch_tai_sec", epoch_sec, {0, 18'446'744'073});
        scenario.epoch_tai_ns = static_cast<std::uint64_t>(epoch_sec) * 1'000'000'000;
        top.number("observe_ns", scenario.observe_ns, kLength);
        top.number("ordered_read_ns", scenario.ordered_read_ns, {0, 1'000'000});
        if (scenario.name.empty())
            top.fail("name", "the scenario has no name", "Expected name = \"...\"");
        read_world(file, top, scenario);
        read_story(file, top, scenario);
        check_length(top, scenario);
    }
    if (file.failed()) return tl::unexpected(file.error());
    return scenario;
}

Result<Scenario> load_scenario(const std::string& path) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file{std::fopen(path.c_str(), "rb"),
                                                               std::fclose};
    if (!file) return state::fail(ErrorCode::kIo, path, "the scenario cannot be opened", {}, errno);
    std::string text;
    char part[4096];
    while (const std::size_t got = std::fread(part, 1, sizeof part, file.get()))
        text.append(part, got);
    if (std::ferror(file.get()) != 0)
        return state::fail(ErrorCode::kIo, path, "the scenario cannot be read", {}, errno);
    return parse_scenario(text, path);
}

}  // namespace continuo::sim
