// KVM's timekeeping in the model: what a simulated migration of four vCPUs costs, in its own calls.
// The floor beside it is the least that the guest must see of one: four offsets and four pages
// stored.
#include <benchmark/benchmark.h>

#include <array>

#include "continuo/model/kvm_vm.h"

namespace {

using namespace continuo;
using namespace continuo::model;

constexpr unsigned kVcpus = 4;

struct Guest {
    HostPlatform host{2'000'000};
    KvmVm vm{host, KernelRules::linux(6, 12), kVcpus};

    Guest() {
        for (unsigned i = 0; i < kVcpus; ++i)
            if (!vm.guest_write_msr(i, abi::kMSR_KVM_SYSTEM_TIME_NEW, (64 * i) | 1)) std::abort();
    }
    void enter_all() {
        for (unsigned i = 0; i < kVcpus; ++i)
            vm.enter(i);
    }
};

void BM_Floor(benchmark::State& state) {
    struct Seen {
        std::uint64_t offset;
        abi::pvclock_vcpu_time_info page;
    };
    std::array<Seen, kVcpus> seen{};
    std::uint64_t n = 0;
    for (auto _ : state) {
        ++n;
        for (Seen& vcpu : seen)
            vcpu = {n, {2, 0, n, n, 1U << 31, 0, 1, {}}};
        benchmark::DoNotOptimize(seen.data());
        benchmark::ClobberMemory();
    }
}

/// Offsets, kvmclock, entry: three of the four offsets leave a masterclock update each.
void BM_Restore(benchmark::State& state) {
    Guest guest;
    std::uint64_t n = 0;
    for (auto _ : state) {
        ++n;
        for (unsigned i = 0; i < kVcpus; ++i) {
            guest.vm.exit(i);
            if (!guest.vm.set_tsc_offset(i, n)) state.SkipWithError("the offset was refused");
        }
        guest.host.counter += 1000;
        abi::kvm_clock_data data{};
        data.clock = n;
        if (!guest.vm.set_clock(data)) state.SkipWithError("the clock was refused");
        guest.enter_all();
        benchmark::DoNotOptimize(guest.vm.page(0).system_time);
    }
}

/// An entry that has the page to write.
void BM_EnterWithAPage(benchmark::State& state) {
    Guest guest;
    guest.enter_all();
    for (auto _ : state) {
        guest.vm.exit(0);
        if (!guest.vm.kvmclock_ctrl(0)) state.SkipWithError("there is no page");
        guest.vm.enter(0);
        benchmark::DoNotOptimize(guest.vm.page(0).version);
    }
}

/// What an explorer pays for a state.
void BM_Copy(benchmark::State& state) {
    const Guest guest;
    for (auto _ : state) {
        KvmVm copy = guest.vm;
        benchmark::DoNotOptimize(&copy);
        benchmark::ClobberMemory();
    }
    state.counters["bytes"] = sizeof(KvmVm);
}

BENCHMARK(BM_Floor);
BENCHMARK(BM_Restore);
BENCHMARK(BM_EnterWithAPage);
BENCHMARK(BM_Copy);

}  // namespace
