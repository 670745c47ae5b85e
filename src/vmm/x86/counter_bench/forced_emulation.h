// KVM's module parameter force_emulation_prefix (Linux 5.19 and later can change it at run time),
// switched on for as long as an object lives. A guest can then have single instructions emulated,
// by UD2 and "kvm" before them: the only way to have KVM on x86-64 intercept a guest's RDTSC.
#pragma once

#include <csignal>
#include <string>

#include "continuo/state/error.h"

namespace continuo::vmm::counter_bench {

class ForcedEmulation {
  public:
    /// Switches it on where it is off. With `keep`, only finds out whether it is on. kUnsupported
    /// where the kernel has no such parameter or it cannot be switched on. Until this object's end
    /// SIGINT, SIGTERM and SIGHUP wait, so that the host does not keep the parameter.
    static state::Result<ForcedEmulation> switch_on(bool keep);
    ForcedEmulation(ForcedEmulation&& other) noexcept;
    ForcedEmulation& operator=(ForcedEmulation&&) = delete;
    /// Puts the old value back.
    ~ForcedEmulation();

  private:
    ForcedEmulation() = default;

    std::string old_value_;  ///< empty: nothing is to be put back
    sigset_t mask_before_{};
    bool holds_signals_ = false;
};

}  // namespace continuo::vmm::counter_bench
