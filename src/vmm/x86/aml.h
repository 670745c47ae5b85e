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

}  // namespace continuo::vmm::acpi
