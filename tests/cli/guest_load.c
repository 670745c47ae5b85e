/* Keeps every CPU of a guest busy with what a move could break, and checks that it did not:
 *
 *   - all vector registers (YMM where the CPU has AVX, else XMM), MXCSR and the x87 control word hold a pattern over
 *     thousands of loops, in every thread, under signals from interval timers;
 *   - pages are mapped, filled, read back and unmapped, in threads of one process, so that every unmapping interrupts
 *     the other CPUs (TLB shoot-down);
 *   - tokens go round between threads on different CPUs (futexes, context switches), and processes are forked;
 *   - memory that was filled once is read again and again.
 *
 * For a line on stdin it prints what it has done so far:
 *
 *     load: vectors ymm|xmm checks C faults F signals S tokens T forks K wrong W
 *
 * W must be 0. What was wrong first is told as `wrong: ...`. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define VECTORS 16
#define CPUS_MAX 64

static _Atomic uint64_t checks, faults, signals, tokens, forks, wrong;
static int has_avx;
static long cpus;

static void report_wrong(const char *what, uint64_t expected, uint64_t found) {
    if (atomic_fetch_add(&wrong, 1) == 0)
        printf("wrong: %s, 0x%llx instead of 0x%llx\n", what, (unsigned long long)found,
               (unsigned long long)expected);
    fflush(stdout);
}

static uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 29);
}

static void pin(long cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(1);
    }
}

#define EACH_VECTOR(what)                                                                          \
    what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10)       \
        what(11) what(12) what(13) what(14) what(15)
#define LOAD_YMM(n) "vmovdqu " #n "*32(%[from]), %%ymm" #n "\n\t"
#define STORE_YMM(n) "vmovdqu %%ymm" #n ", " #n "*32(%[to])\n\t"
#define LOAD_XMM(n) "movdqu " #n "*32(%[from]), %%xmm" #n "\n\t"
#define STORE_XMM(n) "movdqu %%xmm" #n ", " #n "*32(%[to])\n\t"
#define ALL_XMM                                                                                    \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* The registers are loaded, held while the loop counts down, and stored. */
static void hold_ymm(const uint64_t *from, uint64_t *to, uint64_t loops) {
    __asm__ volatile(EACH_VECTOR(LOAD_YMM) "1: dec %[loops]\n\t"
                                           "jnz 1b\n\t" EACH_VECTOR(STORE_YMM) "vzeroupper\n\t"
                     : [loops] "+r"(loops)
                     : [from] "r"(from), [to] "r"(to)
                     : ALL_XMM, "memory", "cc");
}

static void hold_xmm(const uint64_t *from, uint64_t *to, uint64_t loops) {
    __asm__ volatile(EACH_VECTOR(LOAD_XMM) "1: dec %[loops]\n\t"
                                           "jnz 1b\n\t" EACH_VECTOR(STORE_XMM)
                     : [loops] "+r"(loops)
                     : [from] "r"(from), [to] "r"(to)
                     : ALL_XMM, "memory", "cc");
}

static void *hold_vectors(void *cpu) {
    pin((long)(intptr_t)cpu);
    const uint32_t mxcsr = 0x1f80u | 0x6000u; /* round towards zero */
    const uint16_t control = 0x0f7f;          /* the same, in extended precision */
    __asm__ volatile("ldmxcsr %0\n\tfldcw %1" ::"m"(mxcsr), "m"(control));
    const size_t words = has_avx ? 4 : 2;
    for (uint64_t round = 1;; ++round) {
        uint64_t from[VECTORS * 4], to[VECTORS * 4];
        for (size_t i = 0; i < VECTORS * 4; ++i)
            from[i] = mixed(round * 977 + i + ((uint64_t)(intptr_t)cpu << 56));
        memset(to, 0, sizeof to);
        (has_avx ? hold_ymm : hold_xmm)(from, to, 20000);
        for (size_t i = 0; i < VECTORS; ++i)
            for (size_t word = 0; word < words; ++word)
                if (to[4 * i + word] != from[4 * i + word])
                    report_wrong("a vector register", from[4 * i + word], to[4 * i + word]);
        uint32_t mxcsr_now;
        uint16_t control_now;
        __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr_now), "=m"(control_now));
        if ((mxcsr_now & 0xffc0u) != (mxcsr & 0xffc0u)) report_wrong("MXCSR", mxcsr, mxcsr_now);
        if (control_now != control) report_wrong("the x87 control word", control, control_now);
        atomic_fetch_add(&checks, 1);
    }
    return NULL;
}

/* Maps, fills, checks, unmaps. The kernel has zeroed what it gives. */
static void *fault_pages(void *cpu) {
    enum { kPages = 64 };
    pin((long)(intptr_t)cpu);
    const size_t bytes = (size_t)kPages * 4096;
    for (uint64_t round = 1;; ++round) {
        uint64_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            report_wrong("mmap", 0, 1);
            return NULL;
        }
        for (size_t page = 0; page < kPages; ++page) {
            if (map[512 * page + 7] != 0) report_wrong("a new page", 0, map[512 * page + 7]);
            for (size_t word = 0; word < 512; word += 64)
                map[512 * page + word] = mixed(round * 65536 + page * 512 + word);
        }
        sched_yield();
        for (size_t page = 0; page < kPages; ++page)
            for (size_t word = 0; word < 512; word += 64) {
                const uint64_t expected = mixed(round * 65536 + page * 512 + word);
                if (map[512 * page + word] != expected)
                    report_wrong("a page", expected, map[512 * page + word]);
            }
        if (munmap(map, bytes) != 0) report_wrong("munmap", 0, 1);
        atomic_fetch_add(&faults, kPages);
    }
    return NULL;
}

static void on_timer(int number) {
    (void)number;
    /* The handler has vector registers of its own. */
    volatile double sum = 0;
    for (int i = 0; i < 20; ++i) sum = sum + 1.5;
    if (sum != 30.0) report_wrong("a sum in a signal's handler", 30, (uint64_t)sum);
    atomic_fetch_add(&signals, 1);
}

static pthread_mutex_t turn_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static long turn;

static void *pass_token(void *cpu) {
    const long self = (long)(intptr_t)cpu;
    pin(self);
    for (;;) {
        pthread_mutex_lock(&turn_mutex);
        while (turn != self) pthread_cond_wait(&turn_changed, &turn_mutex);
        turn = (self + 1) % cpus;
        pthread_cond_broadcast(&turn_changed);
        pthread_mutex_unlock(&turn_mutex);
        atomic_fetch_add(&tokens, 1);
    }
    return NULL;
}

static void *fork_children(void *cpu) {
    (void)cpu;
    for (;;) {
        const pid_t child = fork();
        if (child == 0) {
            volatile uint64_t page[512];
            page[0] = 1;
            _exit((int)page[0] + 2);
        }
        int status = 0;
        if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 3)
            report_wrong("a child's status", 3 << 8, (uint64_t)status);
        atomic_fetch_add(&forks, 1);
        usleep(20000);
    }
    return NULL;
}

/* Filled once, read for ever: what a pass over dirty pages forgot shows here. */
static void *read_old_memory(void *unused) {
    (void)unused;
    enum { kWords = 4 * 1024 * 1024 / 8 };
    uint64_t *words = malloc(kWords * sizeof *words);
    if (words == NULL) return NULL;
    for (size_t i = 0; i < kWords; ++i) words[i] = mixed(i + 1);
    for (;;) {
        for (size_t i = 0; i < kWords; i += 8)
            if (words[i] != mixed(i + 1)) report_wrong("old memory", mixed(i + 1), words[i]);
        usleep(100000);
    }
    return NULL;
}

static void start(void *(*work)(void *), long argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, (void *)(intptr_t)argument) != 0) {
        perror("pthread_create");
        exit(1);
    }
}

int main(void) {
    cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (cpus > CPUS_MAX) cpus = CPUS_MAX;
    has_avx = __builtin_cpu_supports("avx");
    struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    const struct itimerval every = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (long cpu = 0; cpu < cpus; ++cpu) {
        start(hold_vectors, cpu);
        start(fault_pages, cpu);
        if (cpus > 1) start(pass_token, cpu);
    }
    start(fork_children, 0);
    start(read_old_memory, 0);
    char line[64];
    for (;;) {
        if (fgets(line, sizeof line, stdin) == NULL) {
            if (!ferror(stdin)) return 0;
            clearerr(stdin);
            continue;
        }
        printf("load: vectors %s checks %llu faults %llu signals %llu tokens %llu forks %llu wrong %llu\n",
               has_avx ? "ymm" : "xmm", (unsigned long long)atomic_load(&checks),
               (unsigned long long)atomic_load(&faults), (unsigned long long)atomic_load(&signals),
               (unsigned long long)atomic_load(&tokens), (unsigned long long)atomic_load(&forks),
               (unsigned long long)atomic_load(&wrong));
        fflush(stdout);
    }
}
