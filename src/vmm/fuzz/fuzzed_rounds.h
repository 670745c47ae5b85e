// How many rounds of the exchange the fuzzer's destination asks for, and its seeds answer.
#pragma once

#include <cstdint>

namespace continuo::vmm {

inline constexpr std::uint32_t kFuzzedRounds = 2;
inline constexpr std::uint32_t kFuzzedRoundsAgain = 8;  ///< while stopped: not an option

}  // namespace continuo::vmm
