// The host's side of the witness guest: loads it into a VM (tables, registers: there is no
// firmware), tells it what to do, and reads what it saw.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "continuo/state/plan.h"
#include "continuo/vmm/virtual_machine.h"
#include "continuo/vmm/witness_abi.h"

namespace continuo::vmm {

struct WitnessConfig {
    /// x86-64: watch from ring 3, as applications read clocks; else from ring 0. On software KVMs
    /// that emulate kernel code ring 3 is thousands of times faster. arm64: always EL1.
    bool user_mode = true;
    /// x86-64: timer interrupts on each vCPU; TSC-deadline where CPUID has it, else periodic.
    /// arm64: none, the VM has no interrupt controller.
    bool timer = true;
    std::uint64_t timer_period_ns = 10'000'000;
    /// Pages that each vCPU dirties in a second, and of how many.
    std::uint64_t dirty_pages_a_second = 0;
    std::uint64_t workload_pages_a_vcpu = 64;
    /// x86-64: other vCPUs' clock pages that each vCPU reads in each of its loops.
    std::uint32_t cross_pages_a_loop = 3;
};

/// The payload as built.
std::span<const std::byte> witness_image();

/// Writes the witness and its tables into a stopped VM's memory and sets all vCPUs' registers to
/// its entry. kInvalidArgument where the memory has no room for the workload.
Status load_witness(VirtualMachine& machine, const WitnessConfig& config);

/// What one vCPU wrote. kGuest where the memory holds no witness. Exact where the VM is stopped.
Result<witness::Report> witness_report(const kvm::GuestMemory& memory, std::uint32_t vcpu);
Result<std::vector<witness::Report>> witness_reports(const kvm::GuestMemory& memory,
                                                     std::uint32_t vcpus);

/// Raises the epoch and answers the new one. Call it with the VM stopped, before each resume whose
/// first readings are wanted.
Result<std::uint64_t> raise_epoch(VirtualMachine& machine);
/// The record of an epoch; nullopt where the vCPU has not completed it (it has not run long
/// enough), or has since overwritten it.
std::optional<witness::EpochRecord> epoch_record(const witness::Report& report,
                                                 std::uint64_t epoch);

/// The witness's notice as it stands; nullopt where the guest is no witness.
Result<std::optional<witness::Notice>> read_notice(const kvm::GuestMemory& memory);
/// Tells the witness of a gap, on top of what was pending in `before`, with which it may be called
/// again: the last call counts. The VM is stopped.
Status publish_notice(VirtualMachine& machine, const witness::Notice& before,
                      const state::Notice& notice, std::uint64_t bound_ns);

/// Tells the witness which life of its snapshot this is; with the next epoch. The VM is stopped.
Status set_generation(VirtualMachine& machine, std::uint64_t counter);

/// Has the workload go on at another rate; at once, also while the VM runs.
Status set_dirty_rate(VirtualMachine& machine, std::uint64_t pages_a_second);

/// What all vCPUs saw together.
struct WitnessSummary {
    std::uint64_t loops = 0;
    std::uint64_t backward_steps = 0;  ///< of any clock, own or across vCPUs
    std::uint64_t worst_backward_counter = 0;
    std::uint64_t worst_backward_clock = 0;
    std::uint64_t worst_cross_skew = 0;  ///< ns between vCPUs' pages; arm64: ticks between counters
    std::uint64_t ticks = 0;
    std::uint64_t guest_stopped = 0;
    std::uint64_t pages_written = 0;
    /// 0: it was never restored from a snapshot. none: the vCPUs do not say the same.
    std::optional<std::uint64_t> generation;
};
WitnessSummary summarise(std::span<const witness::Report> reports);

/// Holds the workload's pages against what each vCPU says it wrote. The VM is stopped. Answers the
/// number of pages checked; kIntegrity with the GPA of the first word that is wrong.
Result<std::uint64_t> verify_workload(const kvm::GuestMemory& memory, std::uint32_t vcpus);

}  // namespace continuo::vmm
