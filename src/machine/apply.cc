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

/// A vCPU's line read by value between two readings of the host's counter.
struct Observed {
    TscMap map;                 ///< through the bracket's opening: the true line, or above it by
    std::uint64_t bound_ticks;  ///< at most this
    Count<HostCounter> until;
};

/// slope: a map with the multiplier that is in force.
Result<Observed> observe(Machine& machine, std::size_t vcpu, const TscMap& slope) {
    const auto read = machine.read_tsc_by_value(vcpu);
    if (!read) return tl::unexpected(read.error());
    return Observed{slope.through(read->before, read->value),
                    slope.ceil_ticks((read->after - read->before).magnitude()), read->after};
}

class Applier {
  public:
    Applier(Machine& machine, const Plan& plan, const ApplyOptions& options)
        : machine_{machine}, plan_{plan}, options_{options} {
        applied_.maps.assign(plan.tsc.size(), TscMap{0});
        applied_.map_bound_ticks.assign(plan.tsc.size(), 0);
    }

    Result<Applied> run() {
        if (plan_.tsc.size() != machine_.vcpu_count())
            return state::fail(ErrorCode::kInvalidArgument, "plan",
                               fmt::format("it is for {} vCPUs and the machine has {}",
                                           plan_.tsc.size(), machine_.vcpu_count()),
                               "Plan with this machine's own destination");
        if (Status looked = look_at_what_no_write_moves(); !looked)
            return tl::unexpected(looked.error());
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
                return write_adjust(write.vcpu, static_cast<std::int64_t>(write.value));
            case WriteKind::kTscOffset:
                return write_offset(write.vcpu, write.value);
            case WriteKind::kTscByValue:
                return write_by_value(write.vcpu);
            case WriteKind::kKvmclock:
                return write_kvmclock();
            case WriteKind::kGuestStopped:
                return machine_.signal_guest_stopped(write.vcpu);
            case WriteKind::kNotice:
                return {};  // the VMM publishes it, and says so in Applied
        }
        return {};
    }

    /// On a host whose TSC nothing moves a plan holds no write of it: that each vCPU is on its line
    /// all the same must be seen, not assumed.
    Status look_at_what_no_write_moves() {
        for (const Write& write : plan_.writes)
            if (write.kind == WriteKind::kTscOffset || write.kind == WriteKind::kTscByValue)
                return {};
        for (const PrescribedTsc& tsc : plan_.tsc) {
            const auto seen = observe(machine_, tsc.vcpu, tsc.map);
            if (!seen) return tl::unexpected(seen.error());
            if (Status kept = keep(tsc.vcpu, *seen, 0,
                                   "Nothing moves this host's TSC: choose another destination");
                !kept)
                return kept;
            // Nothing was moved, and the look does not contradict: its bracket is the doubt, not a
            // better line. kvmclock is trimmed in these ticks and must not inherit the bracket.
            applied_.maps[tsc.vcpu] = tsc.map;
        }
        return {};
    }

    /// Takes an observed line as what is realised, unless it is further off the prescribed one than
    /// its bracket and `write_ticks` explain.
    Status keep(std::uint32_t vcpu, const Observed& seen, std::uint64_t write_ticks,
                std::string advice) {
        applied_.maps[vcpu] = seen.map;
        applied_.map_bound_ticks[vcpu] = seen.bound_ticks;
        // One multiplier: the lines are as far apart everywhere as their offsets are.
        const auto off = time::Ticks<GuestCounter>::from_raw(
            static_cast<std::int64_t>(seen.map.offset() - plan_.tsc[vcpu].map.offset()));
        const std::uint64_t allowed = seen.bound_ticks + write_ticks;
        if (off.magnitude() <= allowed) return {};
        return state::fail(ErrorCode::kKernel, fmt::format("vCPU {} IA32_TSC", vcpu),
                           fmt::format("it reads {} ticks off the prescribed line, more than the "
                                       "{} that the calls took",
                                       off.raw(), allowed),
                           std::move(advice));
    }

    /// A kernel whose guest has no IA32_TSC_ADJUST in its CPUID takes the write and drops it. Zero
    /// is what a vCPU has from the start, and costs no look.
    Status write_adjust(std::uint32_t vcpu, std::int64_t value) {
        if (Status set = machine_.set_tsc_adjust(vcpu, value); !set || value == 0) return set;
        const auto state = machine_.vcpu_state(vcpu);
        if (!state) return tl::unexpected(state.error());
        if (state->tsc_adjust == value) return {};
        return state::fail(ErrorCode::kKernel, fmt::format("vCPU {} IA32_TSC_ADJUST", vcpu),
                           fmt::format("wrote {}, reads back {}", value, state->tsc_adjust),
                           "Set the vCPU's CPUID, with TSC_ADJUST, before its clocks");
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

    /// The prescribed value of the moment. KVM lets a vCPU whose write comes within a second of
    /// another's share the line of the first (and so keeps the masterclock): how late this one is
    /// counts from the first write's beginning.
    Status write_by_value(std::uint32_t vcpu) {
        const TscMap& map = plan_.tsc[vcpu].map;
        const Count<HostCounter> start = machine_.now();
        if (!first_write_) first_write_ = start;
        const auto bracket = machine_.write_tsc_by_value(vcpu, map.at(start));
        if (!bracket) return tl::unexpected(bracket.error());
        const auto seen = observe(machine_, vcpu, map);
        if (!seen) return tl::unexpected(seen.error());
        return keep(vcpu, *seen, map.ceil_ticks((bracket->after - *first_write_).magnitude()),
                    "KVM's TSC synchronisation took the write for its own (before Linux 6.7: the "
                    "first second of a vCPU). Use the offset attribute, or wait and retry");
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
    std::optional<Count<HostCounter>> first_write_;  ///< by value
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
        const auto seen = observe(machine, vcpu, plan.tsc[vcpu].map);
        if (!seen) return tl::unexpected(seen.error());
        applied.maps.push_back(seen->map);
        applied.map_bound_ticks.push_back(seen->bound_ticks);
    }
    if (!record.kvmclock) return applied;
    const Instant<Kvmclock> stopped = record.kvmclock->line.at(record.vcpus.front().counter);
    if (Status set = machine.set_kvmclock(stopped); !set) return tl::unexpected(set.error());
    applied.trim.rounds = 1;
    return applied;
}

}  // namespace continuo::machine
