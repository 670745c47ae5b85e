#include "continuo/state/json.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "continuo/state/codec.h"
#include "json_document.h"
#include "record_check.h"

namespace continuo::state {

namespace {

constexpr std::string_view kRecordSchema = "continuo/record/1";
constexpr std::string_view kDestinationSchema = "continuo/destination/1";
constexpr std::string_view kPlanSchema = "continuo/plan/1";
constexpr std::string_view kCertificateSchema = "continuo/certificate/1";

constexpr std::string_view kX86_64 = "x86_64";
constexpr std::string_view kArm64 = "arm64";
constexpr std::string_view kPage = "page";
constexpr std::string_view kKernel = "kernel";

/// TAI - UTC since 2017, which every kernel with an NTP daemon has been told.
constexpr std::int64_t kTaiOffsetDefault = 37;

// ---- pieces of both directions ----

std::string_view arch_name(Architecture architecture) {
    return architecture == Architecture::kX86_64 ? kX86_64 : kArm64;
}

/// "0f8e3c41-5a27-4d10-9b6c-2d7fa133c85e", as the kernel writes it.
std::string boot_id_text(const std::array<std::uint8_t, 16>& id) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (std::size_t i = 0; i < id.size(); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        text += digits[id[i] >> 4];
        text += digits[id[i] & 15U];
    }
    return text;
}

std::optional<unsigned> hex_digit(char c) {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
    if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
    return std::nullopt;
}

/// Whatever boot_id_text() writes, in either case of letters; none for anything else.
std::optional<std::array<std::uint8_t, 16>> boot_id_from_text(std::string_view text) {
    std::array<std::uint8_t, 16> id{};
    if (text.size() != 36) return std::nullopt;
    std::size_t nibble = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash != (text[i] == '-')) return std::nullopt;
        if (dash) continue;
        const auto digit = hex_digit(text[i]);
        if (!digit) return std::nullopt;
        id[nibble / 2] = static_cast<std::uint8_t>(id[nibble / 2] * 16U + *digit);
        ++nibble;
    }
    return id;
}

// ---- writing ----

template <class T>
Json or_null(const std::optional<T>& value) {
    return value ? Json(*value) : Json(nullptr);
}

std::int64_t as_signed(std::uint64_t bits) {
    return static_cast<std::int64_t>(bits);
}

void put_identity(Json& json, const HostIdentity& identity) {
    json["boot_id"] = identity.known() ? Json(boot_id_text(identity.boot_id)) : Json(nullptr);
    json["kernel"] = identity.kernel;
}

template <time::CounterAxis D>
Json anchor_json(const Anchor<D>& anchor) {
    Json json;
    json["counter"] = anchor.counter.raw();
    json["tai_ns"] = anchor.tai.raw();
    json["tai_bound_ns"] = anchor.tai_bound_ns;
    json["tai_offset_sec"] = anchor.tai_offset_sec;
    json["synchronised"] = anchor.synchronised;
    json["rate_bound_ppb"] = anchor.rate_bound_ppb;
    json["suspended_ns"] = or_null(anchor.suspended_ns);
    return json;
}

Json vcpu_json(const VcpuClock& vcpu) {
    Json json;
    json["counter"] = vcpu.counter.raw();
    json["counter_bound_ticks"] = vcpu.counter_bound_ticks;
    json["tsc_offset"] = or_null(vcpu.tsc_offset);
    json["tsc_adjust"] = vcpu.tsc_adjust;
    json["frequency_hz"] = vcpu.frequency.hz();
    json["system_time_msr"] = vcpu.system_time_msr;
    json["guest_stopped_pending"] = vcpu.guest_stopped_pending;
    return json;
}

void put_line(Json& json, const PvclockLine& line) {
    json["tsc_timestamp"] = line.tsc_timestamp().raw();
    json["system_time"] = line.system_time().raw();
    json["mul"] = line.scale().mul();
    json["shift"] = static_cast<int>(line.scale().shift());
}

Json kvmclock_json(const std::optional<KvmclockState>& kvmclock) {
    if (!kvmclock) return nullptr;
    Json json;
    put_line(json, kvmclock->line);
    json["origin"] = kvmclock->origin == KvmclockOrigin::kPage ? kPage : kKernel;
    json["masterclock"] = kvmclock->masterclock;
    json["bound_ns"] = kvmclock->bound_ns;
    json["kernel_minus_line_ns"] = kvmclock->kernel_minus_line.raw();
    return json;
}

Json bound_json(const Bound& bound) {
    Json terms = Json::array();
    for (const BoundTerm& term : bound) {
        Json json;
        json["source"] = name(term.source);
        json["size"] = term.size;
        json["meaning"] = meaning(term.source);
        terms.push_back(std::move(json));
    }
    Json json;
    json["total"] = bound.total();
    json["terms"] = std::move(terms);
    return json;
}

/// Decimal digits of a 128-bit integer.
std::string decimal(time::i128 value) {
    const bool negative = value < 0;
    auto rest = static_cast<time::u128>(value);
    if (negative) rest = 0 - rest;
    std::string digits;
    do {
        digits += static_cast<char>('0' + static_cast<int>(rest % 10));
        rest /= 10;
    } while (rest != 0);
    if (negative) digits += '-';
    std::reverse(digits.begin(), digits.end());
    return digits;
}

/// The exact number, and the one that people read; the only double of this module.
void put_rate_error(Json& json, RateError error) {
    const double parts = static_cast<double>(error.two_pow_minus_64) / 18446744073709551616.0;
    json["rate_error_ppb"] = parts * 1e9;
    json["rate_error_2e-64"] = decimal(error.two_pow_minus_64);
}

Json measure_json(const std::optional<GapMeasure>& measure) {
    if (!measure) return nullptr;
    Json json;
    json["ns"] = measure->gap.raw();
    json["bound_ns"] = measure->bound_ns;
    return json;
}

Json measure_json(const std::optional<ExchangeMeasure>& measure) {
    if (!measure) return nullptr;
    Json json = measure_json(std::optional<GapMeasure>{*measure});
    json["rounds"] = measure->rounds;
    json["bracket_ns"] = measure->bracket_ns;
    json["drift_ns"] = measure->drift_ns;
    return json;
}

/// Of a plan or a certificate.
template <class T>
Json gap_json(const T& from) {
    Json json;
    json["ns"] = from.gap.raw();
    json["bound_ns"] = from.gap_bound_ns;
    json["clamped"] = from.gap_clamped;
    json["by_tai"] = measure_json(from.measures.by_tai);
    json["by_exchange"] = measure_json(from.measures.by_exchange);
    json["clock_offset"] = measure_json(from.measures.clock_offset);
    return json;
}

Json exchange_json(const Exchange& exchange) {
    Json rounds = Json::array();
    for (const ExchangeRound& round : exchange) {
        Json json;
        json["asked"] = round.asked.raw();
        json["received"] = round.received.raw();
        json["answered"] = round.answered.raw();
        json["heard"] = round.heard.raw();
        rounds.push_back(std::move(json));
    }
    return rounds;
}

Json notice_json(const std::optional<Notice>& notice) {
    if (!notice) return nullptr;
    Json json;
    json["delta_realtime_ns"] = notice->delta_realtime.raw();
    json["gap_ns"] = notice->gap.raw();
    json["sequence"] = notice->sequence;
    return json;
}

/// The keys that every row of "clocks" has, in their order; a clock fills in its own.
Json empty_row(ClockKind clock, std::string_view unit) {
    Json row;
    row["clock"] = name(clock);
    row["vcpu"] = nullptr;
    row["unit"] = unit;
    for (const char* key :
         {"prescribed_at_anchor", "prescribed_at_resume", "offset", "offset_signed", "ratio",
          "frac_bits", "tsc_timestamp", "system_time", "mul", "shift", "gap_ns", "advanced",
          "rate_error_ppb", "rate_error_2e-64", "bound"})
        row[key] = nullptr;
    return row;
}

Json tsc_row(const Plan& plan, const PrescribedTsc& tsc) {
    Json row = empty_row(guest_counter(plan.architecture), "ticks");
    row["vcpu"] = tsc.vcpu;
    row["prescribed_at_anchor"] = tsc.at_anchor.raw();
    row["prescribed_at_resume"] = tsc.at_resume.raw();
    row["offset"] = tsc.map.offset();
    row["offset_signed"] = as_signed(tsc.map.offset());
    if (tsc.map.scales()) {
        row["ratio"] = tsc.map.ratio();
        row["frac_bits"] = tsc.map.frac_bits();
    }
    row["gap_ns"] = plan.gap.raw();
    row["advanced"] = tsc.advanced.raw();
    put_rate_error(row, plan.tsc_rate_error);
    row["bound"] = bound_json(tsc.bound);
    return row;
}

Json kvmclock_row(const Plan& plan, const PrescribedKvmclock& kvmclock) {
    Json row = empty_row(ClockKind::kKvmclock, "ns");
    row["prescribed_at_anchor"] = kvmclock.at_anchor.raw();
    row["prescribed_at_resume"] = kvmclock.at_resume.raw();
    put_line(row, kvmclock.line);
    row["gap_ns"] = plan.gap.raw();
    row["advanced"] = kvmclock.advanced.raw();
    put_rate_error(row, kvmclock.rate_error);
    row["bound"] = bound_json(kvmclock.bound);
    return row;
}

Json clock_rows(const Plan& plan) {
    Json rows = Json::array();
    for (const PrescribedTsc& tsc : plan.tsc)
        rows.push_back(tsc_row(plan, tsc));
    if (plan.kvmclock) rows.push_back(kvmclock_row(plan, *plan.kvmclock));
    return rows;
}

bool is_per_vcpu(WriteKind kind) {
    return kind != WriteKind::kKvmclock && kind != WriteKind::kNotice;
}

bool has_value(WriteKind kind) {
    return kind != WriteKind::kKvmclock && kind != WriteKind::kGuestStopped;
}

bool is_signed(WriteKind kind) {
    return kind == WriteKind::kTscOffset || kind == WriteKind::kTscAdjust ||
           kind == WriteKind::kNotice;
}

/// The counters' controls are others on arm64.
std::string_view postcondition_on(Architecture architecture, WriteKind kind) {
    if (architecture == Architecture::kArm64 && kind == WriteKind::kTscOffset)
        return "CNTVCT and CNTPCT, read between two host counter readings, are on the prescribed "
               "line; KVM has one offset for both and all vCPUs";
    if (architecture == Architecture::kArm64 && kind == WriteKind::kTscByValue)
        return "CNTVCT, read between two host counter readings, is on the prescribed line within "
               "the brackets of the write and the read";
    return postcondition(kind);
}

Json write_json(const Write& write, Architecture architecture) {
    Json json;
    json["kind"] = name(write.kind);
    json["vcpu"] = is_per_vcpu(write.kind) ? Json(write.vcpu) : Json(nullptr);
    json["value"] = has_value(write.kind) ? Json(write.value) : Json(nullptr);
    json["value_signed"] = is_signed(write.kind) ? Json(as_signed(write.value)) : Json(nullptr);
    json["postcondition"] = postcondition_on(architecture, write.kind);
    return json;
}

Json refusal_json(const Refusal& refusal) {
    Json json;
    json["clock"] = name(refusal.clock);
    json["vcpu"] = or_null(refusal.vcpu);
    json["reason"] = name(refusal.reason);
    json["size"] = refusal.size;
    json["unit"] = refusal.unit;
    json["message"] = refusal.message;
    json["advice"] = refusal.advice;
    return json;
}

Json refused_json(const Refusals& refusals) {
    Json json;
    json["schema"] = kPlanSchema;
    json["verdict"] = "refused";
    json["refusals"] = Json::array();
    for (const Refusal& refusal : refusals)
        json["refusals"].push_back(refusal_json(refusal));
    return json;
}

Json accepted_json(const Plan& plan) {
    Json json;
    json["schema"] = kPlanSchema;
    json["verdict"] = "accepted";
    json["policy"] = name(plan.policy);
    json["policy_meaning"] = meaning(plan.policy);
    json["elapsed_by"] = name(plan.elapsed_by);
    json["resume_at"] = plan.resume_at.raw();
    json["gap"] = gap_json(plan);
    json["guest_hz"] = plan.guest_frequency.hz();
    json["rate"] = name(plan.rate);
    json["clocks"] = clock_rows(plan);
    json["writes"] = Json::array();
    for (const Write& write : plan.writes)
        json["writes"].push_back(write_json(write, plan.architecture));
    json["notice"] = notice_json(plan.notice);
    json["notes"] = plan.notes;
    return json;
}

Json clock_certificate_json(const ClockCertificate& clock) {
    Json json;
    json["clock"] = name(clock.clock);
    json["vcpu"] = or_null(clock.vcpu);
    json["unit"] = clock.unit;
    json["holds"] = clock.holds();
    json["prescribed"] = clock.prescribed;
    json["realised"] = clock.realised;
    json["seam"] = clock.seam;
    json["seam_bound"] = clock.seam_bound;
    json["bound"] = bound_json(clock.bound);
    return json;
}

Json observation_json(const GuestObservation& observed) {
    Json json;
    json["vcpu"] = observed.vcpu;
    json["first_tsc"] = observed.first_tsc;
    json["after_resume_ns"] = observed.after_resume_ns;
    json["kvmclock_seam_ns"] = or_null(observed.kvmclock_seam_ns);
    json["backward_steps"] = observed.backward_steps;
    return json;
}

Json trim_json(const TrimReport& trim) {
    Json json;
    json["rounds"] = trim.rounds;
    json["residual_ns"] = trim.residual_ns;
    json["converged"] = trim.converged;
    return json;
}

// ---- reading ----

constexpr std::int64_t kMin64 = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMax64 = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMin32 = std::numeric_limits<std::int32_t>::min();
constexpr std::int64_t kMax32 = std::numeric_limits<std::int32_t>::max();

void read_schema(ObjectReader& in, std::string_view expected) {
    const std::string found = in.string("schema", std::string{expected});
    if (found != expected)
        in.complain(
            "schema",
            "expected \"" + std::string{expected} + "\", found " + shown(nlohmann::json(found)),
            "This build reads that schema only", ErrorCode::kVersion);
}

Architecture read_arch(ObjectReader& in) {
    return in.choice("arch", {kX86_64, kArm64}, 0) == 0 ? Architecture::kX86_64
                                                        : Architecture::kArm64;
}

Hz read_hz(ObjectReader& in, const char* key) {
    const auto hz = Hz::from_hz(in.u64_in(key, kFrequencyMinHz, kFrequencyMaxHz));
    return hz ? *hz : *Hz::from_hz(kFrequencyMinHz);  // only after a complaint
}

HostIdentity read_identity(ObjectReader& in) {
    HostIdentity identity;
    if (in.optional_member("boot_id") != nullptr) {
        const std::string text = in.string("boot_id");
        const auto id = boot_id_from_text(text);
        if (!id)
            in.complain("boot_id", "expected a UUID as in /proc/sys/kernel/random/boot_id, found " +
                                       shown(nlohmann::json(text)));
        identity.boot_id = id.value_or(identity.boot_id);
        if (!identity.known())
            in.complain("boot_id", "all zero", "Leave an unknown boot identity out");
    }
    identity.kernel = in.string("kernel", std::string{});
    return identity;
}

template <time::CounterAxis D>
Anchor<D> read_anchor(ObjectReader& in) {
    ObjectReader object = in.object("anchor");
    Anchor<D> anchor;
    anchor.counter = Count<D>::from_raw(object.u64("counter"));
    anchor.tai = Instant<Tai>::from_raw(object.u64("tai_ns"));
    anchor.tai_bound_ns = object.u64("tai_bound_ns");
    anchor.tai_offset_sec = static_cast<std::int32_t>(
        object.i64_in("tai_offset_sec", kMin32, kMax32, kTaiOffsetDefault));
    anchor.synchronised = object.boolean("synchronised", true);
    anchor.rate_bound_ppb = static_cast<std::uint32_t>(
        object.u64_in("rate_bound_ppb", 0, kRateBoundPpbMax, kRateBoundUnknownPpb));
    anchor.suspended_ns = object.optional_u64("suspended_ns");
    object.finish();
    anchor.frequency = read_hz(in, "host_hz");
    return anchor;
}

VcpuClock read_vcpu(ObjectReader in) {
    VcpuClock vcpu;
    vcpu.counter = Count<GuestCounter>::from_raw(in.u64("counter"));
    vcpu.counter_bound_ticks = in.u64("counter_bound_ticks", 0);
    vcpu.tsc_offset = in.optional_u64("tsc_offset");
    vcpu.tsc_adjust = in.i64_in("tsc_adjust", kMin64, kMax64, 0);
    vcpu.frequency = read_hz(in, "frequency_hz");
    vcpu.system_time_msr = in.u64("system_time_msr", 0);
    vcpu.guest_stopped_pending = in.boolean("guest_stopped_pending", false);
    in.finish();
    return vcpu;
}

std::vector<VcpuClock> read_vcpus(ObjectReader& in, std::optional<Error>& problem) {
    const auto& array = in.array("vcpus", true);
    if (array.size() > kVcpusMax)
        in.complain(
            "vcpus",
            std::to_string(array.size()) + " vCPUs, over the limit of " + std::to_string(kVcpusMax),
            {}, ErrorCode::kTooLarge);
    std::vector<VcpuClock> vcpus;
    if (!problem) vcpus.reserve(array.size());
    for (std::size_t i = 0; i < array.size() && !problem; ++i)
        vcpus.push_back(
            read_vcpu({array[i], in.pointer_to("vcpus") + "/" + std::to_string(i), problem}));
    return vcpus;
}

PvclockLine read_line(ObjectReader& in) {
    const auto tsc_timestamp = Count<GuestCounter>::from_raw(in.u64("tsc_timestamp"));
    const auto system_time = Instant<Kvmclock>::from_raw(in.u64("system_time"));
    const auto mul =
        static_cast<std::uint32_t>(in.u64_in("mul", 1, std::numeric_limits<std::uint32_t>::max()));
    const auto shift =
        static_cast<int>(in.i64_in("shift", PvclockScale::kShiftMin, PvclockScale::kShiftMax));
    return {tsc_timestamp, system_time, *PvclockScale::make(mul, shift)};
}

std::optional<KvmclockState> read_kvmclock(ObjectReader& in) {
    if (in.optional_member("kvmclock") == nullptr) return std::nullopt;
    ObjectReader object = in.object("kvmclock");
    KvmclockState kvmclock;
    kvmclock.line = read_line(object);
    kvmclock.origin = object.choice("origin", {kPage, kKernel}) == 0 ? KvmclockOrigin::kPage
                                                                     : KvmclockOrigin::kKernel;
    kvmclock.masterclock = object.boolean("masterclock");
    kvmclock.bound_ns = object.u64("bound_ns", 0);
    kvmclock.kernel_minus_line =
        Nanos<Kvmclock>::from_raw(object.i64_in("kernel_minus_line_ns", kMin64, kMax64, 0));
    object.finish();
    return kvmclock;
}

Record read_record(const nlohmann::json& tree, std::optional<Error>& problem) {
    ObjectReader in{tree, "", problem};
    Record record;
    read_schema(in, kRecordSchema);
    record.architecture = read_arch(in);
    record.source = read_identity(in);
    record.anchor = read_anchor<SourceCounter>(in);
    record.vcpus = read_vcpus(in, problem);
    record.kvmclock = read_kvmclock(in);
    record.notice_sequence = in.u64("notice_sequence", 0);
    in.finish();
    return record;
}

std::optional<int> read_frac_bits(ObjectReader& in, Architecture architecture) {
    constexpr const char* key = "scaling_frac_bits";
    if (in.optional_member(key) == nullptr) return std::nullopt;
    const auto bits = static_cast<int>(in.u64_in(key, 0, 64));
    if (bits != time::kSvmFracBits && bits != time::kVmxFracBits)
        in.complain(key, "expected 48 (Intel), 32 (AMD) or null, found " + std::to_string(bits));
    if (architecture == Architecture::kArm64)
        in.complain(key, "arm64 does not scale a guest's counter", "Write null");
    return bits;
}

Quirks read_quirks(ObjectReader& in) {
    Quirks quirks = 0;
    std::string known;
    for (const Quirk quirk : kAllQuirks)
        known += (known.empty() ? "" : ", ") + std::string{name(quirk)};
    const auto& array = in.array("quirks", false);
    for (std::size_t i = 0; i < array.size(); ++i) {
        const auto quirk = array[i].is_string()
                               ? quirk_from_name(array[i].get_ref<const std::string&>())
                               : std::nullopt;
        if (!quirk) {
            in.complain("quirks", "no quirk: " + shown(array[i]), "The quirks are " + known);
            break;
        }
        quirks |= static_cast<Quirks>(*quirk);
    }
    return quirks;
}

ExchangeRound read_round(ObjectReader in) {
    ExchangeRound round;
    round.asked = Count<HostCounter>::from_raw(in.u64("asked"));
    round.received = Count<SourceCounter>::from_raw(in.u64("received"));
    round.answered = Count<SourceCounter>::from_raw(in.u64("answered"));
    round.heard = Count<HostCounter>::from_raw(in.u64("heard"));
    in.finish();
    return round;
}

Exchange read_exchange(ObjectReader& in, std::optional<Error>& problem) {
    const auto& array = in.array("exchange", false);
    Exchange exchange;
    if (array.size() > kExchangeRoundsMax) {
        in.complain("exchange",
                    std::to_string(array.size()) + " rounds, over the limit of " +
                        std::to_string(kExchangeRoundsMax),
                    {}, ErrorCode::kTooLarge);
        return exchange;
    }
    for (std::size_t i = 0; i < array.size() && !problem; ++i)
        exchange.push_back(
            read_round({array[i], in.pointer_to("exchange") + "/" + std::to_string(i), problem}));
    return exchange;
}

Destination read_destination(const nlohmann::json& tree, std::optional<Error>& problem) {
    ObjectReader in{tree, "", problem};
    Destination destination;
    read_schema(in, kDestinationSchema);
    destination.architecture = read_arch(in);
    destination.identity = read_identity(in);
    destination.anchor = read_anchor<HostCounter>(in);
    destination.scaling_frac_bits = read_frac_bits(in, destination.architecture);
    destination.same_boot = in.boolean("same_boot", false);
    destination.vcpu_count =
        static_cast<std::uint32_t>(in.u64_in("vcpus", 0, kVcpusMax, kVcpusMax));
    destination.masterclock = in.boolean("masterclock", true);
    destination.quirks = read_quirks(in);
    destination.by_value_bound_ns = in.u64("by_value_bound_ns", destination.by_value_bound_ns);
    destination.exchange = read_exchange(in, problem);
    in.finish();
    return destination;
}

}  // namespace

Json record_to_json(const Record& record) {
    Json json;
    json["schema"] = kRecordSchema;
    json["arch"] = arch_name(record.architecture);
    put_identity(json, record.source);
    json["anchor"] = anchor_json(record.anchor);
    json["host_hz"] = record.anchor.frequency.hz();
    json["vcpus"] = Json::array();
    for (const VcpuClock& vcpu : record.vcpus)
        json["vcpus"].push_back(vcpu_json(vcpu));
    json["kvmclock"] = kvmclock_json(record.kvmclock);
    json["notice_sequence"] = record.notice_sequence;
    return json;
}

Json destination_to_json(const Destination& destination) {
    Json json;
    json["schema"] = kDestinationSchema;
    json["arch"] = arch_name(destination.architecture);
    put_identity(json, destination.identity);
    json["anchor"] = anchor_json(destination.anchor);
    json["host_hz"] = destination.anchor.frequency.hz();
    json["scaling_frac_bits"] = or_null(destination.scaling_frac_bits);
    json["same_boot"] = destination.same_boot;
    json["vcpus"] = destination.vcpu_count;
    json["masterclock"] = destination.masterclock;
    json["quirks"] = Json::array();
    for (const Quirk quirk : kAllQuirks)
        if (has(destination.quirks, quirk)) json["quirks"].push_back(name(quirk));
    json["by_value_bound_ns"] = destination.by_value_bound_ns;
    json["exchange"] = exchange_json(destination.exchange);
    return json;
}

Json plan_to_json(const PlanResult& result) {
    return result ? accepted_json(*result) : refused_json(result.error());
}

Json certificate_to_json(const Certificate& certificate) {
    Json json;
    json["schema"] = kCertificateSchema;
    json["holds"] = certificate.holds();
    json["policy"] = name(certificate.policy);
    json["elapsed_by"] = name(certificate.elapsed_by);
    json["resume_at"] = certificate.resume_at;
    json["gap"] = gap_json(certificate);
    json["rate"] = name(certificate.rate);
    put_rate_error(json, certificate.tsc_rate_error);
    json["clocks"] = Json::array();
    for (const ClockCertificate& clock : certificate.clocks)
        json["clocks"].push_back(clock_certificate_json(clock));
    json["trim"] = trim_json(certificate.trim);
    json["observed"] = Json::array();
    for (const GuestObservation& observed : certificate.observed)
        json["observed"].push_back(observation_json(observed));
    json["notice"] = notice_json(certificate.notice);
    json["notes"] = certificate.notes;
    return json;
}

Json error_to_json(const Error& error) {
    Json inner;
    inner["code"] = name(error.code);
    inner["where"] = error.where;
    inner["what"] = error.what;
    inner["advice"] = error.advice;
    inner["errno"] = error.sys_errno;
    Json json;
    json["error"] = std::move(inner);
    return json;
}

std::string json_text(const Json& json) {
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<Record> record_from_json(std::string_view text) {
    const auto tree = parse_document(text);
    if (!tree) return tl::unexpected(tree.error());
    std::optional<Error> problem;
    Record record = read_record(*tree, problem);
    if (problem) return tl::unexpected(*std::move(problem));
    if (auto status = check(record); !status) return tl::unexpected(status.error());
    return record;
}

Result<Destination> destination_from_json(std::string_view text) {
    const auto tree = parse_document(text);
    if (!tree) return tl::unexpected(tree.error());
    std::optional<Error> problem;
    Destination destination = read_destination(*tree, problem);
    if (!problem && destination.identity.kernel.size() > kKernelBytesMax)
        problem = Error{ErrorCode::kTooLarge,
                        "/kernel",
                        "over the limit of " + std::to_string(kKernelBytesMax) + " bytes",
                        {},
                        0};
    if (!problem && !is_printable_utf8(destination.identity.kernel))
        problem = Error{ErrorCode::kMalformed, "/kernel", "not printable UTF-8", {}, 0};
    if (problem) return tl::unexpected(*std::move(problem));
    if (auto good = check(destination.exchange); !good) return tl::unexpected(good.error());
    return destination;
}

}  // namespace continuo::state
