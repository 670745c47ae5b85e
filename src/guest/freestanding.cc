// Every reader in a program without libraries: that it links is the test. A kernel links them so.
#include <stdint.h>

#include "continuo/guest/pvclock_reader.h"
#include "continuo/guest/sched_clock.h"
#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"

namespace {

continuo_pvclock_page pvclock;
continuo_vmclock_page vmclock;
continuo_time_travel_page travel_page;
continuo_pvclock_last last;
uint64_t realtime_ns;

/// What an interrupt handler does with a notice.
void handle_notice() {
    continuo_travel travel{};
    while (continuo_travel_pending(&travel_page, &travel)) {
        realtime_ns += static_cast<uint64_t>(travel.delta_ns);
        continuo_travel_answer(&travel_page, &travel);
    }
}

}  // namespace

extern "C" uint64_t read_everything(continuo_sched_clock sched) {
    const uint64_t ns = continuo_pvclock_ns(&pvclock, &last);
    continuo_vmclock_reading tai{};
    if (continuo_vmclock_read(&vmclock, 10, &tai) != CONTINUO_VMCLOCK_OK) return 0;
    if (continuo_pvclock_take_stopped(&pvclock)) return 1;
    handle_notice();
    continuo_gate gate;
    uint64_t realtime;
    do {
        gate = continuo_gate_enter(&travel_page);
        realtime = __atomic_load_n(&realtime_ns, __ATOMIC_RELAXED);
    } while (continuo_gate_retry(&travel_page, gate));
    return continuo_sched_clock_ns(sched, ns) + tai.tai_ns + realtime;
}

extern "C" [[noreturn]] void _start() {
    read_everything(continuo_sched_clock_from(0));
    for (;;)
        continuo_relax();
}
