// A small real VM on KVM: memory, the architecture's board (board.h), and one thread for each vCPU.
// Knows how to stop all vCPUs without losing a kick, to let them all enter the guest at one value
// of the host's counter, and nothing of clocks: those belong to machine/ and kvm/. No firmware, and
// no devices but the board's; runs what witness.h or guest_kernel.h loads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "continuo/kvm/memory.h"
#include "continuo/kvm/system.h"
#include "continuo/kvm/vcpu.h"
#include "continuo/kvm/vm.h"
#include "continuo/time/point.h"
#include "continuo/vmm/board.h"
#include "continuo/vmm/console.h"
#include "continuo/vmm/cpu_model.h"

namespace continuo::vmm {

using state::Result;
using state::Status;
using HostCount = time::Count<time::HostCounter>;

inline constexpr std::uint32_t kVcpusMax = 64;
inline constexpr std::uint64_t kMemoryMin = 4ull << 20;

/// kInvalidArgument where a field is outside its domain: 1..64 vCPUs, 4 MiB to
/// kMemoryMax (board.h) in whole pages.
Status check(const VmConfig& config);

/// How the vCPUs passed the gate of a resume.
struct GateReport {
    std::uint32_t vcpus = 0;            ///< vCPUs that passed
    std::uint32_t late = 0;             ///< of them, those that arrived when it was open already
    std::int64_t worst_past_ticks = 0;  ///< host ticks from the gate's value to the last KVM_RUN
};

/// How a guest ended by itself.
enum class GuestEnd : std::uint8_t {
    kExit,      ///< it wrote its exit code; it may run on
    kPowerOff,  ///< it switched its machine off
    kReset,     ///< it reset its machine, or a vCPU shut down, which on a PC comes to the same
};

/// One VM. Stopped after creation. All calls come from one control thread, except where noted.
class VirtualMachine {
  public:
    /// Creates the VM with its memory and vCPUs, stopped, registers at reset. What check() and
    /// check_cpu_model() say; kKernel where the kernel has no more memory, VMs or threads.
    static Result<std::unique_ptr<VirtualMachine>> create(
        const kvm::System& system, const VmConfig& config, const CpuModel& model,
        CounterControl control = CounterControl::kExact);
    /// The same with host_cpu_model().
    static Result<std::unique_ptr<VirtualMachine>> create(const kvm::System& system,
                                                          const VmConfig& config);
    /// Stops the vCPUs, ends their threads, destroys the VM.
    ~VirtualMachine();
    VirtualMachine(const VirtualMachine&) = delete;
    VirtualMachine& operator=(const VirtualMachine&) = delete;

    const VmConfig& config() const { return config_; }
    const CpuModel& cpu_model() const { return model_; }
    Board& board() { return board_; }
    kvm::Vm& vm() { return *vm_; }
    kvm::GuestMemory& memory() { return *memory_; }
    std::vector<kvm::Vcpu>& vcpus() { return vcpus_; }

    bool running() const { return running_; }

    /// Lets all vCPUs enter the guest now. Nothing where they run already.
    Status resume();
    /// Lets all vCPUs enter when the host's counter reads `gate`. Comes back at once; gate_report()
    /// tells later how well it went. A gate that is past opens at once.
    Status resume_at(HostCount gate);
    /// Has all vCPUs leave guest mode; when it returns, none runs, their register state is complete
    /// (a port access half done has been finished) and can be saved. kTimeout after 10 s.
    Status stop();
    /// What happened at the gate of the last resume; complete once `vcpus` is config().vcpus.
    GateReport gate_report() const;

    /// Runs `job` on the vCPU's own thread and waits for it. Precondition: stopped. For what must
    /// not change a vCPU's thread (up to Linux 6.12 that costs the next KVM_RUN an RCU grace
    /// period, some 20 ms, and a scheduled resume would be late by it).
    Status on_vcpu_thread(std::uint32_t vcpu, const std::function<Status(kvm::Vcpu&)>& job);
    /// The same for all vCPUs at once, each on its thread; the first failure.
    Status on_all_vcpu_threads(const std::function<Status(kvm::Vcpu&)>& job);

    /// kGuest or kKernel where a vCPU faulted, shut down, or could not be run. It stays stopped
    /// while the others run. Any thread.
    Status health() const;
    /// What the guest printed and nobody took. Any thread.
    std::string console() const { return console_.text(); }
    /// The same, and it is taken: a guest that prints much waits for this. Any thread.
    std::string take_console();
    /// As if typed at the guest's console: how many bytes there was room for. Any thread.
    std::size_t type(std::span<const std::byte> bytes) { return board_.type(bytes); }
    /// What the guest wrote to the exit port, if it did. Any thread.
    std::optional<std::uint32_t> exit_code() const;
    /// How the guest ended, if it did. The vCPU that switched off or reset stands still, others may
    /// run until stop(). A vCPU that shut down is a failure of health() as well. Any thread.
    std::optional<GuestEnd> ended() const;
    /// A descriptor that poll() finds readable once there is something new of the above, until
    /// clear_attention(). Any thread.
    int attention_fd() const { return attention_.get(); }
    void clear_attention();

    /// Switches the dirty log of all memory on or off.
    Status log_dirty_pages(bool on);
    /// Says that the host has written into the page at `gpa`, which KVM's log does not see. Any
    /// thread.
    void mark_dirty(std::uint64_t gpa);
    /// Pages dirtied since the last call (or since the log was switched on), by the guest, by KVM
    /// or as marked: one bit each.
    Status fetch_dirty_pages(std::vector<std::uint64_t>& bitmap);

  private:
    enum class Phase : std::uint8_t { kStopped, kRun, kJob, kQuit };
    enum class Gate : std::uint8_t { kNotPassed, kInTime, kLate };
    struct Runner {
        std::thread thread;
        std::condition_variable commanded;
        std::uint64_t seen = 0;  ///< command that this thread has taken
        std::atomic<std::int64_t> past_gate_ticks{0};
        std::atomic<Gate> gate{Gate::kNotPassed};
        Status job_result{};
    };

    VirtualMachine() = default;
    Status set_up(const kvm::System& system, CounterControl control);
    Status start_threads();
    void thread_main(std::uint32_t index);
    void run_guest(std::uint32_t index, std::optional<HostCount> gate);
    bool run_once(std::uint32_t index);
    bool handle_exit(std::uint32_t index);
    bool handle_access(std::uint32_t index, const DeviceAccess& access);
    void set_end(GuestEnd end);
    std::int64_t pass_gate(HostCount gate) const;
    Status command_run(std::optional<HostCount> gate);
    Status run_jobs(std::optional<std::uint32_t> only,
                    const std::function<Status(kvm::Vcpu&)>& job);
    void set_failure(state::Error error);
    void kick_all();
    void draw_attention();

    VmConfig config_;
    CpuModel model_;
    kvm::Fd attention_;
    Console console_{[this] { draw_attention(); }};
    std::optional<kvm::GuestMemory> memory_;
    std::optional<kvm::Vm> vm_;
    Board board_;
    std::vector<kvm::Vcpu> vcpus_;
    std::vector<Runner> runners_;
    bool running_ = false;

    mutable std::mutex mutex_;
    std::condition_variable done_;
    Phase phase_ = Phase::kStopped;
    std::uint64_t command_ = 0;
    std::atomic<bool> stop_wanted_{false};
    std::optional<HostCount> gate_;
    const std::function<Status(kvm::Vcpu&)>* job_ = nullptr;
    std::uint32_t busy_ = 0;
    std::vector<std::uint64_t> marked_pages_;
    std::optional<state::Error> failure_;
    std::optional<std::uint32_t> exit_code_;
    std::optional<GuestEnd> end_;
};

}  // namespace continuo::vmm
