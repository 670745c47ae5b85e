/* Reads TAI, and how far it may be wrong, from a vmclock page. Layout: abi/vmclock.h. C11 and
 * C++20, freestanding. Only pages that publish TAI are read: the sign of tai_offset_sec is
 * disputed, so that TAI cannot be had from UTC without guessing. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "continuo/guest/counter.h"
#include "continuo/guest/page_access.h"

struct __attribute__((may_alias)) continuo_vmclock_page {
    uint32_t magic; /* "VCLK" */
    uint32_t size;
    uint16_t version;
    uint8_t counter_id;
    uint8_t time_type;
    uint32_t seq_count; /* odd while the host writes */
    uint64_t disruption_marker;
    uint64_t flags;
    uint8_t pad[2];
    uint8_t clock_status;
    uint8_t leap_second_smearing_hint;
    int16_t tai_offset_sec;
    uint8_t leap_indicator;
    uint8_t counter_period_shift;
    uint64_t counter_value;
    uint64_t counter_period_frac_sec;               /* unit 2^-(64 + counter_period_shift) s */
    uint64_t counter_period_esterror_rate_frac_sec; /* same unit */
    uint64_t counter_period_maxerror_rate_frac_sec; /* same unit */
    uint64_t time_sec;
    uint64_t time_frac_sec; /* unit 2^-64 s */
    uint64_t time_esterror_nanosec;
    uint64_t time_maxerror_nanosec;
    uint64_t vm_generation_counter;
};
CONTINUO_STATIC_ASSERT(sizeof(struct continuo_vmclock_page) == 112, "the ABI's layout");
CONTINUO_STATIC_ASSERT(offsetof(struct continuo_vmclock_page, counter_value) == 40, "ditto");

#define CONTINUO_VMCLOCK_MAGIC 0x4b4c4356u
#define CONTINUO_VMCLOCK_TAI 1u
#define CONTINUO_VMCLOCK_UNRELIABLE 4u
#define CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID (1u << 4)
#define CONTINUO_VMCLOCK_TIME_MAXERROR_VALID (1u << 6)
#define CONTINUO_VMCLOCK_GENERATION_PRESENT (1u << 8)

enum continuo_vmclock_status {
    CONTINUO_VMCLOCK_OK = 0,
    CONTINUO_VMCLOCK_BUSY,       /* the host was writing: try again */
    CONTINUO_VMCLOCK_NO_PAGE,    /* magic, version or size are not a vmclock's */
    CONTINUO_VMCLOCK_NO_COUNTER, /* the page is about a counter that this CPU does not have */
    CONTINUO_VMCLOCK_NOT_TAI,    /* it publishes another timeline, or a smeared one */
    CONTINUO_VMCLOCK_UNKNOWN /* the host says that it does not know the time, or it is past 2554 */
};

/* One consistent reading. The true TAI lies in [earliest_ns, latest_ns], ns since 1970-01-01 TAI,
 * where `bounded`; else the host gives no bound, and both are tai_ns. */
struct continuo_vmclock_reading {
    uint64_t counter;
    uint64_t tai_ns; /* rounded down */
    uint64_t earliest_ns;
    uint64_t latest_ns;
    uint64_t disruption_marker; /* changed: the guest was migrated or restored since */
    uint64_t generation;        /* changed: it was restored from a snapshot; 0 where not told */
    int bounded;
};

/* The words of the page that a reading is made of. */
struct continuo_vmclock_words {
    uint64_t disruption_marker, flags, counter_value, period, period_maxerror;
    uint64_t seconds, fraction, maxerror_ns, generation;
    uint32_t magic, size;
    uint16_t version;
    uint8_t counter_id, time_type, clock_status, shift;
};

static inline struct continuo_vmclock_words continuo_vmclock_load(
    const struct continuo_vmclock_page* page) {
    struct continuo_vmclock_words words;
    words.magic = CONTINUO_LOAD(page->magic);
    words.size = CONTINUO_LOAD(page->size);
    words.version = CONTINUO_LOAD(page->version);
    words.counter_id = CONTINUO_LOAD(page->counter_id);
    words.time_type = CONTINUO_LOAD(page->time_type);
    words.clock_status = CONTINUO_LOAD(page->clock_status);
    words.shift = CONTINUO_LOAD(page->counter_period_shift);
    words.disruption_marker = CONTINUO_LOAD(page->disruption_marker);
    words.flags = CONTINUO_LOAD(page->flags);
    words.counter_value = CONTINUO_LOAD(page->counter_value);
    words.period = CONTINUO_LOAD(page->counter_period_frac_sec);
    words.period_maxerror = CONTINUO_LOAD(page->counter_period_maxerror_rate_frac_sec);
    words.seconds = CONTINUO_LOAD(page->time_sec);
    words.fraction = CONTINUO_LOAD(page->time_frac_sec);
    words.maxerror_ns = CONTINUO_LOAD(page->time_maxerror_nanosec);
    words.generation = 0;
    if (words.size >= sizeof(struct continuo_vmclock_page) &&
        (words.flags & CONTINUO_VMCLOCK_GENERATION_PRESENT) != 0u)
        words.generation = CONTINUO_LOAD(page->vm_generation_counter);
    return words;
}

static inline enum continuo_vmclock_status continuo_vmclock_judge(
    const struct continuo_vmclock_words* words) {
    if (words->magic != CONTINUO_VMCLOCK_MAGIC || words->version != 1u ||
        words->size < offsetof(struct continuo_vmclock_page, vm_generation_counter))
        return CONTINUO_VMCLOCK_NO_PAGE;
    if (words->counter_id != CONTINUO_COUNTER_ID) return CONTINUO_VMCLOCK_NO_COUNTER;
    if (words->time_type != CONTINUO_VMCLOCK_TAI) return CONTINUO_VMCLOCK_NOT_TAI;
    if (words->clock_status == CONTINUO_VMCLOCK_UNRELIABLE) return CONTINUO_VMCLOCK_UNKNOWN;
    return CONTINUO_VMCLOCK_OK;
}

/* ticks * rate in units of 2^-64 s, rounded down; at most 2^127, because ticks is below 2^63. */
static inline continuo_u128 continuo_vmclock_scale(uint64_t ticks, uint64_t rate, uint8_t shift) {
    return shift < 128u ? ((continuo_u128)ticks * rate) >> shift : 0u;
}

static inline uint64_t continuo_saturating_add(uint64_t a, uint64_t b) {
    return a + b < a ? UINT64_MAX : a + b;
}

/* Units of 2^-64 s as ns, rounded up and saturating. */
static inline uint64_t continuo_vmclock_ceil_ns(continuo_u128 span) {
    const continuo_u128 low = (continuo_u128)(uint64_t)span * 1000000000u;
    const continuo_u128 whole = (span >> 64) * 1000000000u;
    if ((whole >> 64) != 0u) return UINT64_MAX;
    const uint64_t rest = (uint64_t)(low >> 64) + ((uint64_t)low != 0u);
    return continuo_saturating_add((uint64_t)whole, rest);
}

/* The reading that these words and this counter value make. A counter value before counter_value
 * (another CPU has just been told a newer mapping) goes backwards along the line. */
static inline enum continuo_vmclock_status continuo_vmclock_evaluate(
    const struct continuo_vmclock_words* words, uint64_t counter,
    struct continuo_vmclock_reading* reading) {
    const uint64_t difference = counter - words->counter_value;
    const int behind = (int64_t)difference < 0;
    const uint64_t ticks = behind ? 0u - difference : difference;
    const continuo_u128 span = continuo_vmclock_scale(ticks, words->period, words->shift);
    const continuo_u128 base = ((continuo_u128)words->seconds << 64) | words->fraction;
    /* Rounded down on both sides of counter_value. */
    const continuo_u128 time = behind ? base - span - 1u : base + span;
    const continuo_u128 whole = (time >> 64) * 1000000000u;
    if (behind ? span >= base : time < base) return CONTINUO_VMCLOCK_UNKNOWN;
    if (whole > UINT64_MAX - 1000000000u) return CONTINUO_VMCLOCK_UNKNOWN;

    reading->counter = counter;
    reading->tai_ns =
        (uint64_t)whole + (uint64_t)(((continuo_u128)(uint64_t)time * 1000000000u) >> 64);
    reading->earliest_ns = reading->latest_ns = reading->tai_ns;
    reading->disruption_marker = words->disruption_marker;
    reading->generation = words->generation;
    const uint64_t told =
        CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID | CONTINUO_VMCLOCK_TIME_MAXERROR_VALID;
    reading->bounded = (words->flags & told) == told;
    if (!reading->bounded) return CONTINUO_VMCLOCK_OK;

    /* Two of 2^-64 s and one of the ns are the roundings of span, drift and tai_ns. */
    const continuo_u128 drift =
        continuo_vmclock_scale(ticks, words->period_maxerror, words->shift) + 2u;
    const uint64_t radius =
        continuo_saturating_add(words->maxerror_ns, continuo_vmclock_ceil_ns(drift));
    reading->earliest_ns = reading->tai_ns < radius ? 0u : reading->tai_ns - radius;
    reading->latest_ns =
        continuo_saturating_add(reading->tai_ns, continuo_saturating_add(radius, 1u));
    return CONTINUO_VMCLOCK_OK;
}

/* One attempt. */
static inline enum continuo_vmclock_status continuo_vmclock_try_read(
    const struct continuo_vmclock_page* page, struct continuo_vmclock_reading* reading) {
    const uint32_t sequence = CONTINUO_LOAD_ACQUIRE(page->seq_count);
    const struct continuo_vmclock_words words = continuo_vmclock_load(page);
    const uint64_t counter = CONTINUO_READ_COUNTER();
    continuo_load_fence();
    if ((sequence & 1u) != 0u || sequence != CONTINUO_LOAD(page->seq_count))
        return CONTINUO_VMCLOCK_BUSY;
    const enum continuo_vmclock_status status = continuo_vmclock_judge(&words);
    return status == CONTINUO_VMCLOCK_OK ? continuo_vmclock_evaluate(&words, counter, reading)
                                         : status;
}

/* Tries until the host is not writing, at most `attempts` times: CONTINUO_VMCLOCK_BUSY says that it
 * was at it all the time, or died over it. Linux's driver gives up after 100 ms. */
static inline enum continuo_vmclock_status continuo_vmclock_read(
    const struct continuo_vmclock_page* page, uint32_t attempts,
    struct continuo_vmclock_reading* reading) {
    enum continuo_vmclock_status status = CONTINUO_VMCLOCK_BUSY;
    for (; attempts != 0u && status == CONTINUO_VMCLOCK_BUSY; --attempts) {
        status = continuo_vmclock_try_read(page, reading);
        if (status == CONTINUO_VMCLOCK_BUSY) continuo_relax();
    }
    return status;
}
