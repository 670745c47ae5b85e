// The counter benchmark's guest: reads one clock in one way, and stores how long each read took in
// ticks of the counter that it reads without help. Entered as the witness is, by the same code; the
// instructions that read are the architecture's (reads.h). Nothing of a series is thrown away: the
// pages that samples go to are touched before, so that no sample waits for memory.
#include "counter_bench_abi.h"
#include "reads.h"

using namespace continuo::vmm::counter_bench;

namespace {

void store_release(std::uint64_t& word, std::uint64_t value) {
    __atomic_store_n(&word, value, __ATOMIC_RELEASE);
}

void touch(std::uint64_t gpa, std::uint64_t words) {
    auto* word = reinterpret_cast<volatile std::uint64_t*>(gpa);
    for (std::uint64_t i = 0; i < words; ++i)
        word[i] = 0;
}

/// `reads` times: counter, one read, counter. `Read` has `once()`, the read alone.
template <class Read>
void take_samples(const Control& control, Report& report) {
    auto* samples = reinterpret_cast<std::uint64_t*>(control.samples_gpa);
    std::uint64_t previous = 0;
    for (std::uint64_t i = 0; i < control.reads; ++i) {
        const std::uint64_t before = ordered_counter();
        const std::uint64_t value = Read::once();
        const std::uint64_t after = ordered_counter();
        samples[i] = after - before;
        if (i == 0) report.first_value = value;
        if (i != 0 && value < previous) report.backward = report.backward + 1;
        if (value < before || value > after) report.outside = report.outside + 1;
        previous = value;
        store_release(report.progress, i + 1);
    }
    report.last_value = previous;
}

/// `batches` times: counter, `batch_reads` reads back to back, counter.
template <class Read>
void take_batches(const Control& control, Report& report) {
    auto* batches = reinterpret_cast<std::uint64_t*>(control.batches_gpa);
    for (std::uint64_t i = 0; i < control.batches; ++i) {
        std::uint64_t left = control.batch_reads;
        const std::uint64_t before = ordered_counter();
        do {
            Read::alone();
        } while (--left != 0);
        batches[i] = ordered_counter() - before;
        store_release(report.progress, control.reads + i + 1);
    }
}

template <class Read>
void measure(const Control& control, Report& report) {
    touch(control.samples_gpa, control.reads);
    touch(control.batches_gpa, control.batches);
    take_samples<Read>(control, report);
    take_batches<Read>(control, report);
}

/// The ticks of `turns` turns of one mix.
template <void (*Mix)(std::uint64_t)>
std::uint64_t mix_ticks(std::uint64_t turns) {
    const std::uint64_t before = ordered_counter();
    Mix(turns);
    return ordered_counter() - before;
}

template <void (*Mix)(std::uint64_t)>
std::uint64_t* take_mix(std::uint64_t* into) {
    for (std::uint64_t turns = kMixLoops; turns <= 2 * kMixLoops; turns += kMixLoops)
        for (std::uint32_t i = 0; i < kMixRepeats; ++i)
            *into++ = mix_ticks<Mix>(turns);
    return into;
}

void run_instructions(const Control& control) {
    touch(control.samples_gpa, std::uint64_t{2} * kMixes * kMixRepeats);
    auto* ticks = reinterpret_cast<std::uint64_t*>(control.samples_gpa);
    ticks = take_mix<turns_of_nothing>(ticks);
    ticks = take_mix<turns_of_nops>(ticks);
    take_mix<turns_of_multiplications>(ticks);
}

/// Between two readings, and in a loop, nothing at all.
struct Nothing {
    static std::uint64_t once() { return 0; }
    static void alone() { asm volatile("" ::: "memory"); }
};

}  // namespace

/// At the privilege that a kernel has. Returns 1 where the host wants the reads in ring 3.
extern "C" int witness_setup(Report& report, const Control& control) {
    report.counter_hz = counter_frequency();
    set_up_clock();
    return control.user_mode != 0 ? 1 : 0;
}

extern "C" [[noreturn]] void witness_watch(Report& report, const Control& control) {
    report.magic = kMagic;
    if (control.method == Method::kNothing) {
        measure<Nothing>(control, report);
    } else if (control.method == Method::kInstructions) {
        run_instructions(control);
    } else {
        with_read(control.method, [&]<class Read>(Read) { measure<Read>(control, report); });
    }
    store_release(report.done, 1);
    for (;;)
        relax();
}

extern "C" [[noreturn]] void witness_fault(Report& report, std::uint64_t vector,
                                           std::uint64_t error, std::uint64_t address) {
    report.fault_error = error;
    report.fault_address = address;
    store_release(report.fault_vector, vector + 1);
    for (;;)
        relax();
}
