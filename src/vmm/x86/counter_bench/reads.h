// How the counter benchmark's guest reads clocks on x86-64. A read is a type: once() answers the
// clock's value, alone() is the same read in a loop that wants nothing but its time.
#pragma once

#include "continuo/vmm/witness_abi.h"
#include "counter_bench_abi.h"

namespace continuo::vmm::counter_bench {

inline constexpr std::uint32_t kMsrTsc = 0x10;
inline constexpr std::uint32_t kMsrSystemTime = 0x4b564d01;

__extension__ using u128 = unsigned __int128;

/// struct pvclock_vcpu_time_info, as the guest sees it.
struct ClockPage {
    volatile std::uint32_t version;
    std::uint32_t pad;
    volatile std::uint64_t tsc_timestamp;
    volatile std::uint64_t system_time;
    volatile std::uint32_t mul;
    volatile std::int8_t shift;
    volatile std::uint8_t flags;
    std::uint8_t pad2[2];
};
static_assert(sizeof(ClockPage) == 32);

inline std::uint64_t joined(std::uint32_t high, std::uint32_t low) {
    return static_cast<std::uint64_t>(high) << 32 | low;
}

/// RDTSC that no earlier instruction passes and no later one overtakes.
inline std::uint64_t ordered_counter() {
    std::uint32_t low, high;
    asm volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high)::"memory");
    return joined(high, low);
}

/// x86-64 has no register that says it; the host asks KVM.
inline std::uint64_t counter_frequency() {
    return 0;
}

inline void relax() {
    asm volatile("pause");
}

inline void write_system_time() {
    asm volatile("wrmsr" ::"c"(kMsrSystemTime),
                 "a"(static_cast<std::uint32_t>(witness::kClockPages | 1)), "d"(0)
                 : "memory");
}

inline void set_up_clock() {
    write_system_time();
}

struct Tsc {
    static std::uint64_t once() {
        std::uint32_t low, high;
        asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
        return joined(high, low);
    }
    static void alone() { asm volatile("rdtsc" ::: "rax", "rdx", "memory"); }
};

/// UD2 and "kvm" before the instruction: KVM steps over them and emulates it (handle_ud()).
struct TscForced {
    static std::uint64_t once() {
        std::uint32_t low, high;
        asm volatile("ud2; .ascii \"kvm\"; rdtsc" : "=a"(low), "=d"(high)::"memory");
        return joined(high, low);
    }
    static void alone() { asm volatile("ud2; .ascii \"kvm\"; rdtsc" ::: "rax", "rdx", "memory"); }
};

struct TscMsr {
    static std::uint64_t once() {
        std::uint32_t low, high;
        asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(kMsrTsc) : "memory");
        return joined(high, low);
    }
    static void alone() { asm volatile("rdmsr" ::"c"(kMsrTsc) : "rax", "rdx", "memory"); }
};

/// As a guest's kernel does it: again until no update fell into the read.
struct KvmclockPage {
    static std::uint64_t once() {
        const auto& page = *reinterpret_cast<const ClockPage*>(witness::kClockPages);
        for (;;) {
            const std::uint32_t version = page.version;
            asm volatile("lfence" ::: "memory");
            const std::uint64_t delta = Tsc::once() - page.tsc_timestamp;
            const std::int8_t shift = page.shift;
            const std::uint64_t shifted = shift >= 0 ? delta << shift : delta >> -shift;
            const auto ns = page.system_time +
                            static_cast<std::uint64_t>(static_cast<u128>(shifted) * page.mul >> 32);
            asm volatile("lfence" ::: "memory");
            if ((version & 1) == 0 && version == page.version) return ns;
        }
    }
    static void alone() { asm volatile("" ::"r"(once())); }
};

/// KVM writes the page anew before it lets the guest go on (kvm_write_system_time()).
struct KvmclockMsr {
    static std::uint64_t once() {
        write_system_time();
        return KvmclockPage::once();
    }
    static void alone() { asm volatile("" ::"r"(once())); }
};

/// Calls `use` with the read of this method; with none of them the guest stops as by a fault.
template <class Use>
void with_read(Method method, const Use& use) {
    switch (method) {
        case Method::kTsc:
            return use(Tsc{});
        case Method::kTscForced:
            return use(TscForced{});
        case Method::kTscMsr:
            return use(TscMsr{});
        case Method::kKvmclockPage:
            return use(KvmclockPage{});
        case Method::kKvmclockMsr:
            return use(KvmclockMsr{});
        default:
            asm volatile("ud2");
    }
}

inline void turns_of_nothing(std::uint64_t turns) {
    asm volatile("1: dec %0; jnz 1b" : "+r"(turns)::"cc");
}
inline void turns_of_nops(std::uint64_t turns) {
    asm volatile("1: .rept 16; nop; .endr; dec %0; jnz 1b" : "+r"(turns)::"cc");
}
inline void turns_of_multiplications(std::uint64_t turns) {
    std::uint64_t factor = 3;
    asm volatile("1: .rept 8; imul %1, %1; .endr; dec %0; jnz 1b"
                 : "+r"(turns), "+r"(factor)::"cc");
}

}  // namespace continuo::vmm::counter_bench
