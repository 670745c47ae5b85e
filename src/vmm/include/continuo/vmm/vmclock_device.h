// The vmclock device of a VM: a page in guest memory with a mapping from the guest's counter to TAI
// (abi/vmclock.h), kept by readings of the host's clocks while the VM runs (abi/vmclock_host.h).
// How the guest finds the page, and what a notification is, is the board's.
// docs/formats/vmclock.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "continuo/abi/vmclock_host.h"
#include "continuo/kvm/host.h"
#include "continuo/kvm/memory.h"
#include "continuo/machine/machine.h"
#include "continuo/state/error.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::vmm {

/// What of the device a VM's state carries.
struct VmclockDeviceState {
    std::uint64_t page = 0;  ///< GPA
    abi::VmclockState clock;
    friend bool operator==(const VmclockDeviceState&, const VmclockDeviceState&) = default;
};

/// How the guest's counter comes from the host's; the page has no time without.
struct VmclockCounter {
    time::TscMap map{0};
    time::Hz host = *time::Hz::from_hz(time::kNanosPerSecond);
    time::Hz guest = *time::Hz::from_hz(time::kNanosPerSecond);
};

/// vCPU 0's, of a machine that stands still; none where the kernel does not say how it comes, or is
/// known to say something else than it does. A guest that writes its TSC later makes the page
/// wrong.
state::Result<std::optional<VmclockCounter>> vmclock_counter(machine::Machine& clocks);

/// What the host knows of it.
struct VmclockStatus {
    abi::vmclock_abi page{};
    abi::VmclockCounts counts;  ///< since the VM came to this process
    std::int64_t step_ns = 0;   ///< of the reading that was last doubted
};

/// Any method, any thread, except where noted.
class VmclockDevice {
  public:
    /// What the device reaches of its VM and its host.
    struct Wiring {
        kvm::GuestMemory& memory;
        std::function<void(std::uint64_t gpa)> mark_dirty;
        std::function<void()> interrupt;
        /// The host's clocks now, where its counter has that frequency.
        std::function<state::Result<kvm::DisciplinedAnchor>(time::Hz)> read_clocks =
            &kvm::disciplined_tai_anchor;
    };
    /// How often the host's clocks are looked at; how often the page is written is the page's.
    static constexpr std::chrono::milliseconds kPeriod{1000};

    /// For a guest that starts, with its page at `state.page`, or one that comes from elsewhere
    /// with its memory; writes nothing yet. kMalformed where that is not a whole page of memory.
    static state::Result<std::unique_ptr<VmclockDevice>> create(Wiring wiring,
                                                                const VmclockDeviceState& state);

    /// The guest starts: writes the page, with the time where `counter` is known. No vCPU runs.
    state::Status start(const std::optional<VmclockCounter>& counter);
    /// The guest goes on after its counter was disturbed: the marker is raised, and the generation
    /// is `generation` where it was made of a snapshot. On top of what stood when the guest last
    /// ran, or came: may be called again before it runs, and then the last call counts. No vCPU
    /// runs.
    state::Status disrupt(const std::optional<VmclockCounter>& counter,
                          std::optional<std::uint64_t> generation);
    /// The notification of that: before the first vCPU enters.
    void announce();

    /// Looks at the host's clocks where that is due, and keeps the page. Only while the VM runs.
    state::Result<abi::VmclockHost::Change> tend();

    /// Writes nothing. The VM is stopped.
    VmclockDeviceState save();
    VmclockStatus status() const;

  private:
    using Clock = std::chrono::steady_clock;

    VmclockDevice(Wiring wiring, const VmclockDeviceState& state);
    state::Result<std::optional<abi::VmclockSample>> sample() const;
    void write();

    Wiring wiring_;
    mutable std::mutex mutex_;
    std::uint64_t page_;
    abi::VmclockState before_;  ///< what disrupt() begins at
    abi::VmclockHost host_;
    std::optional<VmclockCounter> counter_;
    Clock::time_point next_look_{};
};

}  // namespace continuo::vmm
