// What the witness's payload and its host share on arm64 beside witness_abi.h: the translation
// table and the ports. Fixed-width integers alone, for the payload. At the entry X0 =
// report, X1 = control, and the MMU is off.
#pragma once

#include "continuo/vmm/arm64_board.h"
#include "continuo/vmm/witness_abi.h"

namespace continuo::vmm::witness {

/// Level 1 of a 39-bit address space with 4 KiB granules: each entry maps one GiB onto itself.
inline constexpr std::uint64_t kTranslationTable = kTables;

inline constexpr std::uint64_t kPortSerial = arm64::kSerial;  ///< its data register: text
inline constexpr std::uint64_t kPortExit = arm64::kExit;      ///< 32 bits: the guest's exit code

}  // namespace continuo::vmm::witness
