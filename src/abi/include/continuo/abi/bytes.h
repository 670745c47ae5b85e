// Layouts out of and into bytes: a copy, because a guest's page or a file is aligned to nothing and
// may change under the reader. Every layout here is little-endian, and so is every machine that
// this runs on.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

namespace continuo::abi {

static_assert(std::endian::native == std::endian::little, "the layouts are little-endian");

/// A fixed layout without padding of the compiler's own, so that its bytes are its value.
template <class T>
concept Layout = std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T> &&
    std::has_unique_object_representations_v<T>;

/// The layout at the start of `bytes`; what follows it is ignored. nullopt where they are too few.
/// Nothing in it is checked: inconsistencies() (findings.h) is for that.
template <Layout T>
std::optional<T> decode(std::span<const std::byte> bytes) {
    if (bytes.size() < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
}

/// The bytes of a layout.
template <Layout T>
std::array<std::byte, sizeof(T)> encode(const T& value) {
    return std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
}

}  // namespace continuo::abi
