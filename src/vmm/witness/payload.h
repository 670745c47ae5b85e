// What both halves of the witness's payload use: the watch, which is common, and the clocks of its
// architecture (clocks.h of x86/witness and arm64/witness).
#pragma once

#include "continuo/vmm/witness_abi.h"

namespace continuo::vmm::witness {

inline constexpr std::uint64_t kNanosPerSecond = 1'000'000'000;

template <class T>
T load(const T& word) {
    return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}

inline Control& control_page() {
    return *reinterpret_cast<Control*>(kControl);
}

/// Counts a jump of this size and keeps the largest.
inline void note(Jump& jump, std::uint64_t size, std::uint64_t before, std::uint64_t after) {
    jump.count = jump.count + 1;
    if (size <= jump.largest) return;
    jump.largest = size;
    jump.before = before;
    jump.after = after;
}

}  // namespace continuo::vmm::witness
