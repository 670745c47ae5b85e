/* clock_gettime(CLOCK_REALTIME) of a user-mode program, through the gate: never a value from before
 * a migration after it (S1.3), as a vDSO that knows of the notice page would have it. Needs libc
 * and a mapping of the page, which may be read-only. C11 and C++20. */
#pragma once

#include <sched.h>
#include <time.h>

#include "continuo/guest/time_travel_page.h"

/* 0, or -1 with errno as clock_gettime(). *state is CONTINUO_GATE_OPEN, or CONTINUO_GATE_RELEASED
 * where nobody has repaired REALTIME in the host's time. Gives the CPU away while it waits, so that
 * the agent gets it. */
static inline int continuo_gated_realtime(const struct continuo_time_travel_page* page,
                                          struct timespec* now, enum continuo_gate_state* state) {
    struct continuo_gate gate;
    do {
        while ((gate = continuo_gate_look(page)).state == CONTINUO_GATE_HELD)
            sched_yield();
        if (clock_gettime(CLOCK_REALTIME, now) != 0) return -1;
    } while (continuo_gate_retry(page, gate));
    *state = gate.state;
    return 0;
}
