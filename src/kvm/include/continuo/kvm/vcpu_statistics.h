// KVM's own counts of what a vCPU did (KVM_GET_STATS_FD, Linux 5.14 and later): evidence, from the
// kernel, of whether something that a guest does leaves it. Kernel API: Documentation/virt/kvm/
// api.rst, 4.133. The same counts stand in debugfs, which not every host mounts.
#pragma once

#include <cstdint>
#include <string_view>

#include "continuo/kvm/vcpu.h"

namespace continuo::kvm {

/// One scalar of a vCPU's statistics, such as "exits": how often the vCPU came out of guest mode.
class VcpuStatistic {
  public:
    /// kUnsupported where this kernel has no binary statistics, or none of this name.
    static Result<VcpuStatistic> open(const Vcpu& vcpu, std::string_view name);

    /// The value now. Any thread.
    Result<std::uint64_t> read() const;

  private:
    VcpuStatistic(Fd fd, std::uint64_t offset) : fd_{std::move(fd)}, offset_{offset} {}
    Fd fd_;
    std::uint64_t offset_;
};

}  // namespace continuo::kvm
