#include "aml.h"

#include "continuo/state/error.h"

namespace continuo::vmm::acpi {

namespace {

constexpr std::byte kZeroOp{0x00};
constexpr std::byte kOneOp{0x01};
constexpr std::byte kNameOp{0x08};
constexpr std::byte kBytePrefix{0x0a};
constexpr std::byte kWordPrefix{0x0b};
constexpr std::byte kDwordPrefix{0x0c};
constexpr std::byte kQwordPrefix{0x0e};
constexpr std::byte kStringPrefix{0x0d};
constexpr std::byte kScopeOp{0x10};
constexpr std::byte kBufferOp{0x11};
constexpr std::byte kPackageOp{0x12};
constexpr std::byte kMethodOp{0x14};
constexpr std::byte kMultiNamePrefix{0x2f};
constexpr std::byte kExtendedPrefix{0x5b};
constexpr std::byte kRootPrefix{0x5c};
constexpr std::byte kLocal0{0x60};
constexpr std::byte kStoreOp{0x70};
constexpr std::byte kAndOp{0x7b};
constexpr std::byte kNotifyOp{0x86};
constexpr std::byte kIfOp{0xa0};
constexpr std::byte kRegionOp{0x80};  // these three behind the extended prefix
constexpr std::byte kFieldOp{0x81};
constexpr std::byte kDeviceOp{0x82};
constexpr std::byte kSystemIo{0x01};
constexpr std::byte kByteAccess{0x01};
constexpr std::size_t kSegment = 4;

void append(Aml& to, const Aml& from) {
    for (const std::byte byte : from)
        to.push_back(byte);
}

Aml little_endian(std::byte prefix, std::uint64_t value, unsigned bytes) {
    Aml out{prefix};
    for (unsigned i = 0; i < bytes; ++i)
        out.push_back(static_cast<std::byte>(value >> (8 * i)));
    return out;
}

/// PkgLength, which counts its own bytes (20.2.4): one byte up to 63, else the low four bits of the
/// length, then eight more in each of one to three further bytes.
Aml with_length(std::byte operation, const Aml& body) {
    Aml out{operation};
    if (body.size() + 1 < 64) {
        out.push_back(static_cast<std::byte>(body.size() + 1));
    } else {
        unsigned further = 1;
        while (body.size() + 1 + further >= std::size_t{1} << (4 + 8 * further))
            ++further;
        CONTINUO_CHECK(further <= 3);
        const std::size_t length = body.size() + 1 + further;
        out.push_back(static_cast<std::byte>(further << 6 | (length & 0xf)));
        for (unsigned i = 0; i < further; ++i)
            out.push_back(static_cast<std::byte>(length >> (4 + 8 * i)));
    }
    append(out, body);
    return out;
}

Aml segment(std::string_view name) {
    CONTINUO_CHECK(name.size() == kSegment);
    Aml out;
    for (const char letter : name)
        out.push_back(static_cast<std::byte>(letter));
    return out;
}

Aml extended(const Aml& operation) {
    Aml out{kExtendedPrefix};
    append(out, operation);
    return out;
}

unsigned hex_digit(char c) {
    CONTINUO_CHECK((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
    return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'A' + 10);
}

/// A resource descriptor's bytes, little-endian fields of the sizes given.
struct Field {
    std::uint64_t value;
    unsigned bytes;
};
Aml descriptor(std::initializer_list<Field> fields) {
    Aml out;
    for (const Field& field : fields)
        for (unsigned i = 0; i < field.bytes; ++i)
            out.push_back(static_cast<std::byte>(field.value >> (8 * i)));
    return out;
}

}  // namespace

Aml integer(std::uint64_t value) {
    if (value == 0) return {kZeroOp};
    if (value == 1) return {kOneOp};
    if (value <= 0xff) return little_endian(kBytePrefix, value, 1);
    if (value <= 0xffff) return little_endian(kWordPrefix, value, 2);
    if (value <= 0xffffffff) return little_endian(kDwordPrefix, value, 4);
    return little_endian(kQwordPrefix, value, 8);
}

Aml package(std::initializer_list<Aml> elements) {
    CONTINUO_CHECK(elements.size() <= 0xff);
    Aml body{static_cast<std::byte>(elements.size())};
    for (const Aml& element : elements)
        append(body, element);
    return with_length(kPackageOp, body);
}

Aml named(std::string_view name, const Aml& value) {
    Aml out{kNameOp};
    append(out, segment(name));
    append(out, value);
    return out;
}

Aml text(std::string_view characters) {
    Aml out{kStringPrefix};
    for (const char letter : characters)
        out.push_back(static_cast<std::byte>(letter));
    out.push_back(std::byte{0});
    return out;
}

// 19.3.4: five bits a letter from '@', then the digits; the bytes in big-endian order.
Aml eisa_id(std::string_view id) {
    CONTINUO_CHECK(id.size() == 7);
    std::uint32_t value = 0;
    for (const char letter : id.substr(0, 3))
        value = value << 5 | static_cast<std::uint32_t>(letter - '@');
    for (const char digit : id.substr(3))
        value = value << 4 | hex_digit(digit);
    return integer(__builtin_bswap32(value));
}

Aml buffer(const Aml& bytes) {
    return with_length(kBufferOp, terms({integer(bytes.size()), bytes}));
}

Aml path(std::string_view name) {
    CONTINUO_CHECK(name.starts_with('\\') && name.size() % (kSegment + 1) == 0);
    const std::size_t segments = name.size() / (kSegment + 1);
    CONTINUO_CHECK(segments >= 1 && segments <= 0xff);
    Aml out{kRootPrefix};
    if (segments > 1) {
        out.push_back(kMultiNamePrefix);
        out.push_back(static_cast<std::byte>(segments));
    }
    for (std::size_t i = 0; i < segments; ++i)
        append(out, segment(name.substr(1 + i * (kSegment + 1), kSegment)));
    return out;
}

Aml scope(std::string_view name, const Aml& body) {
    return with_length(kScopeOp, terms({path(name), body}));
}

Aml device(std::string_view name, const Aml& body) {
    return extended(with_length(kDeviceOp, terms({segment(name), body})));
}

Aml method(std::string_view name, unsigned arguments, const Aml& body) {
    CONTINUO_CHECK(arguments <= 7);
    constexpr unsigned kSerialized = 1u << 3;
    const Aml flags{static_cast<std::byte>(arguments | kSerialized)};
    return with_length(kMethodOp, terms({segment(name), flags, body}));
}

Aml port_byte(std::string_view name, std::string_view field, std::uint16_t port) {
    const Aml region =
        extended(terms({{kRegionOp}, segment(name), {kSystemIo}, integer(port), integer(1)}));
    // One field of 8 bits, whose length is encoded as a PkgLength is.
    const Aml fields = with_length(
        kFieldOp, terms({segment(name), {kByteAccess}, segment(field), {std::byte{8}}}));
    return terms({region, extended(fields)});
}

Aml terms(std::initializer_list<Aml> list) {
    Aml out;
    for (const Aml& term : list)
        append(out, term);
    return out;
}

Aml load_local0(std::string_view name) {
    return terms({{kStoreOp}, segment(name), {kLocal0}});
}

Aml if_local0(std::uint64_t mask, const Aml& body) {
    constexpr std::byte kNoTarget{0};
    return with_length(kIfOp, terms({{kAndOp}, {kLocal0}, integer(mask), {kNoTarget}, body}));
}

Aml notify(std::string_view device, std::uint64_t value) {
    return terms({{kNotifyOp}, path(device), integer(value)});
}

// 6.4.3.4: 32-bit fixed memory range descriptor, read and write.
Aml memory_resource(std::uint32_t begin, std::uint32_t bytes) {
    return descriptor({{0x86, 1}, {9, 2}, {1, 1}, {begin, 4}, {bytes, 4}});
}

// 6.4.2.5: I/O port descriptor, all 16 bits decoded.
Aml port_resource(std::uint16_t begin, std::uint8_t count) {
    return descriptor({{0x47, 1}, {1, 1}, {begin, 2}, {begin, 2}, {1, 1}, {count, 1}});
}

// 6.4.2.1: IRQ descriptor without flags.
Aml isa_interrupt_resource(unsigned irq) {
    CONTINUO_CHECK(irq < 16);
    return descriptor({{0x22, 1}, {std::uint64_t{1} << irq, 2}});
}

// 6.4.3.6: extended interrupt descriptor of a consumer.
Aml interrupt_resource(std::uint32_t gsi) {
    return descriptor({{0x89, 1}, {6, 2}, {1, 1}, {1, 1}, {gsi, 4}});
}

Aml resources(std::initializer_list<Aml> list) {
    constexpr std::uint64_t kEndTag = 0x79;
    return buffer(terms({terms(list), descriptor({{kEndTag, 1}, {0, 1}})}));
}

}  // namespace continuo::vmm::acpi
