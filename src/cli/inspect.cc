// continuo inspect: a clock page or a record, decoded: every field under its ABI name, what a guest
// reads from the page at a TSC, and what is inconsistent in it.
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "command.h"
#include "continuo/abi/bytes.h"
#include "continuo/abi/pvclock.h"
#include "continuo/abi/vmclock.h"
#include "continuo/state/record.h"
#include "findings.h"
#include "input.h"
#include "number.h"
#include "record_table.h"
#include "text.h"

namespace continuo::cli {

namespace {

using state::ErrorCode;
using state::fail;

constexpr const char* kExample =
    "FILE|HEX|-: a file that exists (it wins over digits of the same name), the bytes as\n"
    "hexadecimal digits (blanks, 0x and line ends may stand between them), or - for standard\n"
    "input. File and input may hold the bytes themselves or their digits.\n"
    "Example:\n"
    "  $ continuo inspect pvclock --at-tsc 1000003000 \\\n"
    "      '0200000000000000 00ca9a3b00000000 e803000000000000 00000080 01 01 0000'\n";

constexpr const char* kPvclockExample =
    "ns is what the guest computes at that TSC. Before tsc_timestamp, where a guest's unsigned\n"
    "arithmetic reads nonsense, it is the line continued downwards, and an inconsistency says so.\n"
    "Example:\n"
    "  $ continuo inspect pvclock page.bin --at-tsc 0x3b9acdb8 --json\n";
constexpr const char* kWallclockExample =
    "Example:\n"
    "  $ continuo inspect wallclock '02000000 80e1b968 00ca9a3a' --json\n";
constexpr const char* kVmclockExample =
    "112 bytes, or the page of 4096 that they stand in. seconds and frac (unit 2^-64 s) are the\n"
    "page's time at that TSC, on its own timeline (time_type).\n"
    "Example:\n"
    "  $ continuo inspect vmclock /dev/vmclock0 --at-tsc 1234567890 --json\n";
constexpr const char* kRecordExample =
    "A record in the wire format or as JSON. The JSON that comes out can be planned with.\n"
    "Example:\n"
    "  $ continuo inspect record r.bin --json >r.json\n";

struct Options {
    std::string source;
    std::string at_tsc;
    bool check = false;
    bool json = false;
};

/// One field of a page.
struct Field {
    std::string name;
    Json value;
    std::string meaning{};  ///< for people
};
using Fields = std::vector<Field>;

/// What is printed of a page.
struct Page {
    std::string kind;
    Fields fields;
    Fields reading;  ///< at --at-tsc; null values without it
    Findings findings;
};

std::string shown(const Field& field) {
    if (field.value.is_array()) return field.value.dump();
    return field.value.is_null() ? "-" : field.value.dump();
}

std::string findings_text(const Findings& findings) {
    if (findings.empty()) return "\nNothing in it is inconsistent.\n";
    Table table{{{""}, {""}}};
    for (const auto& finding : findings)
        table.add({finding.field, finding.text});
    return "\nInconsistent:\n" + table.text("  ");
}

ExitCode verdict(const Options& options, const Findings& findings) {
    return options.check && !findings.empty() ? ExitCode::kDoesNotHold : ExitCode::kDone;
}

Result<ExitCode> print_page(const Page& page, const Options& options) {
    const ExitCode code = verdict(options, page.findings);
    if (options.json) {
        Json json;
        json["kind"] = page.kind;
        for (const Fields* fields : {&page.fields, &page.reading})
            for (const Field& field : *fields)
                json[field.name] = field.value;
        json[kFindingsKey] = to_json(page.findings);
        return print_json(json, code);
    }
    Table table{{{"field"}, {"value", Table::Align::kRight}, {""}}};
    for (const Field& field : page.fields)
        table.add({field.name, shown(field), field.meaning});
    std::string text = table.text();
    if (!options.at_tsc.empty()) {
        Table reading{{{""}, {"", Table::Align::kRight}, {""}}};
        for (const Field& field : page.reading)
            reading.add({field.name, shown(field), field.meaning});
        text += "\n" + reading.text();
    }
    return print_text(text + findings_text(page.findings), code);
}

/// The layout in the bytes of the input, which hold it and nothing else, but for `padded_size`: the
/// size of a page whose first bytes it is.
template <class Layout>
Result<Layout> read_layout(const Options& options, const char* name, std::size_t padded_size) {
    const auto input = read_input(options.source);
    if (!input) return tl::unexpected(input.error());
    const auto bytes = to_binary(*input, {sizeof(Layout), padded_size});
    if (!bytes) return tl::unexpected(bytes.error());
    const std::string wanted = padded_size == sizeof(Layout)
                                   ? fmt::format("{} has {} bytes", name, sizeof(Layout))
                                   : fmt::format("{} has {} bytes, or {} with the rest of its page",
                                                 name, sizeof(Layout), padded_size);
    const auto layout = abi::decode<Layout>(*bytes);
    if (!layout)
        return fail(ErrorCode::kTruncated, input->name,
                    fmt::format("{} bytes, and a {}", bytes->size(), wanted),
                    "Give all of its bytes");
    if (bytes->size() != sizeof(Layout) && bytes->size() != padded_size)
        return fail(ErrorCode::kTooLarge, input->name,
                    fmt::format("{} bytes, and a {}", bytes->size(), wanted),
                    fmt::format("Cut it out: head -c {}", sizeof(Layout)));
    return *layout;
}

Result<std::optional<std::uint64_t>> parse_at_tsc(const Options& options) {
    if (options.at_tsc.empty()) return std::nullopt;
    const auto tsc = parse_u64("--at-tsc", options.at_tsc);
    if (!tsc) return tl::unexpected(tsc.error());
    return *tsc;
}

/// The names of the bits that are set, joined by '|'.
struct Bit {
    std::uint64_t mask;
    const char* name;
};
std::string bit_names(std::uint64_t flags, std::initializer_list<Bit> bits) {
    std::string out;
    for (const Bit& bit : bits)
        if ((flags & bit.mask) != 0) out += (out.empty() ? "" : "|") + std::string{bit.name};
    return out;
}

std::string value_name(std::size_t value, std::initializer_list<const char*> names) {
    return value < names.size() ? names.begin()[value] : "";
}

template <std::size_t N>
Json array_of(const std::uint8_t (&bytes)[N]) {
    auto array = Json::array();
    for (const std::uint8_t byte : bytes)
        array.push_back(static_cast<unsigned>(byte));
    return array;
}

// -- pvclock --

Fields fields_of(const abi::pvclock_vcpu_time_info& page) {
    return {{"version", page.version, "odd while the host writes"},
            {"pad0", page.pad0},
            {"tsc_timestamp", page.tsc_timestamp, "guest TSC at which system_time holds"},
            {"system_time", page.system_time, "ns of kvmclock"},
            {"tsc_to_system_mul", page.tsc_to_system_mul, "unit 2^-32 ns a shifted tick"},
            {"tsc_shift", static_cast<int>(page.tsc_shift), "of the ticks, before mul"},
            {"flags", static_cast<unsigned>(page.flags),
             bit_names(page.flags, {{abi::kPVCLOCK_TSC_STABLE_BIT, "TSC_STABLE"},
                                    {abi::kPVCLOCK_GUEST_STOPPED, "GUEST_STOPPED"},
                                    {abi::kPVCLOCK_COUNTS_FROM_ZERO, "COUNTS_FROM_ZERO"}})},
            {"pad", array_of(page.pad)}};
}

void read_pvclock(const abi::pvclock_vcpu_time_info& page, std::uint64_t tsc, Page& out) {
    const auto line = abi::pvclock_line(page);
    if (!line) return;
    const auto at = time::Count<time::GuestCounter>::from_raw(tsc);
    out.reading[1].value = line->at(at).raw();
    if ((at - line->tsc_timestamp()).raw() >= 0) return;
    const std::uint64_t unsigned_ns =
        page.system_time + line->scale().wrap_ns(tsc - page.tsc_timestamp);
    out.findings.push_back(
        {"tsc_timestamp",
         fmt::format("{} is {} ticks after --at-tsc: ns is the line continued downwards; a guest "
                     "whose arithmetic is unsigned reads {}",
                     page.tsc_timestamp, page.tsc_timestamp - tsc, unsigned_ns)});
}

Result<ExitCode> inspect_pvclock(const Options& options) {
    const auto tsc = parse_at_tsc(options);
    if (!tsc) return tl::unexpected(tsc.error());
    const auto page = read_layout<abi::pvclock_vcpu_time_info>(options, "pvclock page",
                                                               sizeof(abi::pvclock_vcpu_time_info));
    if (!page) return tl::unexpected(page.error());
    Page out{"pvclock", fields_of(*page), {}, abi::inconsistencies(*page)};
    out.reading = {{"at_tsc", *tsc ? Json(**tsc) : Json(nullptr)}, {"ns", nullptr, "kvmclock"}};
    if (*tsc) read_pvclock(*page, **tsc, out);
    return print_page(out, options);
}

// -- wall clock --

Result<ExitCode> inspect_wallclock(const Options& options) {
    const auto page = read_layout<abi::pvclock_wall_clock>(options, "wall clock page",
                                                           sizeof(abi::pvclock_wall_clock));
    if (!page) return tl::unexpected(page.error());
    Page out{"wallclock",
             {{"version", page->version, "odd while the host writes"},
              {"sec", page->sec, "UTC at kvmclock 0: " + show_date(page->sec)},
              {"nsec", page->nsec}},
             {},
             abi::inconsistencies(*page)};
    return print_page(out, options);
}

// -- vmclock --

std::string vmclock_flag_names(std::uint64_t flags) {
    return bit_names(flags, {{abi::kVMCLOCK_FLAG_TAI_OFFSET_VALID, "TAI_OFFSET_VALID"},
                             {abi::kVMCLOCK_FLAG_DISRUPTION_SOON, "DISRUPTION_SOON"},
                             {abi::kVMCLOCK_FLAG_DISRUPTION_IMMINENT, "DISRUPTION_IMMINENT"},
                             {abi::kVMCLOCK_FLAG_PERIOD_ESTERROR_VALID, "PERIOD_ESTERROR_VALID"},
                             {abi::kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID, "PERIOD_MAXERROR_VALID"},
                             {abi::kVMCLOCK_FLAG_TIME_ESTERROR_VALID, "TIME_ESTERROR_VALID"},
                             {abi::kVMCLOCK_FLAG_TIME_MAXERROR_VALID, "TIME_MAXERROR_VALID"},
                             {abi::kVMCLOCK_FLAG_TIME_MONOTONIC, "TIME_MONOTONIC"},
                             {abi::kVMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT, "VM_GEN_COUNTER_PRESENT"},
                             {abi::kVMCLOCK_FLAG_NOTIFICATION_PRESENT, "NOTIFICATION_PRESENT"}});
}

std::string counter_name(std::uint8_t id) {
    return id == abi::kVMCLOCK_COUNTER_INVALID ? "INVALID"
                                               : value_name(id, {"ARM_VCNT", "X86_TSC"});
}

/// A number that is held in a byte, as JSON: never a character.
Json small(std::uint8_t value) {
    return static_cast<unsigned>(value);
}

Fields fields_of(const abi::vmclock_abi& page) {
    const auto time_type = value_name(
        page.time_type, {"UTC", "TAI", "MONOTONIC", "INVALID_SMEARED", "INVALID_MAYBE_SMEARED"});
    const bool dated = page.time_type <= abi::kVMCLOCK_TIME_TAI;
    return {{"magic", page.magic, fmt::format("{:#x}", page.magic)},
            {"size", page.size, "bytes of the region"},
            {"version", page.version},
            {"counter_id", small(page.counter_id), counter_name(page.counter_id)},
            {"time_type", small(page.time_type), time_type},
            {"seq_count", page.seq_count, "odd while the host writes"},
            {"disruption_marker", page.disruption_marker},
            {"flags", page.flags, vmclock_flag_names(page.flags)},
            {"pad", array_of(page.pad)},
            {"clock_status", small(page.clock_status),
             value_name(page.clock_status,
                        {"UNKNOWN", "INITIALIZING", "SYNCHRONIZED", "FREERUNNING", "UNRELIABLE"})},
            {"leap_second_smearing_hint", small(page.leap_second_smearing_hint),
             value_name(page.leap_second_smearing_hint, {"STRICT", "NOON_LINEAR", "UTC_SLS"})},
            {"tai_offset_sec", page.tai_offset_sec},
            {"leap_indicator", small(page.leap_indicator),
             value_name(page.leap_indicator,
                        {"NONE", "PRE_POS", "PRE_NEG", "POS", "POST_POS", "POST_NEG"})},
            {"counter_period_shift", small(page.counter_period_shift)},
            {"counter_value", page.counter_value, "guest counter at which the time holds"},
            {"counter_period_frac_sec", page.counter_period_frac_sec,
             fmt::format("unit 2^-{} s", 64 + page.counter_period_shift)},
            {"counter_period_esterror_rate_frac_sec", page.counter_period_esterror_rate_frac_sec},
            {"counter_period_maxerror_rate_frac_sec", page.counter_period_maxerror_rate_frac_sec},
            {"time_sec", page.time_sec, dated ? show_date(page.time_sec) : ""},
            {"time_frac_sec", page.time_frac_sec, "unit 2^-64 s"},
            {"time_esterror_nanosec", page.time_esterror_nanosec},
            {"time_maxerror_nanosec", page.time_maxerror_nanosec},
            {"vm_generation_counter", page.vm_generation_counter}};
}

void read_vmclock(const abi::vmclock_abi& page, std::uint64_t tsc, Page& out) {
    const auto at = time::Count<time::GuestCounter>::from_raw(tsc);
    const auto time = abi::vmclock_time_at(page, at);
    if (!time) return;
    out.reading[1] = {"seconds", time->seconds,
                      page.time_type <= abi::kVMCLOCK_TIME_TAI ? show_date(time->seconds) : ""};
    out.reading[2].value = time->frac;
    const auto since = at - time::Count<time::GuestCounter>::from_raw(page.counter_value);
    if (since.raw() < 0)
        out.findings.push_back(
            {"counter_value",
             fmt::format("{} is {} ticks after --at-tsc: the difference is unsigned, as in Linux's "
                         "driver, and the time is of a counter that went nearly all the way round",
                         page.counter_value, since.magnitude())});
}

Result<ExitCode> inspect_vmclock(const Options& options) {
    const auto tsc = parse_at_tsc(options);
    if (!tsc) return tl::unexpected(tsc.error());
    const auto page = read_layout<abi::vmclock_abi>(options, "vmclock page", abi::kVmclockPageSize);
    if (!page) return tl::unexpected(page.error());
    Page out{"vmclock", fields_of(*page), {}, abi::inconsistencies(*page)};
    out.reading = {{"at_tsc", *tsc ? Json(**tsc) : Json(nullptr)},
                   {"seconds", nullptr, "the page cannot be read"},
                   {"frac", nullptr, "unit 2^-64 s"}};
    if (*tsc) read_vmclock(*page, **tsc, out);
    return print_page(out, options);
}

// -- record --

Result<ExitCode> inspect_record(const Options& options) {
    const auto input = read_input(options.source);
    if (!input) return tl::unexpected(input.error());
    const auto record = to_record(*input);
    if (!record) return tl::unexpected(record.error());
    const Findings findings = inconsistencies(*record);
    if (options.json) {
        Json json = state::record_to_json(*record);
        json[kFindingsKey] = to_json(findings);
        return print_json(json, verdict(options, findings));
    }
    return print_text(record_table(*record) + findings_text(findings), verdict(options, findings));
}

CLI::App* add_kind(CLI::App& inspect, Invocation& invocation, const std::string& name,
                   const std::string& summary, const std::string& example,
                   Result<ExitCode> (*run)(const Options&), bool reads_at_tsc) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(inspect, invocation, name, summary, example, options, run);
    command->add_option("source", options->source, "A file, hexadecimal digits, or - for stdin")
        ->type_name("FILE|HEX|-")
        ->required();
    if (reads_at_tsc)
        command->add_option("--at-tsc", options->at_tsc, "Also read the clock at this guest TSC")
            ->type_name("TSC");
    command->add_flag("--check", options->check, "End with 1 where something is inconsistent");
    add_json_flag(*command, options->json);
    return command;
}

}  // namespace

void add_inspect(CLI::App& program, Invocation& invocation) {
    CLI::App* inspect = program.add_subcommand("inspect", "Decode a clock page or a record");
    inspect->require_subcommand(1);
    inspect->footer(kExample);
    add_kind(*inspect, invocation, "pvclock", "A vCPU's pvclock_vcpu_time_info, 32 bytes",
             kPvclockExample, &inspect_pvclock, true);
    add_kind(*inspect, invocation, "wallclock", "The VM's pvclock_wall_clock, 12 bytes",
             kWallclockExample, &inspect_wallclock, false);
    add_kind(*inspect, invocation, "vmclock", "A vmclock_abi page, 112 bytes", kVmclockExample,
             &inspect_vmclock, true);
    add_kind(*inspect, invocation, "record", "A record of a VM's clocks", kRecordExample,
             &inspect_record, false);
}

}  // namespace continuo::cli
