// The wire format of a record, version 1: docs/formats/record.md byte by byte. A blob holds
// tagged fields between a header and a hash; a field that this build does not know is skipped where
// its writer called it optional and refused where it called it mandatory, so any release reads what
// any older one wrote, and reads a newer one or says exactly what it lacks. Framing on a socket and
// files are not here: a blob states its own length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "continuo/state/error.h"
#include "continuo/state/record.h"

namespace continuo::state {

/// The version that encode() writes, and the newest that decode() reads.
inline constexpr std::uint16_t kRecordVersion = 1;
/// Largest blob that decode() looks at. 4096 vCPUs need 246 179 bytes at most; the rest is room for
/// optional fields to come.
inline constexpr std::size_t kRecordBytesMax = std::size_t{1} << 20;
/// Shortest blob: a header and a hash.
inline constexpr std::size_t kRecordBytesMin = 24;
/// Longest HostIdentity::kernel, in bytes of UTF-8.
inline constexpr std::size_t kKernelBytesMax = 255;
/// Lowest and highest frequency of any counter: 1 kHz, and what KVM's 32 bits of kHz can state.
inline constexpr std::uint64_t kFrequencyMinHz = 1'000;
inline constexpr std::uint64_t kFrequencyMaxHz = 4'294'967'295'999;
/// Largest Anchor::rate_bound_ppb: half the rate. Linux's own limit is 10 % (ADJ_TICK) and 500 ppm.
inline constexpr std::uint32_t kRateBoundPpbMax = 500'000'000;

/// What must hold of any record, whoever made it: 1 to kVcpusMax vCPUs; frequencies from
/// kFrequencyMinHz to kFrequencyMaxHz, the host's known to kRateBoundPpbMax; a kernel string of at
/// most kKernelBytesMax bytes of UTF-8 without control characters; a pvclock multiplier that is not
/// zero; a kvmclock line from vCPU 0's page only where vCPU 0 has one; on arm64 no kvmclock, no
/// IA32_TSC_ADJUST, no kvmclock MSR and no GUEST_STOPPED. Fails with kMalformed (kTooLarge for a
/// count or a length) and the JSON pointer of the culprit. capture() ends with it; decode() and
/// record_from_json() check the same.
Status check(const Record& record);

/// The record as bytes, deterministic: equal records give equal bytes. One allocation.
/// Domain: check(record) holds; anything else is our own bug and aborts.
std::vector<std::byte> encode(const Record& record);

/// The record in `bytes`, which hold it and nothing else. Trusts nothing: fails with kTruncated,
/// kTooLarge, kIntegrity, kVersion or kMalformed, and `where` names the byte offset and the field.
/// Allocates in proportion to the bytes that are there, never to a number that they state.
/// encode() of the result gives the same bytes
/// for everything that encode() of this release made.
Result<Record> decode(std::span<const std::byte> bytes);

}  // namespace continuo::state
