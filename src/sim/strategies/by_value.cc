// Clocks by value: the guest's TSC is read and written as a number, and runs on between.
#include "continuo/sim/sides.h"
#include "strategies.h"

namespace continuo::sim {

namespace {

/// KVM_GET_MSRS of each vCPU in turn.
void save_counters(SourceSide& source, Saved& saved) {
    source.anchored_now();
    for (unsigned vcpu = 0; vcpu < source.vcpus(); ++vcpu) {
        Saved::Vcpu& to = saved.vcpus[vcpu];
        to.tsc_khz = source.tsc_khz(vcpu);
        to.tsc = source.read_tsc(vcpu);
        to.tsc_adjust = source.read_adjust(vcpu);
    }
    saved.vcpu_count = source.vcpus();
}

/// KVM_SET_TSC_KHZ where the host's is another, KVM_SET_MSRS of each vCPU in turn.
bool restore_counters(DestinationSide& destination, const Saved& saved) {
    for (unsigned vcpu = 0; vcpu < saved.vcpu_count; ++vcpu) {
        const Saved::Vcpu& from = saved.vcpus[vcpu];
        const bool other = from.tsc_khz != destination.tsc_khz(vcpu);
        if (other && !destination.set_tsc_khz(vcpu, from.tsc_khz)) return false;
        const bool zero = destination.world().has(Bug::kWriteZeroTsc);
        destination.write_tsc(vcpu, zero ? 0 : from.tsc);
        destination.write_adjust(vcpu, from.tsc_adjust);
    }
    return true;
}

void restore_kvmclock(DestinationSide& destination, const Saved& saved) {
    abi::kvm_clock_data data{};
    data.clock = saved.clock.clock;
    if (destination.world().has(Bug::kGetClockHandedBack)) {
        data = saved.clock;
        data.flags &= abi::kKVM_CLOCK_REALTIME;
    }
    destination.set_clock(data);
    for (unsigned vcpu = 0; vcpu < destination.vcpus(); ++vcpu)
        destination.ctrl(vcpu);
}

constexpr std::string_view kNoSuchFrequency = "KVM_SET_TSC_KHZ failed";

/// Snapshot and restore as most VMMs have it; a pause in place touches no clock.
class ByValue final : public Strategy {
  public:
    using Strategy::Strategy;
    Done save(SourceSide& source, Saved& saved) const override {
        save_counters(source, saved);
        saved.clock = source.get_clock();
        return {};
    }
    Done restore(DestinationSide& destination, const Saved& saved) const override {
        if (saved.in_place) return {};
        if (!restore_counters(destination, saved)) return Done::refused(kNoSuchFrequency);
        restore_kvmclock(destination, saved);
        return {};
    }
};

/// kvmclock is read at vm-stop and set at vm-cont, whatever the TSC does meanwhile (S3.7).
class KvmclockApart final : public Strategy {
  public:
    using Strategy::Strategy;
    Done save(SourceSide& source, Saved& saved) const override {
        saved.clock = source.get_clock();
        save_counters(source, saved);
        return {};
    }
    Done restore(DestinationSide& destination, const Saved& saved) const override {
        if (!saved.in_place && !restore_counters(destination, saved))
            return Done::refused(kNoSuchFrequency);
        destination.think(Site::kBeforeEntry);
        restore_kvmclock(destination, saved);
        return {};
    }
};

/// S4.2: by value, on kernels whose kvmclock begins at 0 with the guest's write of the MSR.
class CountsFromZero final : public Strategy {
  public:
    using Strategy::Strategy;
    void require(model::KernelRules& rules) const override { rules.counts_from_zero = true; }
    Done save(SourceSide& source, Saved& saved) const override {
        save_counters(source, saved);
        saved.clock = source.get_clock();
        return {};
    }
    Done restore(DestinationSide& destination, const Saved& saved) const override {
        if (saved.in_place) return {};
        if (!restore_counters(destination, saved)) return Done::refused(kNoSuchFrequency);
        restore_kvmclock(destination, saved);
        return {};
    }
};

const ByValue kByValue{"by-value", "S2",
                       "TSC of each vCPU and kvmclock as numbers, one after the "
                       "other",
                       Promise::kFreezes};
const KvmclockApart kApart{"by-value-kvmclock-apart", "S3.7",
                           "the same, kvmclock stopped at vm-stop and set at vm-cont",
                           Promise::kFreezes};
const CountsFromZero kFromZero{"counts-from-zero", "S4.2",
                               "by value on kernels with PVCLOCK_COUNTS_FROM_ZERO",
                               Promise::kFreezes};

}  // namespace

std::array<const Strategy*, 3> by_value_strategies() {
    return {&kByValue, &kApart, &kFromZero};
}

}  // namespace continuo::sim
