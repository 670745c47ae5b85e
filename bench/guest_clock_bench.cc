// What a read of kvmclock through src/guest's reader costs, beside the least that it can cost and
// beside what a Linux guest's program pays: a bare ordered RDTSC with one multiplication, and
// clock_gettime() through the vDSO. In one run, taken in turns, because the machine's speed drifts.
//
//     guest_clock_bench [ROUNDS]      exit status 1 where a ratio is over its limit
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "continuo/guest/counter.h"
#include "continuo/guest/pvclock_reader.h"
#include "continuo/guest/time_travel_page.h"
#include "continuo/guest/vmclock_reader.h"

namespace {

constexpr int kReads = 2'000;           // of one sample: short beside a scheduler's slice
constexpr double kPvclockLimit = 1.05;  // of the bare read
constexpr double kVdsoLimit = 1.0;

/// A page as KVM publishes it for this counter, on a cache line of its own.
alignas(64) continuo_pvclock_page page;
alignas(64) continuo_pvclock_last last;
alignas(64) continuo_vmclock_page vmclock;
alignas(64) continuo_time_travel_page quiet;
volatile std::uint64_t sink;
std::uint32_t bare_mul = 0x9999'9999;

void bare() {
    const std::uint64_t counter = continuo_counter();
    sink = static_cast<std::uint64_t>((static_cast<continuo_u128>(counter) * bare_mul) >> 32);
}
void pvclock() {
    sink = continuo_pvclock_ns(&page, &last);
}
void vdso() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sink = static_cast<std::uint64_t>(now.tv_nsec);
}
void tai() {
    continuo_vmclock_reading reading;
    continuo_vmclock_read(&vmclock, 10, &reading);
    sink = reading.tai_ns;
}
void gated_pvclock() {
    continuo_gate gate;
    do {
        gate = continuo_gate_enter(&quiet);
        sink = continuo_pvclock_ns(&page, &last);
    } while (continuo_gate_retry(&quiet, gate));
}

template <void (*kRead)()>
std::uint64_t sample() {
    const std::uint64_t begin = continuo_counter();
    for (int i = 0; i < kReads; ++i)
        kRead();
    return continuo_counter() - begin;
}

struct Contestant {
    const char* name;
    std::uint64_t (*sample)();
    std::vector<std::uint64_t> ticks;
    double cost = 0;
};

void publish_pages() {
    page = {2, 0, continuo_counter(), 1'000'000, 0x9999'9999, -1, CONTINUO_PVCLOCK_TSC_STABLE, {}};
    vmclock.magic = CONTINUO_VMCLOCK_MAGIC;
    vmclock.size = 4096;
    vmclock.version = 1;
    vmclock.counter_id = CONTINUO_COUNTER_ID;
    vmclock.time_type = CONTINUO_VMCLOCK_TAI;
    vmclock.flags = CONTINUO_VMCLOCK_PERIOD_MAXERROR_VALID | CONTINUO_VMCLOCK_TIME_MAXERROR_VALID;
    vmclock.counter_value = continuo_counter();
    vmclock.counter_period_frac_sec = 0x8000'0000'0000'0000;
    vmclock.counter_period_maxerror_rate_frac_sec = 0x1'0000'0000;
    vmclock.counter_period_shift = 31;
    vmclock.time_sec = 1'800'000'000;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 2'000;
    if (rounds < 10) {
        fmt::print(stderr, "guest_clock_bench: at least 10 rounds\n");
        return 2;
    }
    publish_pages();
    std::array contestants{
        Contestant{"ordered RDTSC and a multiplication", sample<bare>, {}},
        Contestant{"continuo_pvclock_ns()", sample<pvclock>, {}},
        Contestant{"clock_gettime(CLOCK_MONOTONIC), vDSO", sample<vdso>, {}},
        Contestant{"the same through the REALTIME gate", sample<gated_pvclock>, {}},
        Contestant{"continuo_vmclock_read(): TAI and bound", sample<tai>, {}},
    };
    for (int round = 0; round < rounds; ++round)
        for (Contestant& one : contestants)
            one.ticks.push_back(one.sample());
    for (Contestant& one : contestants) {
        // The lower decile: what it costs where nobody comes between.
        const auto at = one.ticks.begin() + rounds / 10;
        std::nth_element(one.ticks.begin(), at, one.ticks.end());
        one.cost = static_cast<double>(*at) / kReads;
        fmt::print("{:<40} {:8.2f} ticks   {:6.3f} of the bare read\n", one.name, one.cost,
                   one.cost / contestants[0].cost);
    }
    const double to_bare = contestants[1].cost / contestants[0].cost;
    const double to_vdso = contestants[1].cost / contestants[2].cost;
    const bool good = to_bare <= kPvclockLimit && to_vdso < kVdsoLimit;
    fmt::print("pvclock: {:.3f} of the bare read (limit {}), {:.3f} of the vDSO (below {}): {}\n",
               to_bare, kPvclockLimit, to_vdso, kVdsoLimit, good ? "kept" : "NOT KEPT");
    return good ? 0 : 1;
}
