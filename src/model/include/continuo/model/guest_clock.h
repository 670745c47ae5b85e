// How a guest's kernel makes time of kvmclock: the reader of its pages, with the global maximum
// that stands in where they are not of one line, and the scheduler's clock that begins at its boot.
// Sources: pvclock_clocksource_read() in arch/x86/kernel/pvclock.c, kvm_sched_clock_init() in
// arch/x86/kernel/kvmclock.c.
#pragma once

#include <cstdint>
#include <optional>

#include "continuo/model/kvm_vm.h"

namespace continuo::model {

/// Reads kvmclock on any vCPU of a VM. Lifetime: the VM's, or until rebind().
class KvmclockReader {
  public:
    /// What is done where a page is not of the masterclock.
    enum class Fallback : std::uint8_t {
        /// Nothing.
        kNone,
        /// No read below an earlier one of any vCPU: compare-and-exchange on one global value, as
        /// Linux does it. What was read of stable pages is not in that value.
        kGlobalMaximum,
        /// The same, and reads of stable pages raise the value too: no step where stability is
        /// lost.
        kMaximumOfAll,
    };

    explicit KvmclockReader(KvmVm& vm, Fallback fallback = Fallback::kGlobalMaximum)
        : vm_{&vm}, fallback_{fallback} {}

    /// kvmclock on a vCPU now, ns. Clears GUEST_STOPPED where it stands, and counts it. nullopt:
    /// the page is being written, and a reader would spin; or the guest has none.
    std::optional<std::uint64_t> read(unsigned vcpu);
    /// How often GUEST_STOPPED was seen.
    unsigned stops_seen() const { return stops_seen_; }
    /// The guest goes on on this VM: it was moved.
    void rebind(KvmVm& vm) { vm_ = &vm; }

  private:
    KvmVm* vm_;
    Fallback fallback_;
    std::uint64_t last_ = 0;
    unsigned stops_seen_ = 0;
};

/// The scheduler's clock: kvmclock less what it was at the guest's boot, which is the same number
/// on every vCPU and needs no stable bit (S4.3).
class SchedClock {
  public:
    /// What a kvmclock below the boot's makes of it: 0, or what unsigned arithmetic gives.
    enum class Underflow : std::uint8_t { kGuarded, kWraps };

    /// Boots: reads kvmclock on the boot vCPU, whose page must be readable.
    SchedClock(KvmclockReader& reader, unsigned boot_vcpu, Underflow underflow);

    /// ns since boot on a vCPU now; nullopt as the reader.
    std::optional<std::uint64_t> read(unsigned vcpu);
    std::uint64_t offset() const { return offset_; }

  private:
    KvmclockReader& reader_;
    Underflow underflow_;
    std::uint64_t offset_;
};

}  // namespace continuo::model
