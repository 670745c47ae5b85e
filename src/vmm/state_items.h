// A VM's state as bytes: a header and tagged items, for any architecture. Which tags there are, and
// what is in them, is the architecture's (state_codec.cc of x86/ and arm64/);
// docs/formats/migration.md has both lists. Foreign bytes: nothing is believed, and no more memory
// is taken than the input has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "continuo/state/error.h"

namespace continuo::vmm {

inline constexpr std::uint32_t kWholeVm = 0xffffffff;

struct ItemHeader {
    std::uint32_t tag;
    std::uint32_t vcpu;  ///< kWholeVm: of no vCPU
    std::uint32_t length;
    std::uint32_t zero;
};
static_assert(sizeof(ItemHeader) == 16);

/// Bytes one after the other.
class StateWriter {
  public:
    explicit StateWriter(std::size_t vcpus);
    template <class T>
    void raw(const T& value) {
        static_assert(std::is_trivially_copyable_v<T>);
        append(std::as_bytes(std::span{&value, 1}));
    }
    void append(std::span<const std::byte> bytes) {
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    }
    void item(std::uint32_t tag, std::uint32_t vcpu, std::span<const std::byte> body) {
        raw(ItemHeader{tag, vcpu, static_cast<std::uint32_t>(body.size()), 0});
        append(body);
    }
    template <class T>
    void item(std::uint32_t tag, std::uint32_t vcpu, const T& value) {
        item(tag, vcpu, std::as_bytes(std::span{&value, 1}));
    }
    std::vector<std::byte> take() { return std::move(bytes_); }

  private:
    std::vector<std::byte> bytes_;
};

/// One item at its place in the input.
struct StateItem {
    ItemHeader header;
    std::size_t offset;
    std::span<const std::byte> body;
};

tl::unexpected<state::Error> damaged_state(std::size_t offset, std::string what,
                                           state::ErrorCode code = state::ErrorCode::kMalformed);

/// Reads them back, one item after the other.
class StateReader {
  public:
    /// `vcpu_bytes_min`: what every vCPU has at least, so that a claim of more vCPUs takes no
    /// memory.
    static state::Result<StateReader> open(std::span<const std::byte> bytes,
                                           std::size_t vcpu_bytes_min);
    std::uint32_t vcpus() const { return vcpus_; }
    /// Offset of the end, for what is missing.
    std::size_t size() const { return bytes_.size(); }
    /// The next item, whose vCPU exists; nullopt at the end.
    state::Result<std::optional<StateItem>> next();

  private:
    StateReader(std::span<const std::byte> bytes, std::uint32_t vcpus);
    std::span<const std::byte> bytes_;
    std::size_t at_;
    std::uint32_t vcpus_;
};

/// Which items have come; each may come once. Up to 32 of them.
class ItemsSeen {
  public:
    state::Status mark(const StateItem& item, std::uint32_t bit);
    /// True where all of `needed` have come.
    bool has(std::uint32_t needed) const { return (seen_ & needed) == needed; }

  private:
    std::uint32_t seen_ = 0;
};

/// The item's bytes as a structure of exactly that size.
template <class T>
state::Status copy_item(const StateItem& item, T& into) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (item.body.size() != sizeof(T)) {
        return damaged_state(item.offset, "tag " + std::to_string(item.header.tag) + " has " +
                                              std::to_string(item.body.size()) +
                                              " bytes instead of " + std::to_string(sizeof(T)));
    }
    std::memcpy(&into, item.body.data(), sizeof(T));
    return {};
}

/// A tag that this build does not know: an error, unless its bit 31 says that it may be skipped.
state::Status unknown_item(const StateItem& item);

}  // namespace continuo::vmm
