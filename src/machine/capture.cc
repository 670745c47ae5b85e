#include <utility>

#include "continuo/machine/migration.h"
#include "continuo/state/codec.h"
#include "continuo/time/tsc_scale.h"

namespace continuo::machine {

namespace {

using state::KvmclockOrigin;
using state::KvmclockState;
using state::Record;
using state::VcpuClock;

/// The page may be this far from the kernel's own line before it is taken for damaged: KVM
/// refreshes a page at least every 300 s, and 500 ppm, where the kernel gives up on a TSC, makes
/// 150 ms of that.
constexpr std::int64_t kPageFromKernelNsMax = 150'000'000;

/// A value read between two host readings, carried along the host's own rate to the anchor.
struct AtAnchor {
    Count<GuestCounter> counter;
    std::uint64_t bound_ticks;
};

Result<AtAnchor> by_value(Machine& machine, std::size_t vcpu, Hz guest, Hz host,
                          Count<HostCounter> anchor) {
    const auto read = machine.read_tsc_by_value(vcpu);
    if (!read) return tl::unexpected(read.error());
    const auto width = static_cast<std::uint64_t>((read->after - read->before).magnitude());
    const auto middle =
        read->before + time::Ticks<HostCounter>::from_raw(static_cast<std::int64_t>(width / 2));
    const time::Line<HostCounter, GuestCounter> line{middle, read->value,
                                                     time::ExactRatio::between(host, guest)};
    // Half the bracket, in guest ticks, rounded up, and one for the floor of the line.
    const time::Line<HostCounter, GuestCounter> spread{Count<HostCounter>{}, Count<GuestCounter>{},
                                                       line.slope()};
    const std::uint64_t half =
        spread.ceil_at(Count<HostCounter>::from_raw(width - width / 2)).raw();
    return AtAnchor{line.at(anchor), half + 1};
}

Result<VcpuClock> capture_vcpu(Machine& machine, std::size_t vcpu, Hz host,
                               Count<HostCounter> anchor) {
    const auto state = machine.vcpu_state(vcpu);
    if (!state) return tl::unexpected(state.error());
    VcpuClock clock;
    clock.tsc_adjust = state->tsc_adjust;
    clock.frequency = state->frequency;
    clock.system_time_msr = state->system_time_msr;
    clock.guest_stopped_pending = state->guest_stopped_pending;
    if (state->map) {
        clock.counter = state->map->at(anchor);
        clock.tsc_offset = state->map->offset();
        return clock;
    }
    const auto value = by_value(machine, vcpu, state->frequency, host, anchor);
    if (!value) return tl::unexpected(value.error());
    clock.counter = value->counter;
    clock.counter_bound_ticks = value->bound_ticks;
    return clock;
}

/// The kernel's line in vCPU 0's ticks, through one KVM_GET_CLOCK.
PvclockLine kernel_line(const KvmclockReading& reading, const VcpuClock& vcpu, Hz host,
                        Count<HostCounter> anchor, Count<HostCounter> read_at) {
    const time::Line<HostCounter, GuestCounter> tsc{
        anchor, vcpu.counter, time::ExactRatio::between(host, vcpu.frequency)};
    return PvclockLine{tsc.at(read_at), reading.clock, time::PvclockScale::from_hz(vcpu.frequency)};
}

/// The page of vCPU 0 where it is believable, compared with what the kernel would say at the same
/// instant.
std::optional<PvclockLine> believable_page(Machine& machine, const PvclockLine& kernel) {
    const auto page = machine.pvclock_page(0);
    if (!page || !*page)
        return std::nullopt;  // not enabled, or damaged by the guest: the kernel's line then
    const auto apart = kernel.system_time() - (*page)->at(kernel.tsc_timestamp());
    const bool far = apart.magnitude() > static_cast<std::uint64_t>(kPageFromKernelNsMax);
    return far ? std::nullopt : *page;
}

Result<std::optional<KvmclockState>> capture_kvmclock(Machine& machine, const Record& record,
                                                      Hz host) {
    if (record.architecture != state::Architecture::kX86_64 || record.vcpus.empty())
        return std::optional<KvmclockState>{};
    const Count<HostCounter> before = machine.now();
    const auto reading = machine.kvmclock();
    if (!reading) return tl::unexpected(reading.error());
    const Count<HostCounter> after = machine.now();

    const VcpuClock& vcpu = record.vcpus.front();
    const Count<HostCounter> anchor = time::same_boot_counter(record.anchor.counter);
    const PvclockLine kernel =
        kernel_line(*reading, vcpu, host, anchor, reading->host.value_or(before));

    KvmclockState out;
    out.masterclock = reading->stable;
    out.line = kernel;
    out.origin = KvmclockOrigin::kKernel;
    // One ns for the floor of the answer; without a host counter in it, the bracket as well.
    out.bound_ns = 1;
    if (!reading->host) {
        const auto ns = time::ExactRatio::nanos_per_tick(host);
        const time::Line<HostCounter, Kvmclock> spread{before, Instant<Kvmclock>{}, ns};
        out.bound_ns += spread.ceil_at(after).raw();
    }
    if (const auto page = believable_page(machine, kernel)) {
        out.line = *page;
        out.origin = KvmclockOrigin::kPage;
        out.kernel_minus_line = kernel.system_time() - page->at(kernel.tsc_timestamp());
        out.bound_ns = 0;
    }
    return std::optional{out};
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

    record.vcpus.reserve(machine.vcpu_count());
    for (std::size_t vcpu = 0; vcpu < machine.vcpu_count(); ++vcpu) {
        auto clock = capture_vcpu(machine, vcpu, facts->counter_frequency, anchor->counter);
        if (!clock) return tl::unexpected(clock.error());
        record.vcpus.push_back(*clock);
    }
    auto kvmclock = capture_kvmclock(machine, record, facts->counter_frequency);
    if (!kvmclock) return tl::unexpected(kvmclock.error());
    record.kvmclock = *kvmclock;
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
