// The kernel's way of turning one rate into another with one 32-bit multiplication
// (kvm_get_time_scale() in arch/x86/kvm/x86.c), both ways round: PvclockScale::from_hz() is the
// half of it that makes pages.
#pragma once

#include <cstdint>

#include "continuo/time/pvclock_scale.h"

namespace continuo::model {

/// mul and shift so that wrap_ns() of a number of base_hz's ticks is that of scaled_hz's: slow by
/// less than 2^-31 of itself, by less than 2^-30 where scaled_hz is above 2^32 and loses bits; fast
/// by less than 1 / scaled_hz where base_hz is above twice of it, and loses bits. Domain: neither
/// is 0 or above 2^32 * 1000.
///
/// Example: 3 GHz from ns: mul 3/4 * 2^32, shift 2.
constexpr time::PvclockScale time_scale(std::uint64_t scaled_hz, std::uint64_t base_hz) {
    int shift = 0;
    while (base_hz > 2 * scaled_hz || (base_hz >> 32) != 0) {
        base_hz >>= 1;
        --shift;
    }
    while (base_hz <= scaled_hz || (scaled_hz >> 32) != 0) {
        if ((scaled_hz >> 32) != 0 || base_hz >= (std::uint64_t{1} << 31))
            scaled_hz >>= 1;
        else
            base_hz <<= 1;
        ++shift;
    }
    return *time::PvclockScale::make(static_cast<std::uint32_t>((scaled_hz << 32) / base_hz),
                                     shift);
}

}  // namespace continuo::model
