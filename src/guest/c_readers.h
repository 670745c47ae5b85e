/* Every reader, called from C. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct c_readings {
    uint64_t kvmclock_ns, monotonic_ns, sched_ns, tai_ns, earliest_ns, latest_ns;
    int64_t travelled_ns;
    int stopped, vmclock_status, answered, gate_state, valid;
};
struct c_readings read_all_from_c(void* pvclock, const void* vmclock, void* travel);
int gated_realtime_from_c(const void* travel, int64_t* ns);

#ifdef __cplusplus
}
#endif
