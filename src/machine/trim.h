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

/// kvmclock as the kernel has it now less the target at that instant. Where the kernel gives no
/// host counter the instant is the middle of the call's bracket.
Result<time::Nanos<Kvmclock>> kvmclock_seam(Machine& machine, const KvmclockTarget& target);

/// Set, read back, correct, until the seam is within options.trim_target_ns or the rounds are used
/// up.
Result<state::TrimReport> trim_kvmclock(Machine& machine, const KvmclockTarget& target,
                                        const ApplyOptions& options);

}  // namespace continuo::machine
