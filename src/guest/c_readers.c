/* Every reader compiled as C11, freestanding but for the last one. c_readers_test.cc calls it. */
#include "c_readers.h"

#include "continuo/guest/gated_realtime.h"
#include "continuo/guest/pvclock_reader.h"
#include "continuo/guest/sched_clock.h"
#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"

struct c_readings read_all_from_c(void* pvclock, const void* vmclock, void* travel) {
    struct continuo_pvclock_page* const pages = pvclock;
    struct continuo_time_travel_page* const notice = travel;
    struct continuo_pvclock_last last = {0, {0}};
    struct c_readings all = {0};
    all.kvmclock_ns = continuo_pvclock_read(pages).ns;
    all.monotonic_ns = continuo_pvclock_ns(pages, &last);
    all.sched_ns = continuo_sched_clock_ns(continuo_sched_clock_from(all.kvmclock_ns), 0);
    all.stopped = continuo_pvclock_take_stopped(pages);
    struct continuo_vmclock_reading tai = {0};
    all.vmclock_status = (int)continuo_vmclock_read(vmclock, 2, &tai);
    all.tai_ns = tai.tai_ns;
    all.earliest_ns = tai.earliest_ns;
    all.latest_ns = tai.latest_ns;
    all.valid = continuo_travel_page_valid(notice);
    all.gate_state = (int)continuo_gate_look(notice).state;
    struct continuo_travel pending = {0};
    while (continuo_travel_pending(notice, &pending)) {
        all.travelled_ns += pending.delta_ns;
        all.answered += continuo_travel_answer(notice, &pending);
    }
    return all;
}

int gated_realtime_from_c(const void* travel, int64_t* ns) {
    struct timespec now;
    enum continuo_gate_state state;
    if (continuo_gated_realtime(travel, &now, &state) != 0) return -1;
    *ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    return (int)state;
}
