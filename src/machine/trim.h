// The closed loop that brings kvmclock onto its line. Internal to machine/.
#pragma once

#include <optional>

#include "continuo/machine/migration.h"

namespace continuo::machine {

/// Where kvmclock must be at a host counter value: the prescribed page line after vCPU 0's realised
/// map.
struct KvmclockTarget {
    PvclockLine line;
    TscMap map;
    Instant<Kvmclock> at(Count<HostCounter> host) const { return line.at(map.at(host)); }
};

/// kvmclock as the guest has it less the target, now. Of a guest that is not scaled KVM_GET_CLOCK
/// tells it, at one instant, or where the kernel gives no host counter at the middle of the call's
/// bracket. A scaled guest has a line of its own: its page counts its ticks at a frequency in whole
/// kHz, KVM_GET_CLOCK the host's, and with the time since the last sample of the masterclock the
/// two part (285 ppb at +1000 ppm). What such a guest reads is the page of vCPU 0, where that is
/// believable. Precondition: twice settled since the last write, where the guest is scaled.
Result<time::Nanos<Kvmclock>> kvmclock_seam(Machine& machine, const KvmclockTarget& target);

/// Set, read back, correct, until the seam is within options.trim_target_ns or the rounds are used
/// up. Each round reads KVM_GET_CLOCK, at once after the set, when the two lines are still one.
Result<state::TrimReport> trim_kvmclock(Machine& machine, const KvmclockTarget& target,
                                        const ApplyOptions& options);

}  // namespace continuo::machine
