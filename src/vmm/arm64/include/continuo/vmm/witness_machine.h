// What the witness's payload and its host share on arm64 beside witness_abi.h: the translation
// table and the page of ports. Fixed-width integers alone, for the payload. At the entry X0 =
// report, X1 = control, and the MMU is off.
#pragma once

#include "continuo/vmm/witness_abi.h"

namespace continuo::vmm::witness {

/// Level 1 of a 39-bit address space with 4 KiB granules: each entry maps one GiB onto itself.
inline constexpr std::uint64_t kTranslationTable = kTables;

/// A page without memory behind it, in the GiB behind the largest memory: each access is an exit.
inline constexpr std::uint64_t kPorts = kIdentityMapBytes;
inline constexpr std::uint64_t kPortSerial = kPorts;    ///< one byte of text
inline constexpr std::uint64_t kPortExit = kPorts + 8;  ///< 32 bits: the guest's exit code

}  // namespace continuo::vmm::witness
