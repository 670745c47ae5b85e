/* The guest's half of the notice page (S1.2, S1.3): what of a time travel REALTIME does not hold
 * yet, accounting for it, the answer, and the gate through which REALTIME is read. Protocol:
 * docs/formats/time-travel.md; layout: abi/time_travel.h. C11 and C++20, freestanding.
 *
 * In an interrupt handler, or an agent:
 *     struct continuo_travel travel;
 *     while (continuo_travel_pending(page, &travel)) {
 *         <REALTIME += travel.delta_ns>;
 *         continuo_travel_answer(page, &travel);
 *     }
 * In a reader of REALTIME, as with any sequence lock:
 *     do { gate = continuo_gate_enter(page); <read REALTIME>; } while (continuo_gate_retry(page,
 * gate));
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "continuo/guest/counter.h"
#include "continuo/guest/page_access.h"

struct __attribute__((may_alias)) continuo_time_travel_page {
    uint32_t magic; /* "TTRV" */
    uint32_t size;
    uint16_t version;
    uint8_t pad0[6];
    uint64_t migration_sequence; /* odd: REALTIME is not repaired yet */
    uint64_t time_travelled_ns;  /* sum of all delta_REALTIME */
    uint64_t gap_ns;
    uint64_t maxerror_ns;
    uint64_t released_sequence; /* readers do not wait for this one */
    uint64_t release_after_ns;
    uint64_t accounted_ns; /* from here on the guest's: what REALTIME holds of time_travelled_ns */
    uint64_t intent_ns;    /* accounted_ns after the step under way */
    int64_t intent_offset_ns; /* REALTIME - BOOTTIME before it */
    uint64_t pad1[5];
};
CONTINUO_STATIC_ASSERT(sizeof(struct continuo_time_travel_page) == 128, "the format's layout");
CONTINUO_STATIC_ASSERT(offsetof(struct continuo_time_travel_page, accounted_ns) == 64, "ditto");

#define CONTINUO_TIME_TRAVEL_MAGIC 0x56525454u

/* Whether this is a notice page that this code can read. A guest without the device has no page, or
 * one of zeroes or of all ones. */
static inline int continuo_travel_page_valid(const struct continuo_time_travel_page* page) {
    return page && CONTINUO_LOAD_ACQUIRE(page->magic) == CONTINUO_TIME_TRAVEL_MAGIC &&
           CONTINUO_LOAD(page->version) == 1u &&
           CONTINUO_LOAD(page->size) >= sizeof(struct continuo_time_travel_page);
}

/* What is to be done about an open notice. */
struct continuo_travel {
    uint64_t sequence; /* odd: the one that is answered */
    uint64_t total_ns; /* time_travelled_ns: accounted_ns once it is done */
    int64_t delta_ns;  /* to be added to REALTIME; may be 0 */
};

/* Whether a notice is open, and what it asks for. A host raises notices only while no vCPU runs, so
 * total_ns may be newer than sequence but never older: an answer to `sequence` then fails, and what
 * was accounted for stays accounted for. */
static inline int continuo_travel_pending(const struct continuo_time_travel_page* page,
                                          struct continuo_travel* travel) {
    travel->sequence = CONTINUO_LOAD_ACQUIRE(page->migration_sequence);
    if ((travel->sequence & 1u) == 0u) return 0;
    travel->total_ns = CONTINUO_LOAD_ACQUIRE(page->time_travelled_ns);
    travel->delta_ns = (int64_t)(travel->total_ns - CONTINUO_LOAD(page->accounted_ns));
    return 1;
}

/* REALTIME holds travel->total_ns now: notes it, so that nobody adds it twice. */
static inline void continuo_travel_account(struct continuo_time_travel_page* page,
                                           const struct continuo_travel* travel) {
    CONTINUO_STORE_RELEASE(page->accounted_ns, travel->total_ns);
}

/* Notes it and raises the sequence to even by one compare-and-exchange. 0 where the host has raised
 * a newer notice, or somebody else has answered: then ask continuo_travel_pending() again. */
static inline int continuo_travel_answer(struct continuo_time_travel_page* page,
                                         const struct continuo_travel* travel) {
    uint64_t expected = travel->sequence;
    continuo_travel_account(page, travel);
    return CONTINUO_COMPARE_EXCHANGE(page->migration_sequence, expected, travel->sequence + 1u);
}

enum continuo_gate_state {
    CONTINUO_GATE_OPEN = 0, /* REALTIME is right */
    CONTINUO_GATE_HELD,     /* it lags: wait */
    CONTINUO_GATE_RELEASED  /* it lags, or nobody said that it does not, and the host waits no more
                             */
};
struct continuo_gate {
    uint64_t sequence;
    enum continuo_gate_state state;
};

/* One look, without waiting. NULL, or a page that is none: open, because nobody would ever tell. */
static inline struct continuo_gate continuo_gate_look(
    const struct continuo_time_travel_page* page) {
    struct continuo_gate gate = {0u, CONTINUO_GATE_OPEN};
    if (!page) return gate;
    gate.sequence = CONTINUO_LOAD_ACQUIRE(page->migration_sequence);
    if (__builtin_expect((gate.sequence & 1u) == 0u, 1)) return gate;
    const int released = CONTINUO_LOAD_ACQUIRE(page->released_sequence) == gate.sequence;
    gate.state = released ? CONTINUO_GATE_RELEASED : CONTINUO_GATE_HELD;
    return gate;
}

/* Waits until REALTIME may be read: until somebody answers or the host releases, which it does
 * release_after_ns after the guest runs again. Not for the code that repairs REALTIME, nor where
 * that code cannot run meanwhile (interrupts off on the CPU that would handle it): there it would
 * wait for the release. */
static inline struct continuo_gate continuo_gate_enter(
    const struct continuo_time_travel_page* page) {
    struct continuo_gate gate = continuo_gate_look(page);
    while (__builtin_expect(gate.state == CONTINUO_GATE_HELD, 0)) {
        continuo_relax();
        gate = continuo_gate_look(page);
    }
    return gate;
}

/* Whether what was read since continuo_gate_enter() or _look() must be read again: a migration or
 * its repair came between. */
static inline int continuo_gate_retry(const struct continuo_time_travel_page* page,
                                      struct continuo_gate gate) {
    if (!page) return 0;
    continuo_load_fence();
    return CONTINUO_LOAD(page->migration_sequence) != gate.sequence;
}
