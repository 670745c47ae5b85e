/* Inside a Linux guest, beside continuo-agent: sees when a notice stands in the page, when REALTIME was repaired, and
 * what the kernel says of its clock then; and reads the vmclock page by the project's own reader. Prints a line for
 * each notice that it has seen answered:
 *
 *     probe: notice N stepped S repaired_within R cancelled C unsync U maxerror_us M
 *
 * and where there is no such page, for each disruption that vmclock's marker tells of, once REALTIME has been stepped,
 * the same with "disruption" and the marker. N the sequence, S by how much REALTIME moved against BOOTTIME, R from the last reading before the notice to the
 * first at which REALTIME was right, in ns of the guest's MONOTONIC, C whether a TFD_TIMER_CANCEL_ON_SET timer was
 * cancelled, U and M what adjtimex said right after. Commands on stdin:
 *
 *     gate      probe: gate STATE sequence N         0 open, 1 held, 2 released
 *     vmclock   probe: vmclock STATUS ... width_ns W tai_less_realtime_ns T tai_less_host_ns H host_width_ns V
 *               H against the host's own REALTIME by KVM's PTP clock, whose reading took V; -1 without one
 *     damage    overwrites the whole notice page
 *
 * `guest_probe set-host-clock` and `guest_probe step-host-clock SECONDS` are for the emulated host: the first tells its
 * kernel TAI - UTC = 37 s and that NTP keeps it within 1 ms, the second sets it, and then the first again. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"

static int64_t read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int fail(const char *what) {
    printf("probe: %s: %s\n", what, strerror(errno));
    return 1;
}

static int set_host_clock(void) {
    struct timex clock = {.modes = ADJ_TAI, .constant = 37};
    if (adjtimex(&clock) < 0) return fail("ADJ_TAI");
    clock = (struct timex){.modes = ADJ_STATUS | ADJ_MAXERROR | ADJ_ESTERROR, .status = STA_PLL, .maxerror = 1000};
    return adjtimex(&clock) < 0 ? fail("ADJ_STATUS") : 0;
}

static int step_host_clock(long seconds) {
    struct timex clock = {.modes = ADJ_SETOFFSET, .time = {.tv_sec = seconds}};
    return adjtimex(&clock) < 0 ? fail("ADJ_SETOFFSET") : set_host_clock();
}

static void *map_page(const char *file, off_t offset, int protection) {
    const int fd = open(file, protection & PROT_WRITE ? O_RDWR : O_RDONLY);
    if (fd < 0) return NULL;
    void *at = mmap(NULL, 4096, protection, MAP_SHARED, fd, offset);
    close(fd);
    return at == MAP_FAILED ? NULL : at;
}

static struct continuo_time_travel_page *notice_page(void) {
    char text[32] = "";
    const int fd = open("/sys/bus/acpi/devices/CTNO0001:00/uid", O_RDONLY);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0) return NULL;
    close(fd);
    return map_page("/dev/mem", (off_t)strtoull(text, NULL, 0), PROT_READ | PROT_WRITE);
}

/* Whether it was cancelled. The kernel cancels timers a little after it has stepped the clock. */
static int cancelled_within_ms(int timer, int ms) {
    uint64_t expirations;
    for (;; --ms) {
        if (read(timer, &expirations, sizeof expirations) < 0 && errno == ECANCELED) return 1;
        if (ms == 0) return 0;
        usleep(1000);
    }
}

static void arm(int timer) {
    const struct itimerspec never = {.it_value = {.tv_sec = INT64_C(1) << 33}};
    while (timerfd_settime(timer, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) != 0 && errno == ECANCELED) {
    }
}

static int64_t realtime_offset(void) {
    return read_clock(CLOCK_REALTIME) - read_clock(CLOCK_BOOTTIME);
}

/* What was there before the notice that is open. */
struct before {
    int64_t monotonic, offset;
};

static void report(const char *what, uint64_t sequence, const struct before *before, int64_t right_at, int64_t offset, int timer) {
    struct timex clock = {0};
    adjtimex(&clock);
    const int cancelled = cancelled_within_ms(timer, 100);
    arm(timer);
    printf("probe: %s %" PRIu64 " stepped %" PRId64 " repaired_within %" PRId64
           " cancelled %d unsync %d maxerror_us %ld\n",
           what, sequence, offset - before->offset, right_at - before->monotonic, cancelled,
           (clock.status & STA_UNSYNC) != 0, clock.maxerror);
    fflush(stdout);
}

/* KVM's PTP clock is the host's REALTIME by a hypercall; its descriptor, or -1. */
static int open_host_clock(void) {
    for (int i = 0; i < 8; ++i) {
        char path[64], text[64] = "";
        snprintf(path, sizeof path, "/sys/class/ptp/ptp%d/clock_name", i);
        const int fd = open(path, O_RDONLY);
        const ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        if (size <= 0 || strncmp(text, "KVM virtual PTP", 15) != 0) continue;
        snprintf(path, sizeof path, "/dev/ptp%d", i);
        return open(path, O_RDONLY);
    }
    return -1;
}

static int64_t read_host_clock(int fd) {
    return read_clock((clockid_t)((~(unsigned)fd << 3) | 3));
}

static void tell_vmclock(const struct continuo_vmclock_page *page) {
    struct continuo_vmclock_reading reading;
    memset(&reading, 0, sizeof reading);
    if (page == NULL) {
        printf("probe: vmclock none\n");
        return;
    }
    const int host = open_host_clock();
    const int64_t host_before = host < 0 ? 0 : read_host_clock(host);
    const int64_t before = read_clock(CLOCK_REALTIME);
    const int status = continuo_vmclock_read(page, 1000, &reading);
    const int64_t after = read_clock(CLOCK_REALTIME);
    const int64_t host_after = host < 0 ? -1 : read_host_clock(host);
    if (host >= 0) close(host);
    printf("probe: vmclock %d marker %" PRIu64 " generation %" PRIu64 " clock_status %d width_ns %" PRIu64
           " tai_less_realtime_ns %" PRId64 " tai_less_host_ns %" PRId64 " host_width_ns %" PRId64 "\n",
           status, page->disruption_marker, page->vm_generation_counter, page->clock_status,
           reading.latest_ns - reading.earliest_ns, (int64_t)reading.tai_ns - before - (after - before) / 2,
           (int64_t)reading.tai_ns - host_before - (host_after - host_before) / 2, host_after - host_before);
}

/* A step of REALTIME behind a disruption; what stands between them is somebody's repair. */
static void follow_disruptions(const struct continuo_vmclock_page *vmclock, uint64_t *marker, struct before *before,
                               int timer) {
    const int64_t now = read_clock(CLOCK_MONOTONIC);
    const int64_t offset = realtime_offset();
    const uint64_t found = __atomic_load_n(&vmclock->disruption_marker, __ATOMIC_ACQUIRE);
    if (found != *marker && llabs(offset - before->offset) <= 100000) return;
    if (found != *marker) {
        report("disruption", found, before, read_clock(CLOCK_MONOTONIC), realtime_offset(), timer);
        *marker = found;
    }
    *before = (struct before){now, offset};
}

static void obey(const char *command, struct continuo_time_travel_page *page,
                 const struct continuo_vmclock_page *vmclock) {
    if (strncmp(command, "gate", 4) == 0 && page != NULL) {
        const struct continuo_gate gate = continuo_gate_look(page);
        printf("probe: gate %d sequence %" PRIu64 "\n", (int)gate.state, gate.sequence);
    }
    if (strncmp(command, "vmclock", 7) == 0) tell_vmclock(vmclock);
    if (strncmp(command, "damage", 6) == 0 && page != NULL) {
        memset(page, 0xa5, 4096);
        printf("probe: damaged\n");
    }
    fflush(stdout);
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "set-host-clock") == 0) return set_host_clock();
    if (count > 2 && strcmp(arguments[1], "step-host-clock") == 0) return step_host_clock(atol(arguments[2]));
    struct continuo_time_travel_page *page = notice_page();
    const struct continuo_vmclock_page *vmclock = map_page("/dev/vmclock0", 0, PROT_READ);
    const int timer = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    arm(timer);
    printf("probe: ready, notice page %d, vmclock %d\n", page != NULL, vmclock != NULL);
    fflush(stdout);

    struct before before = {read_clock(CLOCK_MONOTONIC), realtime_offset()};
    uint64_t open_sequence = 0;
    int64_t moved_at = 0, settled = before.offset;
    uint64_t marker = vmclock == NULL ? 0 : vmclock->disruption_marker;
    for (;;) {
        struct pollfd input = {STDIN_FILENO, POLLIN, 0};
        char command[64] = "";
        if (poll(&input, 1, 0) > 0 && read(STDIN_FILENO, command, sizeof command - 1) > 0)
            obey(command, page, vmclock);
        if (page == NULL && vmclock != NULL) follow_disruptions(vmclock, &marker, &before, timer);
        if (page == NULL) {
            /* The repair is to have the CPU. */
            usleep(500);
            continue;
        }
        const int64_t now = read_clock(CLOCK_MONOTONIC);
        const int64_t offset = realtime_offset();
        const uint64_t sequence = __atomic_load_n(&page->migration_sequence, __ATOMIC_ACQUIRE);
        /* Two readings of two clocks are some hundred ns apart, and nothing that is looked for is that small. */
        if (llabs(offset - settled) > 100000) {
            moved_at = now;
            settled = offset;
        }
        if ((sequence & 1) != 0) {
            open_sequence = sequence;
        } else if (open_sequence != 0) {
            report("notice", open_sequence, &before, moved_at > before.monotonic ? moved_at : now, realtime_offset(), timer);
            open_sequence = 0;
            before = (struct before){now, realtime_offset()};
        } else {
            before = (struct before){now, offset};
        }
    }
}
