// A limit on the time of a KVM_RUN, for probe guests. Internal to kvm/.
#pragma once

#include <csignal>
#include <ctime>
#include <memory>

#include "continuo/kvm/vcpu_core.h"

namespace continuo::kvm {

/// A limit on the time of one KVM_RUN of the calling thread: a signal that only KVM_RUN lets in,
/// sent by a timer. For hosts on which even a few bytes of guest code do not come back.
class RunLimit {
  public:
    static Result<std::unique_ptr<RunLimit>> create();
    RunLimit(const RunLimit&) = delete;
    RunLimit& operator=(const RunLimit&) = delete;
    ~RunLimit();

    /// KVM_RUN for at most `limit_ms`; kTimeout after that.
    Result<RunEnd> run(VcpuCore& vcpu, int limit_ms) const;

  private:
    RunLimit() = default;
    void drain() const;

    timer_t timer_{};
    bool has_timer_ = false;
    sigset_t mask_before_{};
};

}  // namespace continuo::kvm
