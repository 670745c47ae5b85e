#include "move.h"

namespace continuo::scaling {

namespace {

using time::Ticks;

constexpr std::uint64_t kUptimeSeconds = 40 * 86'400;
constexpr std::uint64_t kPageAgeSeconds = 7;

}  // namespace

kvm::Result<std::unique_ptr<Guest>> Guest::create(const kvm::System& system,
                                                  const kvm::DoctorReport& report,
                                                  std::size_t vcpus) {
    auto guest = std::make_unique<Guest>();
    auto probe = kvm::ProbeVm::create(system, vcpus);
    if (!probe) return tl::unexpected(probe.error());
    guest->probe_ = std::move(*probe);
    for (std::size_t i = 0; i < vcpus; ++i)
        if (auto on = guest->probe_->enable_pvclock(i); !on) return tl::unexpected(on.error());
    kvm::ClockMachineOptions options;
    options.quirks = report.quirks;
    guest->machine_ =
        std::make_unique<kvm::ClockMachine>(guest->probe_->vm(), guest->probe_->vcpu_pointers(),
                                            guest->probe_->memory(), *report.host, options);
    if (auto settled = guest->machine_->settle(); !settled) return tl::unexpected(settled.error());
    return guest;
}

kvm::Result<PvclockLine> Guest::page(std::size_t vcpu) {
    const auto page = machine_->pvclock_page(vcpu);
    if (!page) return tl::unexpected(page.error());
    if (!*page) return state::fail(state::ErrorCode::kGuest, "pvclock page", "is not enabled");
    return **page;
}

kvm::Status Guest::resample() {
    // Another offset is another generation of KVM's, and each new generation a new sample.
    for (std::size_t i = 0; i < machine_->vcpu_count(); ++i) {
        const auto map = machine_->tsc_map(i);
        if (!map) return tl::unexpected(map.error());
        const auto away = machine_->set_tsc_offset(i, map->offset() + (std::uint64_t{1} << 40));
        if (!away) return away;
        if (auto settled = machine_->settle(); !settled) return settled;
        if (auto back = machine_->set_tsc_offset(i, map->offset()); !back) return back;
    }
    if (auto settled = machine_->settle(); !settled) return settled;
    return machine_->settle();
}

tl::expected<Outcome, std::string> move_to(machine::Machine& machine, const state::Record& record,
                                           state::Policy policy) {
    const auto destination = machine::destination_for(machine, record);
    if (!destination) return tl::unexpected(destination.error().message());
    state::PlanOptions options;
    options.policy = policy;
    auto plan = state::plan(record, *destination, options);
    if (!plan) return tl::unexpected(plan.error().front().message);
    auto applied = machine::apply(machine, *plan);
    if (!applied) return tl::unexpected(applied.error().message());
    auto certificate = machine::verify(machine, *plan, *applied);
    if (!certificate) return tl::unexpected(certificate.error().message());
    return Outcome{std::move(*plan), std::move(*applied), std::move(*certificate)};
}

tl::expected<Moved, std::string> move_here(const kvm::System& system,
                                           const kvm::DoctorReport& report,
                                           const state::Record& record, state::Policy policy) {
    auto guest = Guest::create(system, report, record.vcpus.size());
    if (!guest) return tl::unexpected(guest.error().message());
    auto outcome = move_to((*guest)->machine(), record, policy);
    if (!outcome) return tl::unexpected(outcome.error());
    return Moved{std::move(*outcome), std::move(*guest)};
}

state::Record record_from_elsewhere(Hz guest, const state::Anchor<HostCounter>& here,
                                    std::uint64_t gap_ns, std::size_t vcpus) {
    state::Record record;
    record.source.kernel = "another host";
    record.anchor.counter =
        Count<time::SourceCounter>::from_raw(guest.hz() * (kUptimeSeconds + 123));
    record.anchor.tai = Instant<time::Tai>::from_raw(here.tai.raw() - gap_ns);
    record.anchor.frequency = guest;
    state::VcpuClock vcpu;
    vcpu.counter = Count<GuestCounter>::from_raw(guest.hz() * kUptimeSeconds + 4711);
    vcpu.tsc_adjust = -4711;
    vcpu.frequency = guest;
    vcpu.system_time_msr = 1;
    record.vcpus.assign(vcpus, vcpu);
    state::KvmclockState kvmclock;
    const auto age =
        Ticks<GuestCounter>::from_raw(static_cast<std::int64_t>(guest.hz() * kPageAgeSeconds));
    const auto system_time = (kUptimeSeconds - kPageAgeSeconds) * time::kNanosPerSecond + 815;
    kvmclock.line = PvclockLine{vcpu.counter - age, Instant<Kvmclock>::from_raw(system_time),
                                time::PvclockScale::from_hz(guest)};
    kvmclock.origin = state::KvmclockOrigin::kPage;
    kvmclock.masterclock = true;
    record.kvmclock = kvmclock;
    return record;
}

void go_on_at(state::Record& record, Hz guest) {
    for (state::VcpuClock& vcpu : record.vcpus)
        vcpu.frequency = guest;
    const Count<GuestCounter> at = record.vcpus.front().counter;
    PvclockLine& line = record.kvmclock->line;
    line = PvclockLine{at, line.at(at), time::PvclockScale::from_hz(guest)};
}

testing::AssertionResult inside(const TscMap& map, const machine::BracketedTsc& read) {
    const std::int64_t after_opening = (read.value - map.at(read.before)).raw();
    const std::int64_t before_closing = (map.at(read.after) - read.value).raw();
    if (after_opening >= 0 && before_closing >= 0) return testing::AssertionSuccess();
    return testing::AssertionFailure()
           << "read " << after_opening << " ticks after its bracket opened and " << before_closing
           << " before it closed";
}

}  // namespace continuo::scaling
