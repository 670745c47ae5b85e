#include <algorithm>
#include <utility>
#include <vector>

#include "continuo/machine/migration.h"
#include "continuo/state/codec.h"
#include "continuo/time/tsc_scale.h"
#include "guest_page.h"
#include "kernel_clock.h"

namespace continuo::machine {

namespace {

using state::KvmclockOrigin;
using state::KvmclockState;
using state::Record;
using state::VcpuClock;

/// KVM_GET_CLOCK rounds down, and so do the counter and the line that carry it to the anchor.
constexpr std::uint64_t kKernelLineBoundNs = 3;

/// A vCPU at the anchor, and the line of its counter there: the kernel's, or one through a
/// bracketed reading.
struct Captured {
    VcpuClock clock;
    TscMap map;
};

std::uint32_t khz_of(Hz hz) {
    return static_cast<std::uint32_t>(hz.floor_khz());
}

/// A value read between two host readings, carried to the anchor at the rate that KVM gives the
/// guest.
Status carry_value(Machine& machine, std::size_t vcpu, const HostFacts& facts,
                   Count<HostCounter> anchor, Captured& out) {
    const auto read = machine.read_tsc_by_value(vcpu);
    if (!read) return tl::unexpected(read.error());
    const auto rate = time::kvm_tsc_map(khz_of(out.clock.frequency),
                                        khz_of(facts.counter_frequency), facts.scaling_frac_bits);
    const auto width = static_cast<std::uint64_t>((read->after - read->before).magnitude());
    const auto middle =
        read->before + time::Ticks<HostCounter>::from_raw(static_cast<std::int64_t>(width / 2));
    out.map = rate.value_or(TscMap{0}).through(middle, read->value);
    out.clock.counter = out.map.at(anchor);
    // Half the bracket, and one for the phase of a multiplier.
    out.clock.counter_bound_ticks = out.map.ceil_ticks(width - width / 2) + 1;
    return {};
}

Result<Captured> capture_vcpu(Machine& machine, std::size_t vcpu, const HostFacts& facts,
                              Count<HostCounter> anchor) {
    const auto state = machine.vcpu_state(vcpu);
    if (!state) return tl::unexpected(state.error());
    Captured out{{}, state->map.value_or(TscMap{0})};
    out.clock.tsc_adjust = state->tsc_adjust;
    out.clock.frequency = state->frequency;
    out.clock.system_time_msr = state->system_time_msr;
    out.clock.guest_stopped_pending = state->guest_stopped_pending;
    if (state->map) {
        out.clock.counter = state->map->at(anchor);
        out.clock.tsc_offset = state->map->offset();
        return out;
    }
    if (Status carried = carry_value(machine, vcpu, facts, anchor, out); !carried)
        return tl::unexpected(carried.error());
    return out;
}

/// How far another vCPU's page is from the line at the anchor. Without a masterclock each vCPU has
/// a line of its own, and only vCPU 0's is carried. Damaged pages are their guest's affair.
std::uint64_t pages_apart_ns(Machine& machine, const std::vector<VcpuClock>& vcpus,
                             const PvclockLine& line) {
    std::uint64_t most = 0;
    for (std::size_t vcpu = 1; vcpu < vcpus.size(); ++vcpu) {
        if ((vcpus[vcpu].system_time_msr & 1) == 0) continue;
        const auto page = machine.pvclock_page(vcpu);
        if (!page || !*page) continue;
        const auto apart = (*page)->at(vcpus[vcpu].counter) - line.at(vcpus.front().counter);
        most = std::max(most, apart.magnitude());
    }
    return most;
}

/// first: vCPU 0.
Result<KvmclockState> capture_kvmclock(Machine& machine, const HostFacts& facts,
                                       const std::vector<VcpuClock>& vcpus, const TscMap& first) {
    const auto answer = read_kernel_clock(machine);
    if (!answer) return tl::unexpected(answer.error());
    const KvmclockReading& reading = answer->reading;

    const Hz effective = effective_frequency(first, facts);
    const PvclockLine kernel{first.at(reading.host.value_or(answer->before)), reading.clock,
                             time::PvclockScale::from_hz(effective)};

    KvmclockState out;
    out.masterclock = reading.stable;
    out.line = kernel;
    out.origin = KvmclockOrigin::kKernel;
    // A tick of the counter in ns; without a host counter in the answer, the bracket as well.
    out.bound_ns = kKernelLineBoundNs + time::kNanosPerSecond / effective.hz();
    if (!reading.host) {
        const auto ns = time::ExactRatio::nanos_per_tick(facts.counter_frequency);
        const time::Line<HostCounter, Kvmclock> spread{answer->before, Instant<Kvmclock>{}, ns};
        out.bound_ns += spread.ceil_at(answer->after).raw();
    }
    if (const auto page = believable_page(machine, kernel, first, effective)) {
        out.line = *page;
        out.origin = KvmclockOrigin::kPage;
        out.kernel_minus_line = kernel.system_time() - page->at(kernel.tsc_timestamp());
        out.bound_ns = 0;
    }
    if (!out.masterclock) out.bound_ns += pages_apart_ns(machine, vcpus, out.line);
    return out;
}

}  // namespace

Result<Record> capture(Machine& machine) {
    const auto facts = machine.host_facts();
    if (!facts) return tl::unexpected(facts.error());
    const auto anchor = machine.anchor();
    if (!anchor) return tl::unexpected(anchor.error());

    Record record;
    record.architecture = facts->architecture;
    record.source = facts->identity;
    record.anchor.counter = time::recorded_counter(anchor->counter);
    record.anchor.tai = anchor->tai;
    record.anchor.tai_bound_ns = anchor->tai_bound_ns;
    record.anchor.tai_offset_sec = anchor->tai_offset_sec;
    record.anchor.synchronised = anchor->synchronised;
    record.anchor.frequency = facts->counter_frequency;
    record.anchor.rate_bound_ppb = anchor->rate_bound_ppb;
    record.anchor.suspended_ns = anchor->suspended_ns;

    record.vcpus.reserve(machine.vcpu_count());
    std::optional<TscMap> first;
    for (std::size_t vcpu = 0; vcpu < machine.vcpu_count(); ++vcpu) {
        const auto captured = capture_vcpu(machine, vcpu, *facts, anchor->counter);
        if (!captured) return tl::unexpected(captured.error());
        record.vcpus.push_back(captured->clock);
        if (!first) first = captured->map;
    }
    if (first && record.architecture == state::Architecture::kX86_64) {
        const auto kvmclock = capture_kvmclock(machine, *facts, record.vcpus, *first);
        if (!kvmclock) return tl::unexpected(kvmclock.error());
        record.kvmclock = *kvmclock;
    }
    // Much of it was the guest's to write: what encode() would abort on must end here, as an error.
    if (auto valid = state::check(record); !valid) return tl::unexpected(std::move(valid.error()));
    return record;
}

Result<state::Destination> destination_for(Machine& machine, const Record& record) {
    auto facts = machine.host_facts();
    if (!facts) return tl::unexpected(facts.error());
    const auto anchor = machine.anchor();
    if (!anchor) return tl::unexpected(anchor.error());

    state::Destination destination;
    destination.architecture = facts->architecture;
    destination.identity = std::move(facts->identity);
    destination.anchor = *anchor;
    destination.anchor.frequency = facts->counter_frequency;
    destination.same_boot =
        destination.identity.known() && destination.identity.boot_id == record.source.boot_id;
    destination.scaling_frac_bits = facts->scaling_frac_bits;
    destination.vcpu_count = static_cast<std::uint32_t>(machine.vcpu_count());
    destination.masterclock = facts->masterclock;
    destination.quirks = facts->quirks;
    return destination;
}

}  // namespace continuo::machine
