// What the witness's payload and its host share on x86-64 beside witness_abi.h: descriptor and page
// tables, ports, interrupt vectors. Fixed-width integers alone, for the payload.
#pragma once

#include "continuo/vmm/witness_abi.h"

namespace continuo::vmm::witness {

inline constexpr std::uint64_t kGdt = kTables;  ///< null, code, data, user data, user code, TSS
inline constexpr std::uint64_t kIdt = 0x2000;   ///< 256 gates, built by the host
inline constexpr std::uint64_t kPml4 = 0x3000;  ///< identity map of the first GiB
inline constexpr std::uint64_t kPdpt = 0x4000;
inline constexpr std::uint64_t kPageDirectory = 0x5000;
inline constexpr std::uint64_t kTaskStates = 0x6000;  ///< one TSS a vCPU, stride 128, two pages
inline constexpr std::uint64_t kTaskStateStride = 128;

inline constexpr std::uint16_t kPortSerial = 0x3f8;  ///< one byte of text
inline constexpr std::uint16_t kPortExit = 0xf4;     ///< 32 bits: the guest's exit code
inline constexpr std::uint8_t kTimerVector = 0x40;
inline constexpr std::uint8_t kSpuriousVector = 0xff;

/// The first bytes of this architecture's payload. At `head.entry` RDI = report, RSI = control.
struct GateHeader {
    ImageHeader head;
    std::uint64_t timer_gate;
    std::uint64_t spurious_gate;
    std::uint64_t fault_gates;  ///< 32 entries of kFaultGateStride bytes
};
inline constexpr std::uint64_t kFaultGateStride = 16;
static_assert(offsetof(GateHeader, timer_gate) == 24 && offsetof(GateHeader, fault_gates) == 40 &&
              sizeof(GateHeader) == 48);

}  // namespace continuo::vmm::witness
