// A VM that runs until something ends it: a signal, a time, the guest, or a migration away; and the
// commands that reach it through its control socket meanwhile.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "continuo/state/json.h"
#include "continuo/vmm/kvm_migration.h"
#include "continuo/vmm/migration.h"
#include "control.h"
#include "guest_console.h"
#include "local_host.h"

namespace continuo::cli {

/// Makes SIGINT and SIGTERM end run_vm() instead of the process, and a file that may not grow an
/// error of who writes it. Not undone.
void end_vms_by_signals();

/// Why a VM does not run here any more.
enum class VmEnd : std::uint8_t {
    kTime,       ///< it ran as long as it was to
    kSignal,     ///< SIGINT or SIGTERM
    kStopped,    ///< told so through the control socket
    kMovedAway,  ///< it runs elsewhere
    kGuest,      ///< the guest wrote its exit code
    kPowerOff,   ///< the guest switched its machine off
    kReset,      ///< the guest reset its machine, and nobody was to start it again
};
std::string_view name(VmEnd end);

struct VmRun {
    VmEnd end{};
    /// Holds the VM, stopped; none once it has moved away.
    std::unique_ptr<vmm::KvmSourceVm> vm;
    std::optional<vmm::MigrationStats> stats;  ///< of the migration away
    std::uint32_t resets = 0;                  ///< how often the guest was started again
};

struct RunOptions {
    const ControlServer* control = nullptr;  ///< none: no commands
    std::optional<std::chrono::nanoseconds> run_for;
    GuestConsole console;
    /// Makes the machine as it was switched on, for a guest that resets it; none: it ends then.
    std::function<state::Result<std::unique_ptr<vmm::VirtualMachine>>()> start_again;
};

/// Limits of `send` where the request has none.
inline constexpr std::uint64_t kDowntimeLimitNs = 50'000'000;
inline constexpr std::uint64_t kDowntimeLimitNsMost = 24ull * 3600 * 1'000'000'000;
inline constexpr std::uint64_t kRounds = 30;
inline constexpr std::uint64_t kRoundsMost = 900;  ///< the destination takes no 1000

/// Confines the calling thread for good (Confinement::kControl), then
/// serves control socket and console while `machine` runs. kGuest or kKernel where a vCPU could not
/// go on.
state::Result<VmRun> run_vm(const LocalHost& host, std::unique_ptr<vmm::VirtualMachine> machine,
                            RunOptions options);

state::Json stats_json(const vmm::MigrationStats& stats);
/// What the witness in the VM has seen so far; null where the guest is no witness. Exact where the
/// VM is stopped.
state::Json witness_json(vmm::VirtualMachine& machine);

}  // namespace continuo::cli
