#include "continuo/state/codec.h"

#include <xxhash.h>

#include <algorithm>
#include <concepts>
#include <limits>
#include <type_traits>
#include <utility>

#include "record_check.h"
#include "wire.h"

namespace continuo::state {

namespace {

using wire::Field;
using wire::FieldRule;
using Bytes = std::span<const std::byte>;

// ---- little-endian integers ----

template <std::integral T>
void store(std::byte* to, T value) {
    auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (std::size_t i = 0; i < sizeof(T); ++i)
        to[i] = static_cast<std::byte>((static_cast<std::uint64_t>(bits) >> (8 * i)) & 0xff);
}

/// Domain: offset + sizeof(T) <= bytes.size().
template <std::integral T>
T load(Bytes bytes, std::size_t offset) {
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
        bits |= std::to_integer<std::uint64_t>(bytes[offset + i]) << (8 * i);
    return static_cast<T>(static_cast<std::make_unsigned_t<T>>(bits));
}

// ---- encoding ----

class Writer {
  public:
    explicit Writer(std::size_t size) { bytes_.reserve(size); }

    template <std::integral T>
    void put(T value) {
        std::array<std::byte, sizeof(T)> raw{};
        store(raw.data(), value);
        put(raw);
    }
    void put(Bytes raw) { bytes_.insert(bytes_.end(), raw.begin(), raw.end()); }
    void field(Field field, std::size_t length) {
        put(static_cast<std::uint16_t>(field));
        put(static_cast<std::uint16_t>(length));
    }
    std::vector<std::byte> take() && { return std::move(bytes_); }

  private:
    std::vector<std::byte> bytes_;
};

constexpr std::size_t kFixedBytes = wire::kHeaderBytes + (4 + 4) + (4 + 16) + 4 + (4 + 40) +
                                    (4 + 8) + (4 + 40) + (4 + 4) + wire::kHashBytes;

constexpr std::uint32_t kAnchorSynchronised = 1;
constexpr std::uint8_t kKvmclockMasterclock = 1;
constexpr std::uint32_t kVcpuHasOffset = 1;
constexpr std::uint32_t kVcpuGuestStoppedPending = 2;

void put_header(Writer& out) {
    out.put(std::as_bytes(std::span{wire::kMagic}));
    out.put(kRecordVersion);
    out.put(std::uint16_t{0});
    out.put(std::uint32_t{0});  // seal() writes the length
}

void put_identity(Writer& out, const HostIdentity& identity) {
    if (identity.known()) {
        out.field(Field::kBootId, identity.boot_id.size());
        out.put(std::as_bytes(std::span{identity.boot_id}));
    }
    if (!identity.kernel.empty()) {
        out.field(Field::kKernel, identity.kernel.size());
        out.put(std::as_bytes(std::span{identity.kernel}));
    }
}

void put_anchor(Writer& out, const Anchor<SourceCounter>& anchor) {
    out.field(Field::kAnchor, 40);
    out.put(anchor.counter.raw());
    out.put(anchor.tai.raw());
    out.put(anchor.tai_bound_ns);
    out.put(anchor.frequency.hz());
    out.put(anchor.tai_offset_sec);
    out.put(anchor.synchronised ? kAnchorSynchronised : 0U);
}

void put_kvmclock(Writer& out, const KvmclockState& kvmclock) {
    out.field(Field::kKvmclock, 40);
    out.put(kvmclock.line.tsc_timestamp().raw());
    out.put(kvmclock.line.system_time().raw());
    out.put(kvmclock.line.scale().mul());
    out.put(kvmclock.line.scale().shift());
    out.put(static_cast<std::uint8_t>(kvmclock.origin));
    out.put(kvmclock.masterclock ? kKvmclockMasterclock : std::uint8_t{0});
    out.put(std::uint8_t{0});
    out.put(kvmclock.bound_ns);
    out.put(kvmclock.kernel_minus_line.raw());
}

void put_vcpu(Writer& out, std::uint32_t index, const VcpuClock& vcpu) {
    const std::uint32_t flags = (vcpu.tsc_offset ? kVcpuHasOffset : 0U) |
                                (vcpu.guest_stopped_pending ? kVcpuGuestStoppedPending : 0U);
    out.field(Field::kVcpu, 56);
    out.put(index);
    out.put(flags);
    out.put(vcpu.counter.raw());
    out.put(vcpu.counter_bound_ticks);
    out.put(vcpu.tsc_offset.value_or(0));
    out.put(vcpu.tsc_adjust);
    out.put(vcpu.frequency.hz());
    out.put(vcpu.system_time_msr);
}

void put_rate_bound(Writer& out, std::uint32_t ppb) {
    if (ppb == kRateBoundUnknownPpb) return;
    out.field(Field::kRateBound, 4);
    out.put(ppb);
}

void put_suspended(Writer& out, const std::optional<std::uint64_t>& ns) {
    if (!ns) return;
    out.field(Field::kSuspended, 8);
    out.put(*ns);
}

// ---- decoding ----

std::string place(std::size_t offset, std::string_view field) {
    return "record, byte " + std::to_string(offset) + " (" + std::string{field} + ")";
}

tl::unexpected<Error> malformed(std::size_t offset, std::string_view field, std::string what) {
    return fail(ErrorCode::kMalformed, place(offset, field), std::move(what));
}

constexpr std::string_view kDamaged =
    "The bytes were damaged, cut off or are no record: take them again from where they came from";

Status check_magic(Bytes bytes) {
    const std::size_t seen = std::min(bytes.size(), wire::kMagic.size());
    const auto magic = std::as_bytes(std::span{wire::kMagic});
    if (!std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(seen),
                    magic.begin()))
        return fail(ErrorCode::kMalformed, place(0, "magic"),
                    "the bytes do not begin with \"CONTINUO\"", std::string{kDamaged});
    if (bytes.size() < kRecordBytesMin)
        return fail(ErrorCode::kTruncated, place(bytes.size(), "header"),
                    "only " + std::to_string(bytes.size()) + " bytes, and a record has at least " +
                        std::to_string(kRecordBytesMin),
                    std::string{kDamaged});
    return {};
}

Status check_version(Bytes bytes) {
    const auto version = load<std::uint16_t>(bytes, wire::kVersionAt);
    if (version >= 1 && version <= kRecordVersion) return {};
    return fail(ErrorCode::kVersion, place(wire::kVersionAt, "version"),
                "version " + std::to_string(version) + ", and this build reads 1 to " +
                    std::to_string(kRecordVersion),
                "Use a release of continuo at least as new as the one that wrote the record");
}

Status check_length(Bytes bytes) {
    const std::size_t stated = load<std::uint32_t>(bytes, wire::kLengthAt);
    const std::string where = place(wire::kLengthAt, "length");
    const std::string sizes =
        std::to_string(stated) + " bytes stated and " + std::to_string(bytes.size()) + " there";
    if (stated > kRecordBytesMax || bytes.size() > kRecordBytesMax)
        return fail(ErrorCode::kTooLarge, where,
                    sizes + ", over the limit of " + std::to_string(kRecordBytesMax));
    if (stated > bytes.size())
        return fail(ErrorCode::kTruncated, where, sizes, std::string{kDamaged});
    if (stated < bytes.size())
        return fail(ErrorCode::kMalformed, where, sizes + ": bytes after the end",
                    std::string{kDamaged});
    return {};
}

Status check_hash(Bytes bytes) {
    const std::size_t at = bytes.size() - wire::kHashBytes;
    if (load<std::uint64_t>(bytes, at) == wire::hash_of(bytes.first(at))) return {};
    return fail(ErrorCode::kIntegrity, place(at, "hash"), "the hash does not match the bytes",
                std::string{kDamaged});
}

/// One field as it stands in the blob. Offsets of errors are those of the blob.
struct RawField {
    std::uint16_t type;
    std::size_t offset;  ///< of the field's header
    Bytes payload;
    const FieldRule* rule;  ///< none: unknown and optional

    std::size_t payload_offset() const { return offset + wire::kFieldHeaderBytes; }
    template <std::integral T>
    T at(std::size_t within) const {
        return load<T>(payload, within);
    }
    tl::unexpected<Error> bad(std::size_t within, std::string what) const {
        return malformed(payload_offset() + within, rule->name, std::move(what));
    }
};

const FieldRule* rule_of(std::uint16_t type) {
    const auto wanted = static_cast<std::uint16_t>(type & ~wire::kMandatory);
    const auto* found =
        std::find_if(wire::kFieldRules.begin(), wire::kFieldRules.end(),
                     [&](const FieldRule& rule) { return wire::number(rule.field) == wanted; });
    return found == wire::kFieldRules.end() ? nullptr : found;
}

std::string field_name(std::uint16_t type) {
    return "field type " + std::to_string(type & ~wire::kMandatory);
}

Status check_known(const RawField& field) {
    if (field.type != static_cast<std::uint16_t>(field.rule->field))
        return malformed(field.offset, field.rule->name, "the mandatory bit is wrong");
    const std::size_t length = field.payload.size();
    if (length < field.rule->length_min || length > field.rule->length_max)
        return malformed(field.offset + 2, field.rule->name,
                         "a length of " + std::to_string(length) + ", and it must be " +
                             std::to_string(field.rule->length_min) +
                             (field.rule->length_min == field.rule->length_max
                                  ? std::string{}
                                  : " to " + std::to_string(field.rule->length_max)));
    return {};
}

/// The field at `offset`. Domain: offset < body_end <= bytes.size().
Result<RawField> read_field(Bytes bytes, std::size_t offset, std::size_t body_end) {
    if (body_end - offset < wire::kFieldHeaderBytes)
        return malformed(offset, "field header",
                         std::to_string(body_end - offset) + " bytes, and a field header has 4");
    const auto type = load<std::uint16_t>(bytes, offset);
    const std::size_t length = load<std::uint16_t>(bytes, offset + 2);
    if (length > body_end - offset - wire::kFieldHeaderBytes)
        return malformed(offset + 2, field_name(type),
                         "a length of " + std::to_string(length) + " that runs over the end");
    const RawField field{type, offset, bytes.subspan(offset + wire::kFieldHeaderBytes, length),
                         rule_of(type)};
    if (field.rule == nullptr) {
        if ((type & wire::kMandatory) == 0) return field;
        return fail(ErrorCode::kVersion, place(offset, field_name(type)),
                    "a mandatory field that this build does not know",
                    "Use a release of continuo at least as new as the one that wrote the record");
    }
    if (const Status known = check_known(field); !known) return tl::unexpected(known.error());
    return field;
}

Result<Hz> read_frequency(const RawField& field, std::size_t within) {
    const auto hz = Hz::from_hz(field.at<std::uint64_t>(within));
    if (!hz) return field.bad(within, "a frequency of 0");
    return *hz;
}

Result<std::uint32_t> read_flags(const RawField& field, std::size_t within, std::uint32_t known) {
    const auto flags = field.at<std::uint32_t>(within);
    if ((flags & ~known) != 0) return field.bad(within, "flag bits that version 1 does not have");
    return flags;
}

Status read_architecture(const RawField& field, Record& record) {
    const auto value = field.at<std::uint32_t>(0);
    if (value != static_cast<std::uint32_t>(Architecture::kX86_64) &&
        value != static_cast<std::uint32_t>(Architecture::kArm64))
        return field.bad(0, "architecture " + std::to_string(value) + ", not 1 or 2");
    record.architecture = static_cast<Architecture>(value);
    return {};
}

Status read_boot_id(const RawField& field, Record& record) {
    for (std::size_t i = 0; i < record.source.boot_id.size(); ++i)
        record.source.boot_id[i] = field.at<std::uint8_t>(i);
    if (!record.source.known()) return field.bad(0, "all zero: an unknown identity is left out");
    return {};
}

Status read_kernel(const RawField& field, Record& record) {
    record.source.kernel.reserve(field.payload.size());
    for (const std::byte byte : field.payload)
        record.source.kernel.push_back(static_cast<char>(std::to_integer<unsigned char>(byte)));
    return {};
}

Status read_anchor(const RawField& field, Record& record) {
    const auto frequency = read_frequency(field, 24);
    if (!frequency) return tl::unexpected(frequency.error());
    const auto flags = read_flags(field, 36, kAnchorSynchronised);
    if (!flags) return tl::unexpected(flags.error());
    Anchor<SourceCounter>& anchor = record.anchor;
    anchor.counter = Count<SourceCounter>::from_raw(field.at<std::uint64_t>(0));
    anchor.tai = Instant<Tai>::from_raw(field.at<std::uint64_t>(8));
    anchor.tai_bound_ns = field.at<std::uint64_t>(16);
    anchor.frequency = *frequency;
    anchor.tai_offset_sec = field.at<std::int32_t>(32);
    anchor.synchronised = (*flags & kAnchorSynchronised) != 0;
    return {};
}

Status read_rate_bound(const RawField& field, Record& record) {
    record.anchor.rate_bound_ppb = field.at<std::uint32_t>(0);
    if (record.anchor.rate_bound_ppb == kRateBoundUnknownPpb)
        return field.bad(0, "what an unknown rate is taken for, and that is left out");
    return {};
}

Status read_suspended(const RawField& field, Record& record) {
    record.anchor.suspended_ns = field.at<std::uint64_t>(0);
    return {};
}

Status read_notice_sequence(const RawField& field, Record& record) {
    record.notice_sequence = field.at<std::uint64_t>(0);
    return {};
}

Result<PvclockScale> read_scale(const RawField& field) {
    const auto shift = field.at<std::int8_t>(20);
    const auto scale = PvclockScale::make(field.at<std::uint32_t>(16), shift);
    if (!scale)
        return field.bad(20, "a pvclock shift of " + std::to_string(shift) + ", outside " +
                                 std::to_string(PvclockScale::kShiftMin) + " to " +
                                 std::to_string(PvclockScale::kShiftMax));
    return *scale;
}

Status check_kvmclock_bytes(const RawField& field) {
    const auto origin = field.at<std::uint8_t>(21);
    if (origin != static_cast<std::uint8_t>(KvmclockOrigin::kPage) &&
        origin != static_cast<std::uint8_t>(KvmclockOrigin::kKernel))
        return field.bad(21, "origin " + std::to_string(origin) + ", not 1 or 2");
    if ((field.at<std::uint8_t>(22) & ~kKvmclockMasterclock) != 0)
        return field.bad(22, "flag bits that version 1 does not have");
    if (field.at<std::uint8_t>(23) != 0) return field.bad(23, "padding that is not zero");
    return {};
}

Status read_kvmclock(const RawField& field, Record& record) {
    const auto scale = read_scale(field);
    if (!scale) return tl::unexpected(scale.error());
    if (auto status = check_kvmclock_bytes(field); !status) return status;
    KvmclockState kvmclock;
    kvmclock.line = PvclockLine{Count<GuestCounter>::from_raw(field.at<std::uint64_t>(0)),
                                Instant<Kvmclock>::from_raw(field.at<std::uint64_t>(8)), *scale};
    kvmclock.origin = static_cast<KvmclockOrigin>(field.at<std::uint8_t>(21));
    kvmclock.masterclock = field.at<std::uint8_t>(22) == kKvmclockMasterclock;
    kvmclock.bound_ns = field.at<std::uint64_t>(24);
    kvmclock.kernel_minus_line = Nanos<Kvmclock>::from_raw(field.at<std::int64_t>(32));
    record.kvmclock = kvmclock;
    return {};
}

Result<std::uint32_t> read_vcpu_flags(const RawField& field) {
    auto flags = read_flags(field, 4, kVcpuHasOffset | kVcpuGuestStoppedPending);
    if (flags && (*flags & kVcpuHasOffset) == 0 && field.at<std::uint64_t>(24) != 0)
        return field.bad(24, "a TSC offset, but the flag that it is there is clear");
    return flags;
}

Status check_vcpu_index(const RawField& field, std::size_t expected) {
    const auto index = field.at<std::uint32_t>(0);
    if (expected == kVcpusMax)
        return fail(ErrorCode::kTooLarge, place(field.offset, field.rule->name),
                    "more than " + std::to_string(kVcpusMax) + " vCPUs");
    if (index != expected)
        return field.bad(0, "vCPU " + std::to_string(index) + " where vCPU " +
                                std::to_string(expected) + " must stand");
    return {};
}

Status read_vcpu(const RawField& field, Record& record) {
    if (auto status = check_vcpu_index(field, record.vcpus.size()); !status) return status;
    const auto flags = read_vcpu_flags(field);
    if (!flags) return tl::unexpected(flags.error());
    const auto frequency = read_frequency(field, 40);
    if (!frequency) return tl::unexpected(frequency.error());
    VcpuClock vcpu;
    vcpu.counter = Count<GuestCounter>::from_raw(field.at<std::uint64_t>(8));
    vcpu.counter_bound_ticks = field.at<std::uint64_t>(16);
    if ((*flags & kVcpuHasOffset) != 0) vcpu.tsc_offset = field.at<std::uint64_t>(24);
    vcpu.tsc_adjust = field.at<std::int64_t>(32);
    vcpu.frequency = *frequency;
    vcpu.system_time_msr = field.at<std::uint64_t>(48);
    vcpu.guest_stopped_pending = (*flags & kVcpuGuestStoppedPending) != 0;
    record.vcpus.push_back(vcpu);
    return {};
}

Status read_payload(const RawField& field, Record& record) {
    switch (field.rule->field) {
        case Field::kArchitecture:
            return read_architecture(field, record);
        case Field::kBootId:
            return read_boot_id(field, record);
        case Field::kKernel:
            return read_kernel(field, record);
        case Field::kAnchor:
            return read_anchor(field, record);
        case Field::kNoticeSequence:
            return read_notice_sequence(field, record);
        case Field::kKvmclock:
            return read_kvmclock(field, record);
        case Field::kVcpu:
            return read_vcpu(field, record);
        case Field::kRateBound:
            return read_rate_bound(field, record);
        case Field::kSuspended:
            return read_suspended(field, record);
    }
    return {};
}

/// Reads the fields between header and hash, and remembers where each known one stood.
class Body {
  public:
    explicit Body(Bytes bytes) : bytes_{bytes}, end_{bytes.size() - wire::kHashBytes} {}

    Result<Record> read() {
        for (std::size_t offset = wire::kHeaderBytes; offset < end_;) {
            const auto field = read_field(bytes_, offset, end_);
            if (!field) return tl::unexpected(field.error());
            if (auto status = take(*field); !status) return tl::unexpected(status.error());
            offset = field->payload_offset() + field->payload.size();
        }
        if (auto status = check_complete(); !status) return tl::unexpected(status.error());
        if (const auto flaw = find_flaw(record_))
            return fail(flaw->code, place(offset_of(*flaw), json_pointer(*flaw)), flaw->what);
        return std::move(record_);
    }

  private:
    static constexpr std::size_t kNowhere = 0;

    std::size_t& offset_of(Field field) { return offsets_[wire::number(field) - 1U]; }

    Status take(const RawField& field) {
        const auto current = static_cast<std::uint16_t>(field.type & ~wire::kMandatory);
        if (current < last_)
            return malformed(field.offset, field_name(field.type),
                             "out of order: it stands after type " + std::to_string(last_));
        last_ = current;
        if (field.rule == nullptr) return {};
        if (auto status = check_once(field); !status) return status;
        return read_payload(field, record_);
    }

    Status check_once(const RawField& field) {
        std::size_t& first = offset_of(field.rule->field);
        if (first != kNowhere && !field.rule->repeats)
            return malformed(field.offset, field.rule->name,
                             "a second time; the first is at byte " + std::to_string(first));
        if (first == kNowhere) {
            first = field.offset;
            // All vCPUs stand in one run: as many as there is room for, and no more than the limit.
            if (field.rule->field == Field::kVcpu)
                record_.vcpus.reserve(
                    std::min(kVcpusMax, (end_ - field.offset) / wire::kVcpuFieldBytes));
        }
        return {};
    }

    Status check_complete() {
        for (const FieldRule& rule : wire::kFieldRules)
            if (rule.required && offset_of(rule.field) == kNowhere)
                return malformed(end_, rule.name, "missing");
        return {};
    }

    std::size_t vcpu_offset(std::uint32_t vcpu, std::size_t within) {
        return offset_of(Field::kVcpu) + vcpu * wire::kVcpuFieldBytes + wire::kFieldHeaderBytes +
               within;
    }

    std::size_t payload_offset(Field field, std::size_t within) {
        return offset_of(field) + wire::kFieldHeaderBytes + within;
    }

    std::size_t offset_of(const Flaw& flaw) {
        switch (flaw.part) {
            case Part::kKernel:
                return payload_offset(Field::kKernel, 0);
            case Part::kHostFrequency:
                return payload_offset(Field::kAnchor, 24);
            case Part::kHostRateBound:
                return payload_offset(Field::kRateBound, 0);
            case Part::kVcpus:
                return offset_of(Field::kVcpu);
            case Part::kVcpuFrequency:
                return vcpu_offset(flaw.vcpu, 40);
            case Part::kVcpuTscAdjust:
                return vcpu_offset(flaw.vcpu, 32);
            case Part::kVcpuSystemTimeMsr:
                return vcpu_offset(flaw.vcpu, 48);
            case Part::kVcpuGuestStopped:
                return vcpu_offset(flaw.vcpu, 4);
            case Part::kKvmclock:
                return offset_of(Field::kKvmclock);
            case Part::kKvmclockMul:
                return payload_offset(Field::kKvmclock, 16);
            case Part::kKvmclockOrigin:
                return payload_offset(Field::kKvmclock, 21);
        }
        return kNowhere;
    }

    Bytes bytes_;
    std::size_t end_;
    std::uint16_t last_ = 0;
    std::array<std::size_t, wire::kFieldNumberMax> offsets_{};
    Record record_;
};

}  // namespace

std::uint64_t wire::hash_of(Bytes bytes_before_hash) {
    return XXH3_64bits(bytes_before_hash.data(), bytes_before_hash.size());
}

void wire::seal(std::vector<std::byte>& blob) {
    CONTINUO_CHECK(blob.size() >= kHeaderBytes + kHashBytes);
    CONTINUO_CHECK(blob.size() <= std::numeric_limits<std::uint32_t>::max());
    store(blob.data() + kLengthAt, static_cast<std::uint32_t>(blob.size()));
    const std::size_t at = blob.size() - kHashBytes;
    store(blob.data() + at, hash_of(Bytes{blob}.first(at)));
}

std::vector<std::byte> encode(const Record& record) {
    CONTINUO_CHECK(check(record).has_value());
    Writer out{kFixedBytes + record.source.kernel.size() +
               record.vcpus.size() * wire::kVcpuFieldBytes};
    put_header(out);
    out.field(Field::kArchitecture, 4);
    out.put(static_cast<std::uint32_t>(record.architecture));
    put_identity(out, record.source);
    put_anchor(out, record.anchor);
    out.field(Field::kNoticeSequence, 8);
    out.put(record.notice_sequence);
    if (record.kvmclock) put_kvmclock(out, *record.kvmclock);
    for (std::uint32_t i = 0; i < record.vcpus.size(); ++i)
        put_vcpu(out, i, record.vcpus[i]);
    put_rate_bound(out, record.anchor.rate_bound_ppb);
    put_suspended(out, record.anchor.suspended_ns);
    out.put(std::uint64_t{0});  // seal() writes the hash
    std::vector<std::byte> blob = std::move(out).take();
    wire::seal(blob);
    return blob;
}

Result<Record> decode(Bytes bytes) {
    if (auto status = check_magic(bytes); !status) return tl::unexpected(status.error());
    if (auto status = check_version(bytes); !status) return tl::unexpected(status.error());
    if (auto status = check_length(bytes); !status) return tl::unexpected(status.error());
    if (auto status = check_hash(bytes); !status) return tl::unexpected(status.error());
    const auto reserved = load<std::uint16_t>(bytes, wire::kReservedAt);
    if (reserved != 0) return malformed(wire::kReservedAt, "reserved", "not zero");
    return Body{bytes}.read();
}

}  // namespace continuo::state
