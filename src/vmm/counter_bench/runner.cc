#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "continuo/kvm/vcpu_statistics.h"
#include "continuo/vmm/counter_bench.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/witness_abi.h"
#include "counter_bench_abi.h"
#include "provocation.h"
#include "witness_boot.h"

extern "C" const std::byte continuo_counter_bench_begin[];
extern "C" const std::byte continuo_counter_bench_end[];

namespace continuo::vmm {

namespace {

using namespace counter_bench;
using state::ErrorCode;

constexpr std::uint64_t kReadsMax = 1'000'000;
constexpr auto kLookInterval = std::chrono::milliseconds{2};

std::uint64_t words_of_instructions() {
    return std::uint64_t{2} * kMixes * kMixRepeats;
}

Control make_control(const ReadKind& kind, std::uint64_t reads) {
    Control control{};
    control.magic = kMagic;
    control.method = kind.method;
    control.user_mode = kind.user_mode ? 1 : 0;
    control.reads = reads;
    control.batches = (reads + kBatchReads - 1) / kBatchReads;
    control.batch_reads = kBatchReads;
    control.samples_gpa = witness::kWorkload;
    control.batches_gpa = control.samples_gpa + 8 * std::max(reads, words_of_instructions());
    return control;
}

VmConfig config_for(const Control& control) {
    VmConfig config;
    config.vcpus = 1;
    const std::uint64_t bytes = control.batches_gpa + 8 * control.batches;
    config.memory_bytes =
        std::max(kMemoryMin, (bytes + kvm::kPageSize - 1) / kvm::kPageSize * kvm::kPageSize);
    return config;
}

/// A VM whose only vCPU stands at the payload's entry.
Result<std::unique_ptr<VirtualMachine>> boot(const kvm::System& system, const Control& control) {
    auto machine = VirtualMachine::create(system, config_for(control));
    if (!machine) return machine;
    const std::span image{continuo_counter_bench_begin, continuo_counter_bench_end};
    witness::ImageHeader header;
    CONTINUO_CHECK(image.size() >= sizeof header && image.size() <= witness::kImageLimit);
    std::memcpy(&header, image.data(), sizeof header);
    GuestWriter out{(*machine)->memory()};
    out.put_bytes(witness::kImage, image);
    put_tables(out, image);
    out.put(witness::kControl, control);
    out.put(report_gpa(0), Report{});
    out.put(witness::kStacks, report_gpa(0));
    put_vcpu_tables(out, 0);
    Status done = out.status();
    if (done) done = set_entry((*machine)->vcpus().front(), header.entry);
    if (!done) return tl::unexpected(std::move(done.error()));
    return machine;
}

tl::unexpected<state::Error> guest_fault(const Report& report) {
    char text[112];
    std::snprintf(text, sizeof text, "the guest took exception %llu (0x%llx) at 0x%llx",
                  static_cast<unsigned long long>(report.fault_vector - 1),
                  static_cast<unsigned long long>(report.fault_error),
                  static_cast<unsigned long long>(report.fault_address));
    return state::fail(ErrorCode::kGuest, "the measuring guest", text);
}

tl::unexpected<state::Error> guest_stall(const Report& report, std::uint64_t limit_ms) {
    return state::fail(ErrorCode::kTimeout, "the measuring guest",
                       "no sample in " + std::to_string(limit_ms) + " ms, after " +
                           std::to_string(report.progress) + " of them",
                       "try fewer reads");
}

/// Watches the guest's report until it says that all is done.
Status wait_until_done(VirtualMachine& machine, std::uint64_t stall_limit_ms) {
    using Clock = std::chrono::steady_clock;
    std::uint64_t progress = 0;
    auto limit = Clock::now() + std::chrono::milliseconds{stall_limit_ms};
    for (;;) {
        if (auto well = machine.health(); !well) return well;
        const auto report = machine.memory().read_object<Report>(report_gpa(0));
        if (!report) return tl::unexpected(report.error());
        if (report->fault_vector != 0) return guest_fault(*report);
        if (report->done != 0) return {};
        if (report->progress != progress)
            limit = Clock::now() + std::chrono::milliseconds{stall_limit_ms};
        progress = report->progress;
        if (Clock::now() > limit) return guest_stall(*report, stall_limit_ms);
        std::this_thread::sleep_for(kLookInterval);
    }
}

/// Lets the guest run to its end and answers its report.
Result<Report> run_to_end(VirtualMachine& machine, std::uint64_t stall_limit_ms) {
    if (auto going = machine.resume(); !going) return tl::unexpected(std::move(going.error()));
    auto finished = wait_until_done(machine, stall_limit_ms);
    auto stopped = machine.stop();
    if (!finished) return tl::unexpected(std::move(finished.error()));
    if (!stopped) return tl::unexpected(std::move(stopped.error()));
    auto report = machine.memory().read_object<Report>(report_gpa(0));
    if (report && report->magic != kMagic)
        return state::fail(ErrorCode::kGuest, "the measuring guest", "its report is damaged");
    return report;
}

Result<std::vector<std::uint64_t>> read_words(VirtualMachine& machine, std::uint64_t gpa,
                                              std::uint64_t count) {
    std::vector<std::uint64_t> words(count);
    if (auto done = machine.memory().read(gpa, std::as_writable_bytes(std::span{words})); !done)
        return tl::unexpected(std::move(done.error()));
    return words;
}

Result<SampleStatistics> reduced(VirtualMachine& machine, std::uint64_t gpa, std::uint64_t count) {
    return read_words(machine, gpa, count).and_then(reduce);
}

std::optional<std::uint64_t> value_of(const Result<kvm::VcpuStatistic>& statistic) {
    if (!statistic) return std::nullopt;
    const auto value = statistic->read();
    return value ? std::optional{*value} : std::nullopt;
}

Result<ReadCost> collect(VirtualMachine& machine, const Control& control, const Report& report) {
    auto samples = reduced(machine, control.samples_gpa, control.reads);
    if (!samples) return tl::unexpected(std::move(samples.error()));
    auto batches = reduced(machine, control.batches_gpa, control.batches);
    if (!batches) return tl::unexpected(std::move(batches.error()));
    return ReadCost{*samples, *batches, std::nullopt, report.backward};
}

Result<ReadCost> measure(const kvm::System& system, const ReadKind& kind,
                         const CounterBenchOptions& options) {
    const Control control = make_control(kind, options.reads);
    const auto machine = boot(system, control);
    if (!machine) return tl::unexpected(machine.error());
    const auto provoked = provoke(kind, **machine, options);
    if (!provoked) return tl::unexpected(provoked.error());
    const auto exits = kvm::VcpuStatistic::open((*machine)->vcpus().front(), "exits");
    const auto exits_before = value_of(exits);
    const auto report = run_to_end(**machine, options.stall_limit_ms);
    const auto exits_after = value_of(exits);
    if (!report) return tl::unexpected(report.error());
    auto cost = collect(**machine, control, *report);
    if (!cost) return cost;
    if (exits_before && exits_after) cost->exits = *exits_after - *exits_before;
    if (auto shown = (*provoked)->check(kind, *cost, *report); !shown)
        return tl::unexpected(std::move(shown.error()));
    return cost;
}

/// The series that is none: how fast the counter runs, and whether it counts instructions.
Status measure_counter(const kvm::System& system, const CounterBenchOptions& options,
                       CounterBench& bench) {
    const ReadKind& native = read_kinds().front();
    ReadKind kind = native;
    kind.method = Method::kInstructions;
    const Control control = make_control(kind, 1);
    const auto machine = boot(system, control);
    if (!machine) return tl::unexpected(machine.error());
    const auto report = run_to_end(**machine, options.stall_limit_ms);
    if (!report) return tl::unexpected(report.error());
    const auto hz = counter_frequency(**machine, *report);
    if (!hz) return tl::unexpected(hz.error());
    bench.counter = *hz;
    const auto ticks = read_words(**machine, control.samples_gpa, words_of_instructions());
    if (!ticks) return tl::unexpected(ticks.error());
    auto clock = instruction_clock(*ticks, *hz);
    if (!clock) return tl::unexpected(std::move(clock.error()));
    bench.instructions = *clock;
    return {};
}

/// The ticks of 2^shift ns for each of `instructions`.
std::uint64_t floor_ticks(std::uint64_t instructions, unsigned shift, time::Hz counter) {
    const time::u128 ns = static_cast<time::u128>(instructions) << shift;
    return static_cast<std::uint64_t>(ns * counter.hz() / time::kNanosPerSecond);
}

bool takes(std::uint64_t ticks, std::uint64_t expected) {
    const std::uint64_t off = ticks > expected ? ticks - expected : expected - ticks;
    return off <= 2 + expected / 1000;
}

std::optional<unsigned> shift_of(const InstructionClock& clock, time::Hz counter) {
    constexpr unsigned shift_max = 10;  // QEMU's own limit
    for (unsigned shift = 0; shift <= shift_max; ++shift) {
        bool all = true;
        for (std::size_t mix = 0; mix < kMixes; ++mix)
            all = all &&
                  takes(clock.ticks[mix], floor_ticks(clock.instructions[mix], shift, counter));
        if (all) return shift;
    }
    return std::nullopt;
}

}  // namespace

std::string_view name(ReadPath path) {
    switch (path) {
        case ReadPath::kNothing:
            return "nothing";
        case ReadPath::kNative:
            return "native";
        case ReadPath::kTrapped:
            return "trapped";
    }
    return "";
}

state::Result<InstructionClock> instruction_clock(std::span<const std::uint64_t> ticks,
                                                  time::Hz counter) {
    if (ticks.size() != words_of_instructions())
        return state::fail(ErrorCode::kGuest, "the measuring guest",
                           std::to_string(ticks.size()) + " runs of instructions; there are " +
                               std::to_string(words_of_instructions()));
    InstructionClock clock;
    for (std::size_t mix = 0; mix < kMixes; ++mix) {
        const auto runs = ticks.subspan(mix * 2 * kMixRepeats, std::size_t{2} * kMixRepeats);
        const std::uint64_t quick = *std::min_element(runs.begin(), runs.begin() + kMixRepeats);
        const std::uint64_t slow = *std::min_element(runs.begin() + kMixRepeats, runs.end());
        if (slow <= quick || slow - quick >= kSampleLimit)
            return state::fail(ErrorCode::kGuest, "the measuring guest",
                               "its counter advanced by " + std::to_string(slow) +
                                   " ticks in a run twice as long as one of " +
                                   std::to_string(quick));
        clock.instructions[mix] = kMixLoops * kMixInstructions[mix];
        clock.ticks[mix] = slow - quick;
    }
    clock.shift = shift_of(clock, counter);
    return clock;
}

std::uint64_t InstructionClock::nearest_milli_instructions(std::uint64_t ticks_taken,
                                                           std::uint64_t denominator) const {
    time::u128 all_instructions = 0;
    time::u128 all_ticks = 0;
    for (std::size_t mix = 0; mix < kMixes; ++mix) {
        all_instructions += instructions[mix];
        all_ticks += ticks[mix];
    }
    const time::u128 divisor = all_ticks * denominator;
    return static_cast<std::uint64_t>((all_instructions * ticks_taken * 1000 + divisor / 2) /
                                      divisor);
}

state::Result<CounterBench> run_counter_bench(const kvm::System& system,
                                              const CounterBenchOptions& options) {
    if (options.reads == 0 || options.reads > kReadsMax)
        return state::fail(
            ErrorCode::kInvalidArgument, "reads",
            std::to_string(options.reads) + " reads; 1 to 1 000 000 can be asked for");
    CounterBench bench{host_facts(), *time::Hz::from_hz(1), options.reads, {}, {}};
    if (options.progress) options.progress("the counter and instructions");
    if (auto done = measure_counter(system, options, bench); !done)
        return tl::unexpected(std::move(done.error()));
    for (const ReadKind& kind : read_kinds()) {
        if (options.progress) options.progress(kind.how);
        bench.series.push_back({kind.id, kind.clock, kind.how, kind.path, kind.nothing,
                                measure(system, kind, options)});
    }
    return bench;
}

std::optional<std::uint64_t> net_batch_ticks(const CounterBench& bench, const CounterRead& read) {
    const auto nothing = std::find_if(bench.series.begin(), bench.series.end(),
                                      [&](const auto& other) { return other.id == read.nothing; });
    if (nothing == bench.series.end() || !nothing->cost || !read.cost) return std::nullopt;
    const std::uint64_t whole = read.cost->batches.median;
    const std::uint64_t empty = nothing->cost->batches.median;
    return whole > empty ? whole - empty : 0;
}

}  // namespace continuo::vmm
