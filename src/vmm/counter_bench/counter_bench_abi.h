// The memory that the counter benchmark's guest and its host share: what to read and how often, and
// what came of it. Compiled into the guest as well (freestanding), so it includes nothing but
// fixed-width integers. The guest is entered like the witness (witness_abi.h): control at kControl,
// the report of its only vCPU at kReports.
#pragma once

#include <cstddef>
#include <cstdint>

namespace continuo::vmm::counter_bench {

inline constexpr std::uint64_t kMagic = 0x434e4542544e4f43;  ///< "CONTBENC"

/// One way to read a clock. A guest knows those of its own architecture.
enum class Method : std::uint32_t {
    kNothing = 0,       ///< the brackets and loops alone
    kInstructions = 1,  ///< no clock: runs of known numbers of instructions (kMix...)
    kTsc = 2,           ///< RDTSC
    kTscForced = 3,     ///< RDTSC behind KVM's forced-emulation prefix
    kTscMsr = 4,        ///< RDMSR of IA32_TSC
    kKvmclockPage = 5,  ///< the vCPU's page and RDTSC
    kKvmclockMsr = 6,   ///< WRMSR of the system time MSR, then the page's system_time
    kVirtualCounter = 7,
    kPhysicalCounter = 8,
};

/// What the host asks for.
struct Control {
    std::uint64_t magic;
    Method method;
    std::uint32_t user_mode;  ///< 1: ring 3 (x86-64)
    std::uint64_t reads;      ///< samples, each a read between two readings of the counter
    std::uint64_t batches;    ///< runs of batch_reads reads, back to back
    std::uint64_t batch_reads;
    std::uint64_t samples_gpa;  ///< reads words: counter ticks
    std::uint64_t batches_gpa;  ///< batches words: counter ticks
};
static_assert(offsetof(Control, method) == 8 && offsetof(Control, user_mode) == 12 &&
              offsetof(Control, reads) == 16 && offsetof(Control, batches) == 24 &&
              offsetof(Control, batch_reads) == 32 && offsetof(Control, samples_gpa) == 40 &&
              offsetof(Control, batches_gpa) == 48 && sizeof(Control) == 56);

/// What the guest says beside the samples.
struct Report {
    std::uint64_t magic;        ///< kMagic once it runs
    std::uint64_t done;         ///< 1 when all is written
    std::uint64_t progress;     ///< samples and batches so far
    std::uint64_t counter_hz;   ///< CNTFRQ_EL0; 0 on x86-64
    std::uint64_t first_value;  ///< of the clock that was read
    std::uint64_t last_value;
    std::uint64_t backward;      ///< samples with a value below the one before
    std::uint64_t outside;       ///< samples with a value outside the counter's two readings
    std::uint64_t fault_vector;  ///< 0 none, else the exception's vector plus 1
    std::uint64_t fault_error;
    std::uint64_t fault_address;
};
static_assert(offsetof(Report, done) == 8 && offsetof(Report, progress) == 16 &&
              offsetof(Report, counter_hz) == 24 && offsetof(Report, first_value) == 32 &&
              offsetof(Report, last_value) == 40 && offsetof(Report, backward) == 48 &&
              offsetof(Report, outside) == 56 && offsetof(Report, fault_vector) == 64 &&
              offsetof(Report, fault_error) == 72 && offsetof(Report, fault_address) == 80 &&
              sizeof(Report) == 88);

// Method::kInstructions fills samples_gpa with kMixes x 2 x kMixRepeats words: for each mix the
// ticks of its short runs, then of its long ones. The runs of a mix differ by exactly kMixLoops
// turns of its loop, so by kMixLoops x kMixInstructions[mix] instructions.
inline constexpr std::uint32_t kMixes = 3;
inline constexpr std::uint32_t kMixRepeats = 16;
inline constexpr std::uint64_t kMixLoops = 10'000;
/// An empty loop; 16 NOPs a turn; 8 multiplications a turn that wait for each other: a processor
/// that takes its own time needs a different time for an instruction of each.
inline constexpr std::uint64_t kMixInstructions[kMixes] = {2, 18, 10};

}  // namespace continuo::vmm::counter_bench
