/* Reads kvmclock from a vCPU's pvclock page (S3.5): consistently, and monotonic across vCPUs where
 * the host does not promise it. Layout and arithmetic: abi/pvclock.h, time/pvclock_scale.h. C11 and
 * C++20, freestanding.
 *
 * The page must be that of the CPU that reads, and the reader must not be moved between the CPU's
 * number and the read; or every page must carry CONTINUO_PVCLOCK_TSC_STABLE, and any will do. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "continuo/guest/counter.h"
#include "continuo/guest/page_access.h"

struct __attribute__((may_alias)) continuo_pvclock_page {
    uint32_t version; /* odd while the host writes */
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad[2];
};
CONTINUO_STATIC_ASSERT(sizeof(struct continuo_pvclock_page) == 32, "the ABI's layout");
CONTINUO_STATIC_ASSERT(offsetof(struct continuo_pvclock_page, flags) == 29, "the ABI's layout");

#define CONTINUO_PVCLOCK_TSC_STABLE 1u    /* all vCPUs' pages are one line */
#define CONTINUO_PVCLOCK_GUEST_STOPPED 2u /* the host stopped the guest; the guest clears it */

/* One consistent reading. */
struct continuo_pvclock_reading {
    uint64_t counter; /* the TSC that ns belongs to */
    uint64_t ns;      /* kvmclock, modulo 2^64 */
    uint8_t flags;
};

/* The highest kvmclock that any CPU has returned; one for the guest, alone on its cache line. */
struct continuo_pvclock_last {
    uint64_t ns;
    uint8_t pad[56];
};

/* ns of `ticks` by a page's scale, rounded down twice, as the ABI has it. A shift outside -63..31,
 * which no host publishes, is taken modulo 64. The product's bits from 32 upwards are the high half
 * of a product with a multiplier 2^32 times as large, which costs no shift after it. */
static inline uint64_t continuo_pvclock_scale(uint64_t ticks, uint32_t mul, int8_t shift) {
    const uint64_t shifted =
        shift < 0 ? ticks >> ((unsigned)-shift & 63u) : ticks << ((unsigned)shift & 63u);
    return (uint64_t)(((continuo_u128)shifted * ((uint64_t)mul << 32)) >> 64);
}

/* The same for ticks before tsc_timestamp: rounded up at each stage, so that the line goes on
 * downwards where the ABI's unsigned difference is nonsense. A TSC can lie before the timestamp
 * where TSCs are not synchronised. Out of the way of the common path. */
static __attribute__((noinline, unused)) uint64_t continuo_pvclock_scale_up(uint64_t ticks,
                                                                            uint32_t mul,
                                                                            int8_t shift) {
    const unsigned right = shift < 0 ? (unsigned)-shift & 63u : 0u;
    const uint64_t lost = ((uint64_t)1 << right) - 1u;
    const continuo_u128 shifted = shift < 0
                                      ? (continuo_u128)(ticks >> right) + ((ticks & lost) != 0u)
                                      : (continuo_u128)ticks << ((unsigned)shift & 63u);
    const continuo_u128 product = shifted * mul;
    return (uint64_t)(product >> 32) + ((product & 0xffffffffu) != 0u);
}

/* What a page says: a line from the TSC to kvmclock. */
struct continuo_pvclock_line {
    uint64_t tsc_timestamp;
    uint64_t system_time;
    uint32_t mul;
    int8_t shift;
    uint8_t flags;
};

static inline struct continuo_pvclock_line continuo_pvclock_load(
    const struct continuo_pvclock_page* page) {
    struct continuo_pvclock_line line;
    line.tsc_timestamp = CONTINUO_LOAD(page->tsc_timestamp);
    line.system_time = CONTINUO_LOAD(page->system_time);
    line.mul = CONTINUO_LOAD(page->tsc_to_system_mul);
    line.shift = CONTINUO_LOAD(page->tsc_shift);
    line.flags = CONTINUO_LOAD(page->flags);
    return line;
}

/* kvmclock at a TSC value, modulo 2^64 ns. */
static inline uint64_t continuo_pvclock_at(const struct continuo_pvclock_line* line,
                                           uint64_t counter) {
    const uint64_t ticks = counter - line->tsc_timestamp;
    if (__builtin_expect((int64_t)ticks >= 0, 1))
        return line->system_time + continuo_pvclock_scale(ticks, line->mul, line->shift);
    return line->system_time - continuo_pvclock_scale_up(0u - ticks, line->mul, line->shift);
}

/* Begins to read a page: its version, odd while the host writes. */
static inline uint32_t continuo_pvclock_begin(const struct continuo_pvclock_page* page) {
    return CONTINUO_LOAD_ACQUIRE(page->version);
}
/* Whether all that was read of the page since continuo_pvclock_begin() is of one state of it. */
static inline int continuo_pvclock_whole(const struct continuo_pvclock_page* page,
                                         uint32_t version) {
    continuo_load_fence();
    return (version & 1u) == 0u && version == CONTINUO_LOAD(page->version);
}

/* One attempt: 0 where the host was writing, and *reading is then meaningless. */
static inline int continuo_pvclock_try_read(const struct continuo_pvclock_page* page,
                                            struct continuo_pvclock_reading* reading) {
    const uint32_t version = continuo_pvclock_begin(page);
    const struct continuo_pvclock_line line = continuo_pvclock_load(page);
    reading->flags = line.flags;
    reading->counter = CONTINUO_READ_COUNTER();
    reading->ns = continuo_pvclock_at(&line, reading->counter);
    return continuo_pvclock_whole(page, version);
}

/* A consistent reading; waits while the host writes, which it does while this vCPU is out: one
 * round more is all that was ever seen. Monotonic on one CPU, and across CPUs where the reading's
 * flags have CONTINUO_PVCLOCK_TSC_STABLE. */
static inline struct continuo_pvclock_reading continuo_pvclock_read(
    const struct continuo_pvclock_page* page) {
    struct continuo_pvclock_reading reading;
    while (__builtin_expect(!continuo_pvclock_try_read(page, &reading), 0))
        continuo_relax();
    return reading;
}

/* `ns`, or what another CPU has returned already where that is later: no CPU then reads less than
 * any has read before. Source: pvclock_clocksource_read() of Linux. */
static inline uint64_t continuo_pvclock_not_before(struct continuo_pvclock_last* last,
                                                   uint64_t ns) {
    uint64_t seen = CONTINUO_LOAD(last->ns);
    do {
        if (ns <= seen) return seen;
    } while (!CONTINUO_COMPARE_EXCHANGE(last->ns, seen, ns));
    return ns;
}

/* kvmclock in ns, monotonic across all CPUs of the guest: for nothing where the page is stable, by
 * one compare-and-exchange where it is not. A guest whose CPUs see the stable bit come and go stays
 * monotonic only if the bit, once lost, is not believed again while `last` may be ahead: the host
 * gives it back with a kvmclock that is past everything it published before. */
static inline uint64_t continuo_pvclock_ns(const struct continuo_pvclock_page* page,
                                           struct continuo_pvclock_last* last) {
    const struct continuo_pvclock_reading reading = continuo_pvclock_read(page);
    if (__builtin_expect((reading.flags & CONTINUO_PVCLOCK_TSC_STABLE) != 0u, 1)) return reading.ns;
    return continuo_pvclock_not_before(last, reading.ns);
}

/* Whether the host has stopped the guest since the last call (S1.1); clears the flag. For the CPU
 * whose page it is: watchdogs are to be touched then. The host may set the flag only while this
 * vCPU is out, so that nothing is lost between. */
static inline int continuo_pvclock_take_stopped(struct continuo_pvclock_page* page) {
    if (__builtin_expect((CONTINUO_LOAD(page->flags) & CONTINUO_PVCLOCK_GUEST_STOPPED) == 0u, 1))
        return 0;
    CONTINUO_PAGE_HOOK();
    const uint8_t before = __atomic_fetch_and(
        &page->flags, (uint8_t)(0xffu & ~CONTINUO_PVCLOCK_GUEST_STOPPED), __ATOMIC_ACQ_REL);
    return (before & CONTINUO_PVCLOCK_GUEST_STOPPED) != 0u;
}
