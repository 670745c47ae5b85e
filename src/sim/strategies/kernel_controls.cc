// By the kernel's own idempotent controls: the TSC offset as the kernel documents its use (S2.1,
// S2.2), and the tuple of nanoseconds, TSC and TSC_ADJUST that was proposed (S3.1).
#include "continuo/sim/sides.h"
#include "continuo/time/wide.h"
#include "strategies.h"

namespace continuo::sim {

namespace {

constexpr std::string_view kNoSuchFrequency = "KVM_SET_TSC_KHZ failed";
constexpr std::string_view kNoAttribute = "no KVM_VCPU_TSC_OFFSET";

/// The kernel's documented recipe: kvmclock is carried by REALTIME, and each offset by what
/// kvmclock and the host's counter say of the time that has passed. It adds guest ticks to host
/// ticks, which is right only where both are one.
class OffsetRecipe final : public Strategy {
  public:
    using Strategy::Strategy;
    Done save(SourceSide& source, Saved& saved) const override {
        saved.clock = source.get_clock();
        if ((saved.clock.flags & abi::kKVM_CLOCK_HOST_TSC) == 0)
            return Done::refused("KVM_GET_CLOCK gives no host TSC");
        source.anchored(saved.clock.host_tsc);
        for (unsigned vcpu = 0; vcpu < source.vcpus(); ++vcpu) {
            saved.vcpus[vcpu].tsc_offset = source.read_offset(vcpu);
            saved.vcpus[vcpu].tsc_khz = source.tsc_khz(vcpu);
            saved.vcpus[vcpu].tsc_adjust = source.read_adjust(vcpu);
        }
        saved.vcpu_count = source.vcpus();
        return {};
    }
    Done restore(DestinationSide& destination, const Saved& saved) const override {
        for (unsigned vcpu = 0; vcpu < saved.vcpu_count; ++vcpu) {
            const std::uint32_t khz = saved.vcpus[vcpu].tsc_khz;
            const bool other = khz != destination.tsc_khz(vcpu);
            if (other && !destination.set_tsc_khz(vcpu, khz))
                return Done::refused(kNoSuchFrequency);
        }
        abi::kvm_clock_data set = saved.clock;
        set.flags &= abi::kKVM_CLOCK_REALTIME;
        destination.set_clock(set);
        const abi::kvm_clock_data here = destination.get_clock();
        for (unsigned vcpu = 0; vcpu < saved.vcpu_count; ++vcpu) {
            const Saved::Vcpu& from = saved.vcpus[vcpu];
            if (!destination.write_offset(vcpu, carried(from, saved.clock, here)))
                return Done::refused(kNoAttribute);
            destination.write_adjust(vcpu, from.tsc_adjust);
        }
        return {};
    }

  private:
    /// ofs_dst = ofs_src - (guest_src - guest_dst) * freq + (tsc_src - tsc_dst)
    static std::uint64_t carried(const Saved::Vcpu& from, const abi::kvm_clock_data& there,
                                 const abi::kvm_clock_data& here) {
        const auto passed_ns = static_cast<std::int64_t>(here.clock - there.clock);
        const auto ticks = static_cast<time::i128>(passed_ns) * from.tsc_khz / 1'000'000;
        return from.tsc_offset + time::wrap_u64(ticks) + (there.host_tsc - here.host_tsc);
    }
};

/// The kernel itself carries the tuple, at the first entry of each vCPU.
class PreciseTuple final : public Strategy {
  public:
    using Strategy::Strategy;
    void require(model::KernelRules& rules) const override { rules.precise_tuple = true; }
    Done save(SourceSide& source, Saved& saved) const override {
        source.anchored_now();
        for (unsigned vcpu = 0; vcpu < source.vcpus(); ++vcpu) {
            const auto state = source.tsc_state(vcpu);
            saved.vcpus[vcpu].tsc = state.tsc;
            saved.vcpus[vcpu].nanoseconds = state.nsec;
            saved.vcpus[vcpu].tsc_adjust = static_cast<std::int64_t>(state.tsc_adjust);
            saved.vcpus[vcpu].tsc_khz = source.tsc_khz(vcpu);
        }
        saved.vcpu_count = source.vcpus();
        saved.clock = source.get_clock();
        return {};
    }
    Done restore(DestinationSide& destination, const Saved& saved) const override {
        for (unsigned vcpu = 0; vcpu < saved.vcpu_count; ++vcpu) {
            const Saved::Vcpu& from = saved.vcpus[vcpu];
            const bool other = from.tsc_khz != destination.tsc_khz(vcpu);
            if (other && !destination.set_tsc_khz(vcpu, from.tsc_khz))
                return Done::refused(kNoSuchFrequency);
            destination.set_tsc_state(vcpu, from);
        }
        abi::kvm_clock_data set = saved.clock;
        set.flags &= abi::kKVM_CLOCK_REALTIME;
        destination.set_clock(set);
        return {};
    }
};

/// Host writes of TSC and TSC_ADJUST mean what they say (S3.2), and each is carried by the time
/// that the VMM itself has measured since: value-based, without the kernel's heuristics.
class HostAccessQuirk final : public Strategy {
  public:
    using Strategy::Strategy;
    void require(model::KernelRules& rules) const override { rules.host_access_quirk = true; }
    Done save(SourceSide& source, Saved& saved) const override {
        source.anchored_now();
        for (unsigned vcpu = 0; vcpu < source.vcpus(); ++vcpu) {
            saved.vcpus[vcpu].tsc_khz = source.tsc_khz(vcpu);
            saved.vcpus[vcpu].tsc = source.read_tsc(vcpu);
            saved.vcpus[vcpu].tsc_adjust = source.read_adjust(vcpu);
        }
        saved.vcpu_count = source.vcpus();
        saved.clock = source.get_clock();
        return {};
    }
    Done restore(DestinationSide& destination, const Saved& saved) const override {
        for (unsigned vcpu = 0; vcpu < saved.vcpu_count; ++vcpu) {
            const Saved::Vcpu& from = saved.vcpus[vcpu];
            const bool other = from.tsc_khz != destination.tsc_khz(vcpu);
            if (other && !destination.set_tsc_khz(vcpu, from.tsc_khz))
                return Done::refused(kNoSuchFrequency);
            // The register first: with the quirk its write moves the counter by what it changes.
            destination.write_adjust(vcpu, from.tsc_adjust);
            destination.write_tsc(vcpu, from.tsc);
        }
        abi::kvm_clock_data set{};
        set.clock = saved.clock.clock;
        destination.set_clock(set);
        return {};
    }
};

const OffsetRecipe kOffset{"offset-attribute", "S2.2",
                           "KVM_VCPU_TSC_OFFSET by the kernel's documented recipe",
                           Promise::kAdvances};
const PreciseTuple kTuple{"precise-tuple", "S3.1",
                          "nanoseconds, TSC and TSC_ADJUST of one instant, in force at the entry",
                          Promise::kAdvances};
const HostAccessQuirk kQuirk{"host-access-quirk", "S3.2",
                             "by value, without the kernel's synchronisation heuristics",
                             Promise::kFreezes};

}  // namespace

std::array<const Strategy*, 3> kernel_control_strategies() {
    return {&kOffset, &kTuple, &kQuirk};
}

}  // namespace continuo::sim
