// Writes a flattened device tree (DTB) of version 17: Devicetree Specification 0.4, chapter 5.
// Everything in it is big-endian. No reader, no references between nodes but by number, no memory
// reservations: what a VM's boot needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace continuo::vmm::arm64 {

class FlattenedTree {
  public:
    /// A node of the one that is open, and what `content` puts into it: properties first. The first
    /// node, whose name is empty, is the root.
    void node(std::string_view name, const std::function<void()>& content);

    // Properties of the open node.
    void flag(std::string_view name) { property(name, {}); }
    void text(std::string_view name, std::string_view value) { texts(name, {value}); }
    void texts(std::string_view name, std::initializer_list<std::string_view> values);
    /// Numbers of 32 bits, and of 64.
    void cells(std::string_view name, std::initializer_list<std::uint32_t> values);
    void wide_cells(std::string_view name, std::initializer_list<std::uint64_t> values);

    /// The whole blob. Precondition: the root is closed.
    std::vector<std::byte> finish() const;

  private:
    using Bytes = std::vector<std::byte>;

    void property(std::string_view name, std::span<const std::byte> value);
    std::uint32_t string_offset(std::string_view name);

    Bytes structure_;
    Bytes strings_;
    std::map<std::string, std::uint32_t, std::less<>> offsets_;  ///< of names within strings_
};

}  // namespace continuo::vmm::arm64
