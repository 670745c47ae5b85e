// The planner and the codec: ns for each vCPU, and how they grow with vCPUs. The floor beside them
// is the least that a planner can do: read each vCPU's counter, add, and store an offset.
#include <benchmark/benchmark.h>

#include <vector>

#include "continuo/state/codec.h"
#include "continuo/state/plan.h"

namespace {

using namespace continuo::state;

Record record(std::size_t vcpus) {
    Record out;
    out.anchor.counter = continuo::time::Count<SourceCounter>::from_raw(1'000'000);
    out.anchor.tai = continuo::time::Instant<Tai>::from_raw(1'700'000'000'000'000'000);
    out.anchor.frequency = *Hz::from_khz(2'400'000);
    for (std::size_t i = 0; i < vcpus; ++i) {
        VcpuClock clock;
        clock.counter = continuo::time::Count<GuestCounter>::from_raw(500 + i);
        clock.frequency = *Hz::from_khz(2'400'000);
        clock.tsc_offset = 12'345;
        out.vcpus.push_back(clock);
    }
    KvmclockState kvmclock;
    kvmclock.masterclock = true;
    kvmclock.line =
        PvclockLine{out.vcpus[0].counter, {}, PvclockScale::from_hz(*Hz::from_khz(2'400'000))};
    out.kvmclock = kvmclock;
    return out;
}

Destination destination(std::size_t vcpus, std::uint64_t khz) {
    Destination out;
    out.anchor.counter = continuo::time::Count<HostCounter>::from_raw(77'000'000);
    out.anchor.tai = continuo::time::Instant<Tai>::from_raw(1'700'000'000'500'000'000);
    out.anchor.frequency = *Hz::from_khz(khz);
    out.scaling_frac_bits = 48;
    out.vcpu_count = static_cast<std::uint32_t>(vcpus);
    return out;
}

void report_per_vcpu(benchmark::State& state) {
    state.SetComplexityN(state.range(0));
    state.counters["per_vCPU"] = benchmark::Counter(
        static_cast<double>(state.range(0)),
        benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void BM_Floor(benchmark::State& state) {
    const Record from = record(static_cast<std::size_t>(state.range(0)));
    for (auto _ : state) {
        std::vector<std::uint64_t> offsets;
        offsets.reserve(from.vcpus.size());
        for (const VcpuClock& clock : from.vcpus)
            offsets.push_back(clock.counter.raw() + 1 - 77'000'000);
        benchmark::DoNotOptimize(offsets.data());
    }
    report_per_vcpu(state);
}

void plan_on(benchmark::State& state, std::uint64_t khz, Policy policy) {
    const auto vcpus = static_cast<std::size_t>(state.range(0));
    const Record from = record(vcpus);
    const Destination to = destination(vcpus, khz);
    PlanOptions options;
    options.policy = policy;
    for (auto _ : state) {
        auto result = plan(from, to, options);
        if (!result) state.SkipWithError("refused");
        benchmark::DoNotOptimize(result);
    }
    report_per_vcpu(state);
}

void BM_PlanFreeze(benchmark::State& state) {
    plan_on(state, 2'400'000, Policy::kFreeze);
}
void BM_PlanAdvanceByTai(benchmark::State& state) {
    plan_on(state, 2'400'000, Policy::kAdvance);
}
void BM_PlanAdvanceScaled(benchmark::State& state) {
    plan_on(state, 3'100'000, Policy::kAdvanceAndNotify);
}

void BM_Encode(benchmark::State& state) {
    const Record from = record(static_cast<std::size_t>(state.range(0)));
    for (auto _ : state)
        benchmark::DoNotOptimize(encode(from));
    report_per_vcpu(state);
}

void BM_Decode(benchmark::State& state) {
    const auto bytes = encode(record(static_cast<std::size_t>(state.range(0))));
    for (auto _ : state) {
        auto result = decode(bytes);
        if (!result) state.SkipWithError("not decoded");
        benchmark::DoNotOptimize(result);
    }
    report_per_vcpu(state);
}

#define CONTINUO_BENCH(name) BENCHMARK(name)->Arg(1)->Arg(4)->Arg(16)->Arg(64)->Arg(1024)
CONTINUO_BENCH(BM_Floor);
CONTINUO_BENCH(BM_PlanFreeze);
CONTINUO_BENCH(BM_PlanAdvanceByTai);
CONTINUO_BENCH(BM_PlanAdvanceScaled);
CONTINUO_BENCH(BM_Encode);
CONTINUO_BENCH(BM_Decode);

}  // namespace
