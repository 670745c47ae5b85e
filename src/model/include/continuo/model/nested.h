// Two levels of guests on one processor: while a vCPU is in L2, KVM gives the processor one
// multiplier and one offset for both lines, and rounds where one line after the other would not.
// Source: kvm_calc_nested_tsc_multiplier() and kvm_calc_nested_tsc_offset() in arch/x86/kvm/x86.c;
// seen on a processor: docs/kernel-facts.md, Scaling.
#pragma once

#include <cstdint>

#include "continuo/time/tsc_scale.h"

namespace continuo::model {

/// The map from L0's counter to L2's that the processor has in force: ratio (r1 * r2) >> frac,
/// offset o1 * r2 / 2^frac, rounded towards zero as a signed number, plus o2. l1: from L0's counter
/// to L1's; l2: from L1's to L2's. Domain: maps that scale have frac_bits equal to the processor's,
/// `frac_bits`; the product of the ratios, shifted, fits 64 bits (what hardware takes does).
///
/// Example, 48 bits: both ratios 1/2, o1 = -7, o2 = 100: ratio 1/4, offset -3 + 100 = 97. At host
/// counter 29 it is 29/4 + 97 = 104; one after the other, 29/2 - 7 is 7, and 7/2 + 100 is 103.
time::TscMap combined_map(const time::TscMap& l1, const time::TscMap& l2, int frac_bits);

/// One line after the other, each floored as the processor's would: what L1 believes of L2.
time::Count<time::GuestCounter> chained(const time::TscMap& l1, const time::TscMap& l2,
                                        time::Count<time::HostCounter> host);

/// The combined map is at most this many ticks away from chained(), either way: two floors, what l2
/// makes of the fraction that L1's counter lacks, and a multiplier that lacks less than 2^-frac of
/// each of the host's ticks. Domain: L1's counter is below 2^63; beyond, chained() takes for a
/// large number what the processor takes for a negative one.
constexpr std::uint64_t combined_bound_ticks(const time::TscMap& l2,
                                             time::Count<time::HostCounter> host) {
    return 2 + l2.ceil_ticks(1) + (l2.scales() ? host.raw() >> l2.frac_bits() : 0);
}

}  // namespace continuo::model
