// The host's counter, read on this CPU. The build picks the architecture's file.
#pragma once

#include "continuo/time/point.h"

namespace continuo::kvm {

/// The host counter now (x86-64: RDTSC), ordered after every earlier load and before every later
/// one of this thread. Domain: a host whose counters are synchronous across CPUs.
time::Count<time::HostCounter> host_counter();

}  // namespace continuo::kvm
