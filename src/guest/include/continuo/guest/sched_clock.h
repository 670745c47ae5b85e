/* The scheduler's clock (S4.3): kvmclock less its value at the guest's boot, so that it begins near
 * zero whatever the host's kvmclock stands at. Needs no stable bit: the offset is one number for
 * all CPUs, chosen once. C11 and C++20, freestanding. */
#pragma once

#include <stdint.h>

struct continuo_sched_clock {
    uint64_t offset_ns; /* kvmclock at the guest's boot; never changed after */
};

/* The clock that stands at zero when kvmclock stands at `kvmclock_ns`. */
static inline struct continuo_sched_clock continuo_sched_clock_from(uint64_t kvmclock_ns) {
    const struct continuo_sched_clock clock = {kvmclock_ns};
    return clock;
}

/* ns since boot. Another CPU's kvmclock may stand a little before the offset, where the host cannot
 * keep them together: unsigned, that would be 584 years. It reads as zero. */
static inline uint64_t continuo_sched_clock_ns(struct continuo_sched_clock clock,
                                               uint64_t kvmclock_ns) {
    return kvmclock_ns < clock.offset_ns ? 0u : kvmclock_ns - clock.offset_ns;
}
