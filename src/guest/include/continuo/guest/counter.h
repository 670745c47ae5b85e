/* The guest's counter: RDTSC, or CNTVCT_EL0. A test defines CONTINUO_READ_COUNTER to be one. */
#pragma once

#include <stdint.h>

#if defined(__x86_64__)

#define CONTINUO_COUNTER_ID 1 /* VMCLOCK_COUNTER_X86_TSC */

/* The TSC, after all earlier loads. What stands after it may begin before it, as in Linux's
 * rdtsc_ordered(): a page can then change unseen between its last check and the counter, which is
 * harmless. A page that changes because of a migration changes while this vCPU is out, and leaving
 * a guest waits for all of it; a page that is merely disciplined is off by the time of that race.
 */
static inline uint64_t continuo_counter(void) {
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
    return ((uint64_t)high << 32) | low;
}

/* For loops that wait for somebody else. */
static inline void continuo_relax(void) {
    __asm__ volatile("pause" ::: "memory");
}

#elif defined(__aarch64__)

#define CONTINUO_COUNTER_ID 0 /* VMCLOCK_COUNTER_ARM_VCNT */

/* CNTVCT_EL0, after all earlier instructions. */
static inline uint64_t continuo_counter(void) {
    uint64_t counter;
    __asm__ volatile("isb; mrs %0, cntvct_el0" : "=r"(counter)::"memory");
    return counter;
}

static inline void continuo_relax(void) {
    __asm__ volatile("yield" ::: "memory");
}

#else
#error "Continuo's guests are x86-64 and arm64"
#endif

#ifndef CONTINUO_READ_COUNTER
#define CONTINUO_READ_COUNTER() continuo_counter()
#endif
