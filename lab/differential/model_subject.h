// The model in the kernel's place: time passes at random inside every call, and nobody is told
// when. Holding the model against this proves the judge, without a kernel.
#pragma once

#include <optional>

#include "continuo/model/random.h"
#include "model_vm.h"

namespace continuo::differential {

class ModelSubject final : public Subject {
  public:
    /// `ticks_max`: at most so long between two readings of a clock inside the kernel.
    ModelSubject(std::uint64_t seed, std::uint32_t khz, const model::KernelRules& rules,
                 std::uint32_t ticks_max);

    Result<Bracket> create() override;
    std::uint64_t now() override;
    std::uint32_t host_khz() const override { return host_.khz; }
    RealtimeAnchor realtime() override;
    Result<Step> perform(const Act& act) override;
    Result<View> look() override;

  private:
    model::Random random_;
    model::HostPlatform host_;
    model::KernelRules rules_;
    std::optional<ModelVm> vm_;
};

}  // namespace continuo::differential
