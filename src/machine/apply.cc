#include <fmt/format.h>

#include "continuo/machine/migration.h"
#include "trim.h"

namespace continuo::machine {

namespace {

using state::ErrorCode;
using state::Plan;
using state::PrescribedTsc;
using state::Write;
using state::WriteKind;

/// Ticks of the guest for a length of the host, rounded up.
std::uint64_t guest_ticks(const TscMap& map, time::Ticks<HostCounter> length) {
    const time::Line<HostCounter, GuestCounter> spread{Count<HostCounter>{}, Count<GuestCounter>{},
                                                       map.slope()};
    return spread.ceil_at(Count<HostCounter>::from_raw(length.magnitude())).raw();
}

class Applier {
  public:
    Applier(Machine& machine, const Plan& plan, const ApplyOptions& options)
        : machine_{machine}, plan_{plan}, options_{options} {
        applied_.maps.reserve(plan.tsc.size());
        applied_.map_bound_ticks.assign(plan.tsc.size(), 0);
        for (const PrescribedTsc& tsc : plan.tsc)
            applied_.maps.push_back(tsc.map);
    }

    Result<Applied> run() {
        if (plan_.tsc.size() != machine_.vcpu_count())
            return state::fail(ErrorCode::kInvalidArgument, "plan",
                               fmt::format("it is for {} vCPUs and the machine has {}",
                                           plan_.tsc.size(), machine_.vcpu_count()),
                               "Plan with this machine's own destination");
        for (const Write& write : plan_.writes)
            if (const Status done = carry_out(write); !done) return tl::unexpected(done.error());
        return std::move(applied_);
    }

  private:
    Status carry_out(const Write& write) {
        switch (write.kind) {
            case WriteKind::kVcpuTscKhz:
                return machine_.set_tsc_khz(write.vcpu, write.value);
            case WriteKind::kTscAdjust:
                return machine_.set_tsc_adjust(write.vcpu, static_cast<std::int64_t>(write.value));
            case WriteKind::kTscOffset:
                return write_offset(write.vcpu, write.value);
            case WriteKind::kTscByValue:
                return write_by_value(write.vcpu);
            case WriteKind::kKvmclock:
                return write_kvmclock();
            case WriteKind::kGuestStopped:
                return machine_.signal_guest_stopped(write.vcpu);
            case WriteKind::kNotice:
                return {};  // the VMM's device publishes it, see vmm/
        }
        return {};
    }

    Status write_offset(std::uint32_t vcpu, std::uint64_t offset) {
        if (Status set = machine_.set_tsc_offset(vcpu, offset); !set) return set;
        const auto map = machine_.tsc_map(vcpu);
        if (!map) return tl::unexpected(map.error());
        applied_.maps[vcpu] = *map;
        if (*map == plan_.tsc[vcpu].map) return {};
        return state::fail(
            ErrorCode::kKernel, fmt::format("vCPU {} KVM_VCPU_TSC_OFFSET", vcpu),
            fmt::format("wrote offset {:#x} (multiplier {:#x}/2^{}), reads back {:#x} ({:#x}/2^{})",
                        offset, plan_.tsc[vcpu].map.ratio(), plan_.tsc[vcpu].map.frac_bits(),
                        map->offset(), map->ratio(), map->frac_bits()),
            "This host does not honour TSC offsets: run `continuo doctor` and plan with its "
            "quirks");
    }

    /// The prescribed value of the moment, then the bracket says how far it may be off.
    Status write_by_value(std::uint32_t vcpu) {
        const TscMap& map = plan_.tsc[vcpu].map;
        const auto bracket = machine_.write_tsc_by_value(vcpu, map.at(machine_.now()));
        if (!bracket) return tl::unexpected(bracket.error());
        const auto read = machine_.read_tsc_by_value(vcpu);
        if (!read) return tl::unexpected(read.error());
        applied_.map_bound_ticks[vcpu] = guest_ticks(map, read->after - read->before);
        applied_.maps[vcpu] = map.through(read->before, read->value);
        const std::uint64_t allowed =
            guest_ticks(map, read->after - bracket->before) + applied_.map_bound_ticks[vcpu];
        const auto off = read->value - map.at(read->before);
        if (off.magnitude() <= allowed) return {};
        return state::fail(ErrorCode::kKernel, fmt::format("vCPU {} IA32_TSC", vcpu),
                           fmt::format("written by value, it reads {} ticks off the prescribed "
                                       "line, more than the {} of the write",
                                       off.raw(), allowed),
                           "KVM's TSC synchronisation took the write for its own (before Linux "
                           "6.7: the first second of a vCPU). "
                           "Use the offset attribute, or wait and retry");
    }

    Status write_kvmclock() {
        // What the counters' writes left for the next guest entry, among it a new masterclock,
        // happens now: afterwards nothing moves the line that the loop below has trimmed.
        if (Status settled = machine_.settle(); !settled) return settled;
        const KvmclockTarget target{plan_.kvmclock->line, applied_.maps.front()};
        auto trim = trim_kvmclock(machine_, target, options_);
        if (!trim) return tl::unexpected(trim.error());
        applied_.trim = *trim;
        return machine_.settle();
    }

    Machine& machine_;
    const Plan& plan_;
    const ApplyOptions& options_;
    Applied applied_;
};

}  // namespace

Result<Applied> apply(Machine& machine, const Plan& plan, const ApplyOptions& options) {
    return Applier{machine, plan, options}.run();
}

Result<Applied> apply_by_value(Machine& machine, const state::Record& record, const Plan& plan) {
    Applied applied;
    for (std::size_t vcpu = 0; vcpu < record.vcpus.size(); ++vcpu) {
        const auto bracket = machine.write_tsc_by_value(vcpu, record.vcpus[vcpu].counter);
        if (!bracket) return tl::unexpected(bracket.error());
    }
    for (std::size_t vcpu = 0; vcpu < record.vcpus.size(); ++vcpu) {
        // Where the kernel tells the offset, the realised line is exact; else it is a bracketed
        // reading.
        if (const auto map = machine.tsc_map(vcpu)) {
            applied.maps.push_back(*map);
            applied.map_bound_ticks.push_back(0);
            continue;
        }
        const auto read = machine.read_tsc_by_value(vcpu);
        if (!read) return tl::unexpected(read.error());
        const TscMap map = plan.tsc[vcpu].map.through(read->before, read->value);
        applied.maps.push_back(map);
        applied.map_bound_ticks.push_back(guest_ticks(map, read->after - read->before));
    }
    if (!record.kvmclock) return applied;
    const Instant<Kvmclock> stopped = record.kvmclock->line.at(record.vcpus.front().counter);
    if (Status set = machine.set_kvmclock(stopped); !set) return tl::unexpected(set.error());
    applied.trim.rounds = 1;
    return applied;
}

}  // namespace continuo::machine
