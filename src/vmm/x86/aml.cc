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
constexpr std::byte kPackageOp{0x12};

void append(Aml& to, const Aml& from) {
    to.insert(to.end(), from.begin(), from.end());
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
    CONTINUO_CHECK(name.size() == 4);
    Aml out{kNameOp};
    for (const char letter : name)
        out.push_back(static_cast<std::byte>(letter));
    append(out, value);
    return out;
}

}  // namespace continuo::vmm::acpi
