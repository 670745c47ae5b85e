// The readers as C compiles them, and all of them against writers in other threads (ThreadSanitizer
// watches these).
#include "c_readers.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <thread>

#include "continuo/abi/time_travel_host.h"
#include "continuo/guest/clocks.h"

namespace continuo::guest {
namespace {

template <class T>
void put(T& word, T value) {
    __atomic_store_n(&word, value, __ATOMIC_RELAXED);
}

/// 1 ns a tick; kvmclock = counter + lead.
void publish(abi::pvclock_vcpu_time_info& page, std::uint64_t timestamp, std::uint64_t lead) {
    const std::uint32_t version = page.version;
    put(page.version, version + 1);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    put(page.tsc_timestamp, timestamp);
    put(page.system_time, timestamp + lead);
    put(page.tsc_to_system_mul, 0x8000'0000u);
    put(page.tsc_shift, std::int8_t{1});
    put(page.flags, abi::kPVCLOCK_TSC_STABLE_BIT);
    __atomic_store_n(&page.version, version + 2, __ATOMIC_RELEASE);
}

/// A VM's pages, quiet.
struct Pages {
    alignas(64) abi::pvclock_vcpu_time_info pvclock{};
    alignas(64) abi::vmclock_abi vmclock{};
    alignas(64) abi::time_travel_page travel{};
    abi::TimeTravelHost host{1'000'000'000};

    Pages() {
        publish(pvclock, continuo_counter(), 5);
        vmclock.magic = abi::kVMCLOCK_MAGIC;
        vmclock.size = 4096;
        vmclock.version = 1;
        vmclock.counter_id = CONTINUO_COUNTER_ID;
        vmclock.time_type = abi::kVMCLOCK_TIME_TAI;
        vmclock.counter_value = continuo_counter();
        vmclock.counter_period_frac_sec = 1;
        vmclock.counter_period_shift = 64;
        vmclock.time_sec = 1'800'000'000;
        vmclock.time_maxerror_nanosec = 1'000;
        vmclock.flags =
            abi::kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID | abi::kVMCLOCK_FLAG_TIME_MAXERROR_VALID;
        carry_out(host.reset());
    }
    void carry_out(const abi::TimeTravelStores& stores) {
        for (const abi::TimeTravelStore& store : stores.list())
            __atomic_store_n(
                reinterpret_cast<std::uint64_t*>(reinterpret_cast<char*>(&travel) + store.offset),
                store.value, __ATOMIC_RELEASE);
    }
};

TEST(CReaders, ReadWhatCppReads) {
    Pages pages;
    pages.pvclock.flags |= abi::kPVCLOCK_GUEST_STOPPED;
    pages.carry_out(pages.host.raise({77, 77, 1}, 0, 0));
    const std::uint64_t before = continuo_counter();
    const c_readings all = read_all_from_c(&pages.pvclock, &pages.vmclock, &pages.travel);
    const std::uint64_t after = continuo_counter();
    EXPECT_GE(all.kvmclock_ns, before + 5);
    EXPECT_LE(all.kvmclock_ns, after + 5);
    EXPECT_GE(all.monotonic_ns, all.kvmclock_ns);
    EXPECT_EQ(all.sched_ns, 0u);
    EXPECT_TRUE(all.stopped);
    EXPECT_EQ(all.vmclock_status, CONTINUO_VMCLOCK_OK);
    EXPECT_EQ(all.tai_ns, 1'800'000'000'000'000'000u);
    EXPECT_EQ(all.tai_ns - all.earliest_ns, 1'001u);
    EXPECT_TRUE(all.valid);
    EXPECT_EQ(all.gate_state, CONTINUO_GATE_HELD);
    EXPECT_EQ(all.travelled_ns, 77);
    EXPECT_EQ(all.answered, 1);
    EXPECT_EQ(pages.host.look(pages.travel.migration_sequence, 0).seen,
              abi::TimeTravelHost::Seen::kAnswered);

    EXPECT_TRUE(read_kvmclock(pages.pvclock).stable);
    EXPECT_FALSE(read_kvmclock(pages.pvclock).stopped);
    continuo_pvclock_last last{};
    EXPECT_GE(monotonic_kvmclock(pages.pvclock, last).raw(), after + 5);
    const auto tai = read_tai(pages.vmclock, 3);
    ASSERT_TRUE(tai);
    EXPECT_EQ(tai->at.raw(), all.tai_ns);
    ASSERT_TRUE(tai->error);
    EXPECT_TRUE(tai->error->contains(time::Nanos<time::Tai>::from_raw(1'000)));
    pages.vmclock.time_type = abi::kVMCLOCK_TIME_UTC;
    EXPECT_FALSE(read_tai(pages.vmclock, 3));
}

TEST(CReaders, GatedRealtimeIsClockGettimeWhereTheGateIsOpen) {
    Pages pages;
    std::int64_t ns = 0;
    timespec before{}, after{};
    clock_gettime(CLOCK_REALTIME, &before);
    EXPECT_EQ(gated_realtime_from_c(&pages.travel, &ns), CONTINUO_GATE_OPEN);
    clock_gettime(CLOCK_REALTIME, &after);
    EXPECT_GE(ns, before.tv_sec * 1'000'000'000 + before.tv_nsec);
    EXPECT_LE(ns, after.tv_sec * 1'000'000'000 + after.tv_nsec);
    pages.carry_out(pages.host.raise({0, 5, 0}, 0, 0));
    EXPECT_EQ(gated_realtime_from_c(&pages.travel, &ns), CONTINUO_GATE_RELEASED);
    EXPECT_EQ(gated_realtime_from_c(nullptr, &ns), CONTINUO_GATE_OPEN);
}

TEST(Threads, AKvmclockReaderSeesWholePagesOfABusyWriter) {
    Pages pages;
    std::atomic<bool> stop{false};
    // Every page reads as counter + 5 whatever its timestamp: a mixture of two does not.
    std::thread writer{[&] {
        for (std::uint64_t i = 0; !stop; ++i)
            publish(pages.pvclock, continuo_counter() - (i % 7) * 100'000, 5);
    }};
    std::uint64_t previous = 0;
    while (__atomic_load_n(&pages.pvclock.version, __ATOMIC_RELAXED) < 100'000) {
        const KvmclockReading reading = read_kvmclock(pages.pvclock);
        ASSERT_EQ(reading.at.raw(), reading.counter.raw() + 5);
        ASSERT_GE(reading.at.raw(), previous);
        previous = reading.at.raw();
    }
    stop = true;
    writer.join();
}

TEST(Threads, UnstableCpusShareOneMonotonicClock) {
    // Two CPUs whose pages are 40 us apart.
    std::array<Pages, 2> cpus;
    publish(cpus[0].pvclock, continuo_counter(), 0);
    publish(cpus[1].pvclock, continuo_counter(), 40'000);
    for (Pages& cpu : cpus)
        cpu.pvclock.flags = 0;
    continuo_pvclock_last last{};
    std::atomic<std::uint64_t> published{0};
    const auto run = [&](const abi::pvclock_vcpu_time_info& page) {
        for (int i = 0; i < 50'000; ++i) {
            const std::uint64_t floor = published.load();
            const std::uint64_t now = monotonic_kvmclock(page, last).raw();
            ASSERT_GE(now, floor) << "a CPU reads less than another had read before";
            std::uint64_t seen = published.load();
            while (seen < now && !published.compare_exchange_weak(seen, now)) {
            }
        }
    };
    std::thread other{[&] { run(cpus[1].pvclock); }};
    run(cpus[0].pvclock);
    other.join();
}

}  // namespace
}  // namespace continuo::guest
