// Every state that a search has found, whole, in the order of discovery, and an index over them: an
// open-addressing table of (number of the state, 32 bits of its hash). The numbers of the states
// are the breadth-first queue; each state has its parent's number, which is the way back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace continuo::explore {

class StateStore {
  public:
    explicit StateStore(std::size_t state_bytes);

    /// The state's number and whether it is new. A new one is copied.
    std::pair<std::uint32_t, bool> insert(const std::uint8_t* state, std::uint32_t parent);
    /// Its number, or size() where it was never found.
    std::uint32_t find(const std::uint8_t* state) const;

    std::uint32_t size() const { return size_; }
    /// Good as long as the store.
    const std::uint8_t* state(std::uint32_t number) const {
        return chunks_[number >> kChunkBits].get() + (number & kChunkMask) * bytes_;
    }
    std::uint32_t parent(std::uint32_t number) const { return parents_[number]; }
    /// Memory that this holds at the moment.
    std::uint64_t bytes() const;

  private:
    static constexpr unsigned kChunkBits = 8;
    static constexpr std::uint32_t kChunkMask = (1U << kChunkBits) - 1;
    struct Slot {
        std::uint32_t number;
        std::uint32_t hash;
    };

    std::uint32_t hash(const std::uint8_t* state) const;
    std::size_t place(std::uint32_t hash) const;
    void grow();

    std::size_t bytes_;
    std::uint32_t size_ = 0;
    std::vector<std::unique_ptr<std::uint8_t[]>> chunks_;
    std::vector<std::uint32_t> parents_;
    std::vector<Slot> index_;
};

}  // namespace continuo::explore
