#include <fmt/format.h>

#include <algorithm>

#include "continuo/machine/migration.h"
#include "trim.h"

namespace continuo::machine {

namespace {

using state::ErrorCode;
using state::Plan;
using state::PrescribedTsc;
using state::Write;
using state::WriteKind;
using time::Ticks;

/// A vCPU's line as readings by value show it: within `bound_ticks` of the true one.
struct Observed {
    TscMap map;
    std::uint64_t bound_ticks;

    /// How far it is above another line of its multiplier.
    Ticks<GuestCounter> above(const TscMap& line) const {
        return Ticks<GuestCounter>::from_raw(
            static_cast<std::int64_t>(map.offset() - line.offset()));
    }
    /// The readings do not tell it from that line.
    bool is_on(const TscMap& line) const { return above(line).magnitude() <= bound_ticks; }
};

/// A line that was just written, and how late it may be for that.
struct Written : Observed {
    std::uint64_t write_ticks;
};

/// Readings for one look at a line. Each says that the line is between two, those that the
/// bracket's ends allow; all of them, that it is between the closest of these.
constexpr int kReadings = 8;

/// slope: a map with the multiplier that is in force.
Result<Observed> observe(Machine& machine, std::size_t vcpu, const TscMap& slope) {
    std::optional<TscMap> reference;  // the offsets below are differences from its own
    std::int64_t highest = 0;
    std::int64_t lowest = 0;
    for (int i = 0; i < kReadings; ++i) {
        const auto read = machine.read_tsc_by_value(vcpu);
        if (!read) return tl::unexpected(read.error());
        const TscMap high = slope.through(read->before, read->value);
        const TscMap low = slope.through(read->after, read->value);
        const bool first = !reference;
        if (first) reference = high;
        const auto from_reference = [&](const TscMap& map) {
            return static_cast<std::int64_t>(map.offset() - reference->offset());
        };
        highest = first ? from_reference(high) : std::min(highest, from_reference(high));
        lowest = first ? from_reference(low) : std::max(lowest, from_reference(low));
    }
    if (lowest > highest)
        return state::fail(
            ErrorCode::kKernel, fmt::format("vCPU {} IA32_TSC", vcpu),
            fmt::format("its readings contradict each other by {} ticks", lowest - highest),
            "The host's TSC is unstable: use another host");
    const auto width = static_cast<std::uint64_t>(highest - lowest);
    const std::uint64_t middle =
        reference->offset() + static_cast<std::uint64_t>(lowest) + width / 2;
    return Observed{reference->with_offset(middle), width - width / 2};
}

/// Further than the second of any frequency within which KVM matches writes: 2^62 ticks.
constexpr std::int64_t kFarTicks = std::int64_t{1} << 62;
constexpr std::uint32_t kLandRoundsMax = 32;
/// The first sets, the second finds it right: more are for what the roundings leave once in
/// hundreds.
constexpr std::uint32_t kPagePassesMax = 5;

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
    /// what the readings leave open and `write_ticks` explain.
    Status keep(std::uint32_t vcpu, const Observed& seen, std::uint64_t write_ticks,
                std::string advice) {
        applied_.maps[vcpu] = seen.map;
        applied_.map_bound_ticks[vcpu] = seen.bound_ticks;
        const auto off = seen.above(plan_.tsc[vcpu].map);
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

    /// KVM takes a write within a second of the last one, of any vCPU, for the same line and gives
    /// the vCPU the last one's offset (before Linux 6.7 also where the last one is the VM's
    /// creation; docs/kernel-facts.md, tsc_write_snaps and tsc_sync_on_first_write). So the first
    /// vCPU of a line is brought onto it from far away, and the others, written on the same line,
    /// get its offset to the tick and keep the masterclock.
    Status write_by_value(std::uint32_t vcpu) {
        const TscMap& map = plan_.tsc[vcpu].map;
        if (leader_ && is_one_line(plan_.tsc[vcpu], plan_.tsc[*leader_])) {
            const auto joined = write_and_look(vcpu, map, {});
            if (!joined) return tl::unexpected(joined.error());
            const std::uint64_t bounds = joined->bound_ticks + applied_.map_bound_ticks[*leader_];
            if (joined->above(applied_.maps[*leader_]).magnitude() <= bounds) {
                applied_.maps[vcpu] = joined->map;
                applied_.map_bound_ticks[vcpu] = joined->bound_ticks;
                return {};
            }
            // A host with an unstable TSC adds the time since the last write instead.
        }
        leader_ = vcpu;
        return land(vcpu, map);
    }

    /// Nothing in the record tells the two lines apart: read by value, one line is two values.
    static bool is_one_line(const PrescribedTsc& a, const PrescribedTsc& b) {
        if (a.map.with_offset(b.map.offset()) != b.map) return false;
        const auto apart = Ticks<GuestCounter>::from_raw(
            static_cast<std::int64_t>(a.map.offset() - b.map.offset()));
        return apart.magnitude() <= captured_within(a) + captured_within(b);
    }
    static std::uint64_t captured_within(const PrescribedTsc& tsc) {
        for (const state::BoundTerm& term : tsc.bound)
            if (term.source == state::BoundSource::kCaptureRead) return term.size;
        return 0;
    }

    /// Far away and back, which no heuristic takes for its own, until the readings do not tell the
    /// line from the prescribed one: the write takes effect at an instant of the kernel's own, and
    /// what the last one was late by is the lead of the next.
    Status land(std::uint32_t vcpu, const TscMap& map) {
        Ticks<GuestCounter> lead;
        std::uint64_t lead_max = 0;
        for (std::uint32_t round = 1;; ++round) {
            const Count<GuestCounter> far =
                map.at(machine_.now()) + Ticks<GuestCounter>::from_raw(kFarTicks);
            if (const auto away = machine_.write_tsc_by_value(vcpu, far); !away)
                return tl::unexpected(away.error());
            const auto seen = write_and_look(vcpu, map, lead);
            if (!seen) return tl::unexpected(seen.error());
            const std::uint64_t explained = seen->write_ticks + lead_max;
            const bool strange = seen->above(map).magnitude() > seen->bound_ticks + explained;
            if (seen->is_on(map) || strange || round == kLandRoundsMax)
                return keep(vcpu, *seen, explained,
                            "KVM took the write for another: use a host that honours TSC offsets");
            lead = lead - seen->above(map);
            lead_max = seen->write_ticks + seen->bound_ticks;
        }
    }

    /// Writes what the line says `lead` ticks from now.
    Result<Written> write_and_look(std::uint32_t vcpu, const TscMap& map,
                                   Ticks<GuestCounter> lead) {
        const Count<HostCounter> start = machine_.now();
        Count<GuestCounter> value = map.at(start) + lead;
        // To KVM a 0 is no value but an order to take the last offset.
        if (value.raw() == 0) value = value + Ticks<GuestCounter>::from_raw(1);
        const auto bracket = machine_.write_tsc_by_value(vcpu, value);
        if (!bracket) return tl::unexpected(bracket.error());
        const auto seen = observe(machine_, vcpu, map);
        if (!seen) return tl::unexpected(seen.error());
        return Written{*seen, map.ceil_ticks((bracket->after - start).magnitude()) + 1};
    }

    Status write_kvmclock() {
        // What the counters' writes left for the next guest entry, among it a new masterclock,
        // happens now: afterwards nothing moves the line that the loop below has trimmed.
        if (Status settled = machine_.settle(); !settled) return settled;
        const KvmclockTarget target{plan_.kvmclock->line, applied_.maps.front()};
        if (!target.map.scales()) return trim_and_settle(target);
        // A scaled guest's line is read from its page, and that is current after a second pass. The
        // loop goes by KVM_GET_CLOCK, whose floors are not the page's: what it leaves is looked at
        // there, at the start of the next pass, which changes nothing where it is right.
        std::uint32_t rounds = 0;
        for (std::uint32_t pass = 0; pass < kPagePassesMax; ++pass) {
            if (Status settled = machine_.settle(); !settled) return settled;
            if (Status trimmed = trim_and_settle(target); !trimmed) return trimmed;
            rounds += applied_.trim.rounds;
            if (applied_.trim.rounds == 0) break;
        }
        applied_.trim.rounds = rounds;
        return {};
    }

    Status trim_and_settle(const KvmclockTarget& target) {
        auto trim = trim_kvmclock(machine_, target, options_);
        if (!trim) return tl::unexpected(trim.error());
        applied_.trim = *trim;
        return machine_.settle();
    }

    Machine& machine_;
    const Plan& plan_;
    const ApplyOptions& options_;
    Applied applied_;
    std::optional<std::uint32_t> leader_;  ///< the last vCPU that a line was begun with, by value
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
