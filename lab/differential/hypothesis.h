// One account of what the kernel did so far: a model's VM in the state that follows from it, and
// what remains unknown, as intervals that the evidence narrows.
#pragma once

#include <algorithm>
#include <array>

#include "judge.h"
#include "model_vm.h"

namespace continuo::differential {

/// A platform whose readings are of an instant that the judge sets.
class PinnedPlatform final : public model::Platform {
  public:
    explicit PinnedPlatform(const HostFacts& host) : khz_{host.khz} {
        raw_ = model::KernelLine::of_khz(host.khz);
        raw_.counter = host.boot_ticks;
        real_ = raw_;
    }
    std::uint64_t tsc(unsigned /*cpu*/) override { return now; }
    std::int64_t base_ns(std::uint64_t tsc) override { return raw_.at(tsc); }
    std::int64_t realtime_ns(std::uint64_t tsc) override { return real_.at(tsc); }
    std::int64_t base_now_ns(unsigned /*cpu*/) override { return raw_.at(now + clock_late); }
    bool tsc_clocksource() override { return true; }
    std::uint32_t tsc_khz() override { return khz_; }
    bool tsc_unstable() override { return false; }

    /// REALTIME was this at this counter value, within so many ns.
    void anchor_realtime(std::uint64_t tsc, std::int64_t ns, std::int64_t error_ns) {
        real_.counter = tsc;
        real_.ns = ns;
        real_error_ns_ = error_ns;
    }
    /// How wrong realtime_ns() may be: NTP steers it by less than 100 ppm here.
    std::int64_t realtime_error_ns(std::uint64_t tsc) const {
        const auto away = static_cast<std::int64_t>(tsc - real_.counter);
        return real_error_ns_ + kReadingErrorNs +
               ns(static_cast<std::uint64_t>(std::abs(away))) / 10'000;
    }
    /// Ticks in ns, rounded up.
    std::int64_t ns(std::uint64_t ticks) const {
        return static_cast<std::int64_t>(static_cast<time::u128>(ticks) * 1'000'000 / khz_) + 1;
    }
    std::uint64_t ticks(std::int64_t ns) const {
        return static_cast<std::uint64_t>(static_cast<time::i128>(ns) * khz_ / 1'000'000) + 1;
    }

    std::uint64_t now = 0;
    std::uint64_t clock_late = 0;  ///< ticks from a counter's reading to the clock's beside it

  private:
    std::uint32_t khz_;
    model::KernelLine raw_;
    model::KernelLine real_;
    std::int64_t real_error_ns_ = 0;
};

/// What the kernel's value less the model's may be.
struct Unknown {
    std::int64_t low = 0;
    std::int64_t high = 0;
    bool allows(std::int64_t from, std::int64_t to) const { return to >= low && from <= high; }
    /// It was seen to be in [from, to].
    void narrow(std::int64_t from, std::int64_t to) {
        low = std::clamp(from, low, high);
        high = std::clamp(to, low, high);
    }
};

struct Hypothesis {
    ModelVm vm;
    Unknown kvmclock_ns;  ///< of kvmclock's line
    /// The offset of a vCPU whose counter catches up follows from a clock that was read at a hidden
    /// instant: what the kernel's is ahead of the model's, ticks, and how sure that is.
    std::array<std::uint64_t, kVcpusMax> offset_ahead{};
    std::uint64_t generation_width = 0;  ///< of the bracket in which the generation began
    std::uint64_t sample_width = 0;      ///< of the one in which the masterclock's sample was taken

    bool catches_up(unsigned vcpu) const { return vm.kvm().vcpu(vcpu).tsc_catchup; }
};

}  // namespace continuo::differential
