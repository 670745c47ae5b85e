#include "continuo/explore/state_store.h"

#define XXH_INLINE_ALL 1  // as a cross build says it, too
#include <xxhash.h>

#include <cstring>

#include "continuo/state/error.h"

namespace continuo::explore {

namespace {

constexpr std::uint32_t kEmpty = UINT32_MAX;
constexpr std::size_t kFirstIndex = 64;

}  // namespace

StateStore::StateStore(std::size_t state_bytes)
    : bytes_{state_bytes}, index_(kFirstIndex, Slot{kEmpty, 0}) {}

std::uint32_t StateStore::hash(const std::uint8_t* state) const {
    return static_cast<std::uint32_t>(XXH3_64bits(state, bytes_) >> 32);
}

// The upper bits of the hash choose the place, so that growing does not have to look at states.
std::size_t StateStore::place(std::uint32_t hash) const {
    return static_cast<std::size_t>((std::uint64_t{hash} * index_.size()) >> 32);
}

std::uint32_t StateStore::find(const std::uint8_t* state) const {
    const std::uint32_t wanted = hash(state);
    for (std::size_t at = place(wanted);; at = at + 1 == index_.size() ? 0 : at + 1) {
        const Slot slot = index_[at];
        if (slot.number == kEmpty) return size_;
        if (slot.hash == wanted && std::memcmp(this->state(slot.number), state, bytes_) == 0)
            return slot.number;
    }
}

std::pair<std::uint32_t, bool> StateStore::insert(const std::uint8_t* state, std::uint32_t parent) {
    const std::uint32_t wanted = hash(state);
    std::size_t at = place(wanted);
    for (; index_[at].number != kEmpty; at = at + 1 == index_.size() ? 0 : at + 1) {
        const Slot slot = index_[at];
        if (slot.hash == wanted && std::memcmp(this->state(slot.number), state, bytes_) == 0)
            return {slot.number, false};
    }
    CONTINUO_CHECK(size_ < kEmpty - 1);
    if ((size_ & kChunkMask) == 0)
        chunks_.push_back(std::make_unique_for_overwrite<std::uint8_t[]>(bytes_ << kChunkBits));
    std::memcpy(chunks_.back().get() + (size_ & kChunkMask) * bytes_, state, bytes_);
    parents_.push_back(parent);
    index_[at] = {size_++, wanted};
    if (std::uint64_t{size_} * 4 > std::uint64_t{index_.size()} * 3) grow();
    return {size_ - 1, true};
}

void StateStore::grow() {
    std::vector<Slot> old(index_.size() * 2, Slot{kEmpty, 0});
    old.swap(index_);
    for (const Slot slot : old) {
        if (slot.number == kEmpty) continue;
        std::size_t at = place(slot.hash);
        while (index_[at].number != kEmpty)
            at = at + 1 == index_.size() ? 0 : at + 1;
        index_[at] = slot;
    }
}

std::uint64_t StateStore::bytes() const {
    return (std::uint64_t{chunks_.size()} * bytes_ << kChunkBits) +
           parents_.capacity() * sizeof(std::uint32_t) + index_.size() * sizeof(Slot);
}

}  // namespace continuo::explore
