// Definition blocks in ACPI Machine Language, as bytes (ACPI 6.5, chapter 20): the few terms that
// this VMM's tables have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace continuo::vmm::acpi {

using Aml = std::vector<std::byte>;

/// An integer constant, in its shortest encoding up to 64 bits.
Aml integer(std::uint64_t value);
/// A package (at most 255 elements) of terms.
Aml package(std::initializer_list<Aml> elements);
/// Name(name, value). `name` is one segment of exactly four characters.
Aml named(std::string_view name, const Aml& value);
/// A string without NUL in it.
Aml text(std::string_view characters);
/// EISAID("PNP0501"): three capital letters, four hexadecimal digits.
Aml eisa_id(std::string_view id);
/// A buffer of those bytes, such as a resource template.
Aml buffer(const Aml& bytes);

/// A name from the root: "\_SB_.ABCD", of one to 255 segments of four characters.
Aml path(std::string_view name);
/// Scope(path) { body }
Aml scope(std::string_view name, const Aml& body);
/// Device(name) { body }; `name` is one segment, and so in those below.
Aml device(std::string_view name, const Aml& body);
/// Method(name, arguments, Serialized) { body }; up to 7 arguments.
Aml method(std::string_view name, unsigned arguments, const Aml& body);
/// OperationRegion(name, SystemIO, port, 1), and Field over all of it by the name `field`.
Aml port_byte(std::string_view name, std::string_view field, std::uint16_t port);

/// Terms one after the other.
Aml terms(std::initializer_list<Aml> list);
/// Store(name, Local0)
Aml load_local0(std::string_view name);
/// If (Local0 & mask) { body }
Aml if_local0(std::uint64_t mask, const Aml& body);
/// Notify(path, value)
Aml notify(std::string_view device, std::uint64_t value);

/// Resource descriptors (6.4), to be put into resources().
Aml memory_resource(std::uint32_t begin, std::uint32_t bytes);
Aml port_resource(std::uint16_t begin, std::uint8_t count);
/// An edge-triggered ISA interrupt, 0 to 15.
Aml isa_interrupt_resource(unsigned irq);
/// A level-triggered interrupt, active high, shared with nobody.
Aml interrupt_resource(std::uint32_t gsi);
/// ResourceTemplate() { list }
Aml resources(std::initializer_list<Aml> list);

}  // namespace continuo::vmm::acpi
