// One account held against what was seen after an act; the evidence narrows what it does not know.
#pragma once

#include <string_view>

#include "hypothesis.h"

namespace continuo::differential {

class Comparison {
  public:
    /// `entered`: the first instant at which requests were carried out in this act.
    Comparison(PinnedPlatform& platform, Hypothesis& account, std::uint64_t entered)
        : platform_{platform}, account_{account}, entered_{entered} {}

    /// An act, the model's answer, and the view after it. The account's guest memory is the
    /// kernel's afterwards, so that a ns here is not one more later.
    void compare(const Step& step, const Answer& answer);
    void compare(const View& seen);

    std::uint64_t made() const { return made_; }
    const std::vector<Difference>& differences() const { return differences_; }

  private:
    void equal(std::string_view what, std::uint64_t model, std::uint64_t kernel);
    /// The kernel's is ahead of the model's by low to high.
    bool ahead(std::string_view what, std::uint64_t model, std::uint64_t kernel, std::int64_t low,
               std::int64_t high);
    void compare_answer(const Step& step, const Answer& answer);
    void compare_pairing(const Step& step, const Answer& answer);
    void compare_vcpu(unsigned vcpu, const VcpuView& model, const VcpuView& kernel);
    void compare_page(unsigned vcpu, bool other, const abi::pvclock_vcpu_time_info& kernel);
    void compare_hidden_adjust(unsigned vcpu, const VcpuView& kernel);
    void compare_clock(const View& seen);
    void compare_stable_clock(const View& seen, const abi::kvm_clock_data& model);
    void compare_unstable_clock(const View& seen);
    void compare_wall(const View& model, const View& seen);
    std::int64_t line_error() const;
    bool entered(unsigned vcpu) const;
    std::uint64_t catch_up_error(unsigned vcpu) const;

    PinnedPlatform& platform_;
    Hypothesis& account_;
    std::uint64_t entered_;
    const Step* step_ = nullptr;
    std::uint64_t made_ = 0;
    std::vector<Difference> differences_;
};

}  // namespace continuo::differential
