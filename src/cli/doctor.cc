// continuo doctor: what this host can do for a guest's clocks, each control proven by its effect.
#include "continuo/kvm/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "command.h"
#include "continuo/kvm/quirk_table.h"
#include "continuo/state/plan.h"
#include "continuo/vmm/cpu_model.h"
#include "doctor_report.h"
#include "number.h"
#include "progress.h"
#include "text.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Ends with 0 once the host has been examined, with 5 where it has no usable KVM; with --check\n"
    "also with 1 where the verdict is anything but exact. The JSON's \"destination\" is this host "
    "as\n"
    "`continuo plan` takes it.\n"
    "Example:\n"
    "  $ continuo doctor\n"
    "  $ continuo doctor --json | jq .destination >here.json\n"
    "  $ continuo doctor --quirks\n"
    "  $ lab/continuo-lab run -- build/continuo doctor\n";

struct Options {
    std::string device = "/dev/kvm";
    std::string time_limit;
    bool check = false;
    bool quirks = false;
    bool json = false;
};

struct Examined {
    kvm::DoctorReport report;
    std::vector<kvm::QuirkFinding> quirks;  ///< all rows of the table; see --quirks
};

Result<kvm::DoctorReport> look(const Options& options, const kvm::System& system) {
    kvm::DoctorOptions how;
    if (!options.time_limit.empty()) {
        const auto limit = parse_duration("--time-limit", options.time_limit);
        if (!limit) return tl::unexpected(limit.error());
        how.time_limit_ms = *limit / 1'000'000;
    }
    progress("examining this host with tiny guests ...");
    return kvm::examine(system, how);
}

std::vector<kvm::QuirkFinding> judge(const kvm::DoctorReport& report,
                                     const std::vector<kvm::QuirkEffect>& effects) {
    if (!report.host) return {};
    return kvm::judge_quirks(kvm::quirk_architecture(), report.host->identity.kernel, effects);
}

Result<Examined> examine(const Options& options) {
    const auto system = kvm::System::open(options.device);
    if (!system) return Examined{kvm::no_kvm_report(system.error()), {}};
    auto report = look(options, *system);
    if (!report) return tl::unexpected(report.error());
    if (options.quirks) progress("trying each quirk of the kernel's, about 3 s ...");
    const auto effects =
        options.quirks ? kvm::see_quirks(*system, *report) : kvm::quirks_seen_by(*report);
    auto quirks = judge(*report, effects);
    return Examined{std::move(*report), std::move(quirks)};
}

Json check_json(const kvm::DoctorCheck& check) {
    Json json;
    json["id"] = check.id;
    json["title"] = check.title;
    json["requirement"] = check.requirement;
    json["state"] = name(check.state);
    json["evidence"] = check.evidence;
    json["consequence"] = check.consequence;
    return json;
}

bool works(const kvm::DoctorReport& report, std::string_view id) {
    return std::any_of(report.checks.begin(), report.checks.end(), [&](const auto& check) {
        return check.id == id && check.state == kvm::CheckState::kWorks;
    });
}

/// This host as a planner's destination, now; null where TAI cannot be read.
Json destination_json(const kvm::DoctorReport& report) {
    if (!report.host) return nullptr;
    const auto anchor = kvm::tai_anchor(report.host->frequency());
    if (!anchor) return nullptr;
    state::Destination destination;
    destination.architecture = vmm::kArchitecture;
    destination.identity = report.host->identity;
    destination.anchor = *anchor;
    destination.scaling_frac_bits = report.host->scaling_frac_bits;
    destination.vcpu_count = state::kVcpusMax;
    destination.masterclock = works(report, "masterclock");
    destination.quirks = report.quirks;
    return state::destination_to_json(destination);
}

std::string quirk_names(state::Quirks quirks) {
    std::string names;
    for (const state::Quirk quirk : state::kAllQuirks)
        if (has(quirks, quirk))
            names += (names.empty() ? "" : ", ") + std::string{state::name(quirk)};
    return names.empty() ? "none" : names;
}

std::string host_text(const kvm::DoctorReport& report) {
    if (!report.host) return wrapped(report.reason + ".", "  ", "  ");
    Table table{{{""}, {""}}};
    const auto& host = *report.host;
    table.add({"kernel", host.identity.kernel});
    const bool x86 = vmm::kArchitecture == state::Architecture::kX86_64;
    table.add({x86 ? "TSC" : "counter",
               fmt::format("{} kHz, clocksource {}", grouped(std::uint64_t{host.tsc_khz()}),
                           host.clocksource.empty() ? "unknown" : host.clocksource)});
    if (x86)
        table.add({"TSC scaling", host.scaling_frac_bits
                                      ? fmt::format("{} fractional bits", *host.scaling_frac_bits)
                                      : "none"});
    table.add({"quirks", quirk_names(report.quirks)});
    return table.text("  ");
}

std::string report_text(const kvm::DoctorReport& report) {
    std::string text = fmt::format("Verdict: {}\n", name(report.verdict)) +
                       wrapped(std::string{meaning(report.verdict)}, "  ", "  ") +
                       host_text(report);
    if (report.checks.empty()) return text;
    Table table{{{"control"}, {"state"}, {"seen"}}};
    std::string consequences;
    for (const auto& check : report.checks) {
        table.add({std::string{check.title}, std::string{name(check.state)}, check.evidence});
        if (!check.consequence.empty())
            consequences +=
                wrapped(fmt::format("{}: {}", check.title, check.consequence), "  ", "    ");
    }
    text += "\n" + table.text();
    if (!consequences.empty()) text += "\nWhat follows for a guest:\n" + consequences;
    return text + fmt::format("\nExamined in {}.\n",
                              show_ns(static_cast<std::int64_t>(report.duration_us) * 1000));
}

std::string yes_no(std::optional<bool> value) {
    return !value ? "?" : *value ? "yes" : "no";
}

/// Where this kernel is not what its release would be: a back-port, or a kernel that the table does
/// not know yet. What was seen is what counts.
std::string disagreements(const std::vector<kvm::QuirkFinding>& quirks) {
    std::string text;
    for (const auto& quirk : quirks)
        if (quirk.disagrees())
            text += wrapped(
                fmt::format("{}: releases {} have it, and here it is {}: {}", quirk.row->id,
                            kvm::text(quirk.row->kernels),
                            *quirk.effect.seen ? "there" : "not there", quirk.effect.evidence),
                "  ", "    ");
    return text.empty() ? text
                        : "\nNot as the kernel's release has it (what was seen counts):\n" + text;
}

std::string quirks_text(const std::vector<kvm::QuirkFinding>& quirks) {
    Table table{{{"quirk"}, {"releases"}, {"here?"}, {"seen?"}, {"evidence"}}};
    std::string instead;
    for (const auto& quirk : quirks) {
        table.add({std::string{quirk.row->id}, kvm::text(quirk.row->kernels),
                   yes_no(quirk.by_release), yes_no(quirk.effect.seen), quirk.effect.evidence});
        if (quirk.in_force())
            instead += wrapped(
                fmt::format("{}: {} {}", quirk.row->id, quirk.row->what, quirk.row->instead), "  ",
                "    ");
    }
    std::string text = "\n" + table.text();
    if (!instead.empty())
        text += "\nWhat is in force here, and what continuo does instead:\n" + instead;
    return text;
}

Json quirk_json(const kvm::QuirkFinding& quirk) {
    const auto maybe = [](std::optional<bool> value) {
        return value ? Json(*value) : Json(nullptr);
    };
    Json json;
    json["id"] = quirk.row->id;
    json["releases"] = kvm::text(quirk.row->kernels);
    json["by_release"] = maybe(quirk.by_release);
    json["seen"] = maybe(quirk.effect.seen);
    json["in_force"] = quirk.in_force();
    json["disagrees"] = quirk.disagrees();
    json["evidence"] = quirk.effect.evidence;
    json["figure"] = quirk.effect.figure ? Json(*quirk.effect.figure) : Json(nullptr);
    json["unit"] = quirk.effect.unit;
    json["what"] = quirk.row->what;
    json["seen_by"] = quirk.row->seen_by;
    json["instead"] = quirk.row->instead;
    json["source"] = quirk.row->source;
    return json;
}

ExitCode code_of(const kvm::DoctorReport& report, bool check) {
    if (report.verdict == kvm::Verdict::kNoKvm) return ExitCode::kUnsupported;
    return check && report.verdict != kvm::Verdict::kExact ? ExitCode::kDoesNotHold
                                                           : ExitCode::kDone;
}

Result<ExitCode> run(const Options& options) {
    const auto examined = examine(options);
    if (!examined) return tl::unexpected(examined.error());
    const kvm::DoctorReport& report = examined->report;
    const ExitCode code = code_of(report, options.check);
    if (!options.json)
        return print_text(report_text(report) + disagreements(examined->quirks) +
                              (options.quirks ? quirks_text(examined->quirks) : ""),
                          code);
    Json json = doctor_json(report);
    json["destination"] = destination_json(report);
    json["quirk_table"] = Json::array();
    for (const auto& quirk : examined->quirks)
        json["quirk_table"].push_back(quirk_json(quirk));
    return print_json(json, code);
}

}  // namespace

Json doctor_json(const kvm::DoctorReport& report) {
    Json json;
    json["schema"] = "continuo/doctor/1";
    json["verdict"] = name(report.verdict);
    json["meaning"] = meaning(report.verdict);
    json["reason"] = report.reason;
    json["kernel"] = report.host ? Json(report.host->identity.kernel) : Json(nullptr);
    json["tsc_khz"] = report.host ? Json(report.host->tsc_khz()) : Json(nullptr);
    json["scaling_frac_bits"] = report.host && report.host->scaling_frac_bits
                                    ? Json(*report.host->scaling_frac_bits)
                                    : Json(nullptr);
    json["clocksource"] = report.host ? Json(report.host->clocksource) : Json(nullptr);
    json["quirks"] = Json::array();
    for (const state::Quirk quirk : state::kAllQuirks)
        if (has(report.quirks, quirk)) json["quirks"].push_back(state::name(quirk));
    json["checks"] = Json::array();
    for (const auto& check : report.checks)
        json["checks"].push_back(check_json(check));
    json["duration_us"] = report.duration_us;
    return json;
}

void add_doctor(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(program, invocation, "doctor",
                    "Prove what this host can do for a guest's clocks", kExample, options, &run);
    command->add_option("--device", options->device, "The KVM device (else /dev/kvm)")
        ->type_name("PATH");
    command
        ->add_option("--time-limit", options->time_limit,
                     "Begin no check after this time, such as 3s (else 10s)")
        ->type_name("DURATION");
    command->add_flag("--check", options->check, "End with 1 unless the verdict is exact");
    command->add_flag("--quirks", options->quirks,
                      "Try every quirk of the kernel's table too (about 3 s), and print it");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
