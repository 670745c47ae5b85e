// The GICv3 that KVM emulates (Documentation/virt/kvm/devices/arm-vgic-v3.rst): made, saved and
// loaded. No ITS, and so no LPIs.
#pragma once

#include <cstdint>
#include <optional>

#include "continuo/kvm/device.h"
#include "continuo/vmm/arm64_state.h"

namespace continuo::vmm::arm64 {

class Gic {
  public:
    /// Before the first vCPU.
    static state::Result<Gic> create(const kvm::Vm& vm);
    /// Puts it where arm64_board.h says. After the last vCPU.
    state::Status initialise();

    /// Of a stopped VM. `vcpus` is their number.
    state::Result<GicState> save(std::uint32_t vcpus) const;
    /// Into a VM whose vCPUs have not run.
    state::Status load(const GicState& state);

  private:
    explicit Gic(kvm::Device device) : device_{std::move(device)} {}
    kvm::Device device_;
};

}  // namespace continuo::vmm::arm64
