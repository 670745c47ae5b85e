// Which life of a VM this is: two VMs that are made of one snapshot must be able to tell that they
// are two, or they use the same random numbers and names.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace continuo::vmm {

/// Random, 128 bits, another for each restore; never all zero.
struct Generation {
    std::array<std::uint8_t, 16> id{};

    /// What a guest sees that has room for 64 bits (vmclock's vm_generation_counter): the first
    /// eight bytes, little-endian. Not 0.
    std::uint64_t counter() const;
    friend bool operator==(const Generation&, const Generation&) = default;
};
Generation new_generation();

/// 32 hexadecimal digits.
std::string text_of(const std::array<std::uint8_t, 16>& id);

}  // namespace continuo::vmm
