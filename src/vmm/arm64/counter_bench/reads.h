// How the counter benchmark's guest reads clocks on arm64. A read is a type: once() answers the
// clock's value, alone() is the same read in a loop that wants nothing but its time.
#pragma once

#include <cstdint>

#include "counter_bench_abi.h"

namespace continuo::vmm::counter_bench {

/// CNTVCT_EL0 that no earlier instruction passes and no later one overtakes; the barriers are those
/// of the thread's benchmark.
inline std::uint64_t ordered_counter() {
    std::uint64_t value;
    asm volatile("isb\n\tmrs %0, cntvct_el0\n\tisb" : "=r"(value)::"memory");
    return value;
}

inline std::uint64_t counter_frequency() {
    std::uint64_t hz;
    asm volatile("mrs %0, cntfrq_el0" : "=r"(hz));
    return hz;
}

inline void relax() {
    asm volatile("yield");
}

/// The counters need none.
inline void set_up_clock() {}

struct VirtualCounter {
    static std::uint64_t once() {
        std::uint64_t value;
        asm volatile("mrs %0, cntvct_el0" : "=r"(value)::"memory");
        return value;
    }
    static void alone() { once(); }
};

struct PhysicalCounter {
    static std::uint64_t once() {
        std::uint64_t value;
        asm volatile("mrs %0, cntpct_el0" : "=r"(value)::"memory");
        return value;
    }
    static void alone() { once(); }
};

/// Calls `use` with the read of this method; with none of them the guest stops as by a fault.
template <class Use>
void with_read(Method method, const Use& use) {
    switch (method) {
        case Method::kVirtualCounter:
            return use(VirtualCounter{});
        case Method::kPhysicalCounter:
            return use(PhysicalCounter{});
        default:
            asm volatile("brk #1");
    }
}

inline void turns_of_nothing(std::uint64_t turns) {
    asm volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r"(turns)::"cc");
}
inline void turns_of_nops(std::uint64_t turns) {
    asm volatile("1: .rept 16\n\tnop\n\t.endr\n\tsubs %0, %0, #1\n\tb.ne 1b" : "+r"(turns)::"cc");
}
inline void turns_of_multiplications(std::uint64_t turns) {
    std::uint64_t factor = 3;
    asm volatile("1: .rept 8\n\tmul %1, %1, %1\n\t.endr\n\tsubs %0, %0, #1\n\tb.ne 1b"
                 : "+r"(turns), "+r"(factor)::"cc");
}

}  // namespace continuo::vmm::counter_bench
