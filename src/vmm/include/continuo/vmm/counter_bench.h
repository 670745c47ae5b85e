// The counter benchmark: what it costs a guest to read its clocks, each read natively and by a trap
// into the hypervisor. A bare guest reads, and stores how long each read took in ticks of its own
// counter; here the series are reduced. Nothing is assumed to have been measured: that a read left
// the guest is shown by KVM's own count of exits where it counts them, and what cannot be provoked
// on a host is an Error that says why. Method and figures: docs/counter-bench.md.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "continuo/kvm/system.h"
#include "continuo/time/rate.h"
#include "continuo/vmm/sample_statistics.h"

namespace continuo::vmm {

/// Reads in one batch; so many reads take one pair of readings of the counter, and its granularity
/// counts a hundredth.
inline constexpr std::uint64_t kBatchReads = 100;

struct CounterBenchOptions {
    std::uint64_t reads = 10'000;  ///< samples of each read; 1 to 1 000 000
    /// Leave the module parameters of KVM as they are: what needs another value is not run.
    bool keep_parameters = false;
    /// A guest that takes no sample for so long is given up.
    std::uint64_t stall_limit_ms = 30'000;
    /// Told of each series before it begins.
    std::function<void(std::string_view)> progress;
};

/// Whether a read stays in the guest.
enum class ReadPath : std::uint8_t {
    kNothing,  ///< no read: what the measurement itself costs
    kNative,   ///< without leaving the guest
    kTrapped,  ///< by an exit to the hypervisor
};
std::string_view name(ReadPath path);  ///< "nothing", "native", "trapped"

/// What one way to read a clock cost, in ticks of the guest's counter.
struct ReadCost {
    SampleStatistics samples;  ///< each: one read between two ordered readings of the counter
    SampleStatistics batches;  ///< each: kBatchReads reads, back to back, in a loop
    /// The vCPU's exits meanwhile, setup included; none where this kernel does not count them.
    std::optional<std::uint64_t> exits;
    std::uint64_t backward = 0;  ///< samples that read less than the one before
};

/// One way to read a clock.
struct CounterRead {
    std::string_view id;     ///< stable, for JSON: "tsc_forced"
    std::string_view clock;  ///< "TSC", "kvmclock", "virtual counter", "physical counter"
    std::string_view how;    ///< "RDTSC in ring 3"
    ReadPath path = ReadPath::kNothing;
    /// The id of the empty read at the same privilege: what of the cost is not the read's.
    std::string_view nothing;
    state::Result<ReadCost> cost;
};

/// One fact of the host, for people and JSON.
struct HostFact {
    std::string_view id;
    std::string_view title;
    std::string value;
};

/// How the guest's counter ran while the guest executed known numbers of instructions of three
/// kinds, the quickest of several runs of each.
struct InstructionClock {
    std::array<std::uint64_t, 3> instructions{};
    std::array<std::uint64_t, 3> ticks{};
    /// Where instructions of every kind took 2^shift ns within 1/1000 and 2 ticks: an emulator that
    /// counts instructions (QEMU's -icount), and no processor. Then ticks are instructions.
    std::optional<unsigned> shift;

    /// 1000 x instructions in `ticks`/`denominator` ticks, rounded to the nearest, by the rate that
    /// was seen. Domain: shift has a value; ticks < 2^60, denominator from 1 to 2^20.
    std::uint64_t nearest_milli_instructions(std::uint64_t ticks_taken,
                                             std::uint64_t denominator) const;
};

/// What the guest's series of method kInstructions says: `ticks` as counter_bench_abi.h has them.
/// kGuest for another number of them, or for a longer run that took no longer.
state::Result<InstructionClock> instruction_clock(std::span<const std::uint64_t> ticks,
                                                  time::Hz counter);

struct CounterBench {
    std::vector<HostFact> host;
    time::Hz counter;  ///< the guest's, as KVM (x86-64) or the guest itself (arm64) has it
    std::uint64_t reads = 0;
    InstructionClock instructions;
    std::vector<CounterRead> series;
};

/// Runs every series that this architecture has, each in a VM of its own with one vCPU. Blocks for
/// some seconds. Fails as a whole only where no VM can be run; a series that cannot is one with an
/// Error. May switch KVM's module parameter force_emulation_prefix on for one series and back
/// (options.keep_parameters), with SIGINT, SIGTERM and SIGHUP held off meanwhile.
state::Result<CounterBench> run_counter_bench(const kvm::System& system,
                                              const CounterBenchOptions& options = {});

/// Ticks of one median read of a series above the median of the empty series, in units of
/// 1/kBatchReads tick; 0 where it was not above. nullopt where one of them was not run.
std::optional<std::uint64_t> net_batch_ticks(const CounterBench& bench, const CounterRead& read);

}  // namespace continuo::vmm
