// Numbers and places of the wire format, for the codec, its tests and its fuzzer. The page that
// explains them is docs/formats/record.md. Private to state/.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace continuo::state::wire {

/// "CONTINUO".
inline constexpr std::array<std::uint8_t, 8> kMagic{0x43, 0x4f, 0x4e, 0x54, 0x49, 0x4e, 0x55, 0x4f};
inline constexpr std::size_t kVersionAt = 8;    ///< u16
inline constexpr std::size_t kReservedAt = 10;  ///< u16, zero
inline constexpr std::size_t kLengthAt = 12;    ///< u32, of the whole blob
inline constexpr std::size_t kHeaderBytes = 16;
inline constexpr std::size_t kHashBytes = 8;  ///< XXH3-64, seed 0, over all bytes before it

inline constexpr std::size_t kFieldHeaderBytes = 4;  ///< u16 type, u16 length
/// In a field's type: a reader that does not know the field must refuse the record.
inline constexpr std::uint16_t kMandatory = 0x8000;

/// Field types with their mandatory bit. Fields stand in ascending order of type & 0x7fff.
enum class Field : std::uint16_t {
    kArchitecture = kMandatory | 1,
    kBootId = 2,
    kKernel = 3,
    kAnchor = kMandatory | 4,
    kNoticeSequence = kMandatory | 5,
    kKvmclock = kMandatory | 6,
    kVcpu = kMandatory | 7,  ///< once for each vCPU
    // 8 is no field: golden blobs have it as one that no reader knows.
    kRateBound = 9,
    kSuspended = 10,
};
inline constexpr std::size_t kFieldNumberMax = 10;

inline constexpr std::uint16_t number(Field field) {
    return static_cast<std::uint16_t>(static_cast<std::uint16_t>(field) & ~kMandatory);
}

/// What a payload of a field may be like.
struct FieldRule {
    Field field;
    std::uint16_t length_min;
    std::uint16_t length_max;
    bool repeats;
    bool required;
    std::string_view name;
};
inline constexpr std::array kFieldRules{
    FieldRule{Field::kArchitecture, 4, 4, false, true, "architecture"},
    FieldRule{Field::kBootId, 16, 16, false, false, "boot_id"},
    FieldRule{Field::kKernel, 1, 255, false, false, "kernel"},
    FieldRule{Field::kAnchor, 40, 40, false, true, "anchor"},
    FieldRule{Field::kNoticeSequence, 8, 8, false, true, "notice_sequence"},
    FieldRule{Field::kKvmclock, 40, 40, false, false, "kvmclock"},
    FieldRule{Field::kVcpu, 56, 56, true, true, "vcpu"},
    FieldRule{Field::kRateBound, 4, 4, false, false, "rate_bound"},
    FieldRule{Field::kSuspended, 8, 8, false, false, "suspended"},
};
inline constexpr std::size_t kVcpuFieldBytes = kFieldHeaderBytes + 56;

/// The hash that belongs at the end of these bytes.
std::uint64_t hash_of(std::span<const std::byte> bytes_before_hash);

/// Writes the length and the hash that belong into a blob of at least kHeaderBytes + kHashBytes.
void seal(std::vector<std::byte>& blob);

}  // namespace continuo::state::wire
