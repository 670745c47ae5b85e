/* How a guest reads words that its host, or another CPU, writes. C11 and C++20, freestanding: the
 * compiler's atomic built-ins and nothing else, so that ThreadSanitizer understands them. A test
 * defines CONTINUO_PAGE_HOOK to come in before every access. */
#pragma once

#include <stdint.h>

#ifndef CONTINUO_PAGE_HOOK
#define CONTINUO_PAGE_HOOK() ((void)0)
#endif

/* A load that later accesses do not overtake. */
#define CONTINUO_LOAD_ACQUIRE(word) \
    (CONTINUO_PAGE_HOOK(), __atomic_load_n(&(word), __ATOMIC_ACQUIRE))
/* A load of what a sequence number round it guards. */
#define CONTINUO_LOAD(word) (CONTINUO_PAGE_HOOK(), __atomic_load_n(&(word), __ATOMIC_RELAXED))
/* A store that comes after all earlier accesses. */
#define CONTINUO_STORE_RELEASE(word, value) \
    (CONTINUO_PAGE_HOOK(), __atomic_store_n(&(word), (value), __ATOMIC_RELEASE))
/* Moves a word from `expected` (an lvalue, which gets what stands there otherwise) to `desired`. */
#define CONTINUO_COMPARE_EXCHANGE(word, expected, desired)                                 \
    (CONTINUO_PAGE_HOOK(), __atomic_compare_exchange_n(&(word), &(expected), (desired), 0, \
                                                       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))

/* Earlier loads come before later ones. A fence of the compiler's alone on x86-64. */
static inline void continuo_load_fence(void) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

__extension__ typedef unsigned __int128 continuo_u128;

#ifdef __cplusplus
#define CONTINUO_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define CONTINUO_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif
