#include "flattened_tree.h"

#include <type_traits>

namespace continuo::vmm::arm64 {

namespace {

using Bytes = std::vector<std::byte>;

constexpr std::uint32_t kMagic = 0xd00dfeed;
constexpr std::uint32_t kVersion = 17;
constexpr std::uint32_t kLastCompatibleVersion = 16;
constexpr std::uint32_t kHeaderBytes = 40;
constexpr std::uint32_t kNoReservations = 16;  ///< bytes: the entry that ends the list

enum Token : std::uint32_t { kBeginNode = 1, kEndNode = 2, kProperty = 3, kEnd = 9 };

template <class T>
void put(Bytes& out, T value) {
    static_assert(std::is_unsigned_v<T>);
    for (std::size_t shift = 8 * sizeof value; shift > 0;) {
        shift -= 8;
        out.push_back(static_cast<std::byte>(value >> shift));
    }
}

void put_text(Bytes& out, std::string_view text) {
    const auto bytes = std::as_bytes(std::span{text});
    out.insert(out.end(), bytes.begin(), bytes.end());
    out.push_back(std::byte{0});
}

void align(Bytes& out) {
    while (out.size() % 4 != 0)
        out.push_back(std::byte{0});
}

}  // namespace

void FlattenedTree::node(std::string_view name, const std::function<void()>& content) {
    put(structure_, std::uint32_t{kBeginNode});
    put_text(structure_, name);
    align(structure_);
    content();
    put(structure_, std::uint32_t{kEndNode});
}

void FlattenedTree::texts(std::string_view name, std::initializer_list<std::string_view> values) {
    Bytes bytes;
    for (const std::string_view value : values)
        put_text(bytes, value);
    property(name, bytes);
}

void FlattenedTree::cells(std::string_view name, std::initializer_list<std::uint32_t> values) {
    Bytes bytes;
    for (const std::uint32_t value : values)
        put(bytes, value);
    property(name, bytes);
}

void FlattenedTree::wide_cells(std::string_view name, std::initializer_list<std::uint64_t> values) {
    Bytes bytes;
    for (const std::uint64_t value : values)
        put(bytes, value);
    property(name, bytes);
}

void FlattenedTree::property(std::string_view name, std::span<const std::byte> value) {
    put(structure_, std::uint32_t{kProperty});
    put(structure_, static_cast<std::uint32_t>(value.size()));
    put(structure_, string_offset(name));
    structure_.insert(structure_.end(), value.begin(), value.end());
    align(structure_);
}

std::uint32_t FlattenedTree::string_offset(std::string_view name) {
    if (const auto known = offsets_.find(name); known != offsets_.end()) return known->second;
    const auto offset = static_cast<std::uint32_t>(strings_.size());
    put_text(strings_, name);
    offsets_.emplace(name, offset);
    return offset;
}

std::vector<std::byte> FlattenedTree::finish() const {
    const auto structure_bytes = static_cast<std::uint32_t>(structure_.size()) + 4;
    const auto strings_bytes = static_cast<std::uint32_t>(strings_.size());
    const std::uint32_t structure = kHeaderBytes + kNoReservations;
    const std::uint32_t strings = structure + structure_bytes;
    const std::uint32_t boot_cpu = 0;
    Bytes out;
    for (const std::uint32_t word :
         {kMagic, strings + strings_bytes, structure, strings, kHeaderBytes, kVersion,
          kLastCompatibleVersion, boot_cpu, strings_bytes, structure_bytes})
        put(out, word);
    out.resize(out.size() + kNoReservations);
    out.insert(out.end(), structure_.begin(), structure_.end());
    put(out, std::uint32_t{kEnd});
    out.insert(out.end(), strings_.begin(), strings_.end());
    return out;
}

}  // namespace continuo::vmm::arm64
