/* Reads CLOCK_MONOTONIC without pause on every CPU of a guest, all threads one after the other in one order, and
 * counts every step back, within a thread and across them. For a line on stdin it prints what it has seen so far:
 *
 *     clocks: loops L backward B forward_ns F monotonic_ns M
 *
 * F is the largest step from one reading of a thread to its next. Nothing is read from the kernel between readings:
 * clock_gettime goes through the vDSO. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static _Atomic uint64_t latest;
static _Atomic uint64_t loops, backward, forward;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void raise_to(_Atomic uint64_t *most, uint64_t value) {
    uint64_t had = atomic_load(most);
    while (had < value && !atomic_compare_exchange_weak(most, &had, value)) {
    }
}

static void *watch(void *cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)(uintptr_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(1);
    }
    uint64_t own = now();
    for (;;) {
        /* What another thread has read before this reading begins, this reading may not be below. */
        const uint64_t before = atomic_load(&latest);
        const uint64_t value = now();
        if (value < before || value < own) atomic_fetch_add(&backward, 1);
        if (value > own) raise_to(&forward, value - own);
        own = value;
        raise_to(&latest, value);
        atomic_fetch_add(&loops, 1);
    }
    return NULL;
}

int main(void) {
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (long cpu = 0; cpu < cpus; ++cpu) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, watch, (void *)(uintptr_t)cpu) != 0) return 1;
    }
    char line[64];
    while (fgets(line, sizeof line, stdin) != NULL) {
        printf("clocks: loops %llu backward %llu forward_ns %llu monotonic_ns %llu\n",
               (unsigned long long)atomic_load(&loops), (unsigned long long)atomic_load(&backward),
               (unsigned long long)atomic_load(&forward), (unsigned long long)now());
        fflush(stdout);
    }
    return 0;
}
