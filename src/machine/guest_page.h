// The page that the guest computes kvmclock from, and whether to believe it. Internal to machine/.
#pragma once

#include <optional>

#include "continuo/machine/machine.h"

namespace continuo::machine {

/// What KVM computes the pvclock scale of a vCPU from: the frequency that its multiplier makes of
/// the host's, in whole kHz (kvm_guest_time_update()).
Hz effective_frequency(const TscMap& map, const HostFacts& facts);

/// The page of vCPU 0 where it is believable: enabled, undamaged, and no further from the kernel's
/// line than the two can have drifted apart. kernel: a line of the same scale through a reading of
/// KVM_GET_CLOCK. map: of vCPU 0.
std::optional<PvclockLine> believable_page(Machine& machine, const PvclockLine& kernel,
                                           const TscMap& map, Hz effective);

}  // namespace continuo::machine
