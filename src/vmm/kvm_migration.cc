#include "continuo/vmm/kvm_migration.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "continuo/kvm/counter.h"
#include "continuo/kvm/settle.h"
#include "continuo/state/codec.h"
#include "continuo/vmm/generation_device.h"
#include "continuo/vmm/notice_device.h"
#include "continuo/vmm/vmclock_device.h"

namespace continuo::vmm {

namespace {

using state::ErrorCode;

constexpr std::uint32_t kAttemptsMax = 6;

time::Ticks<time::HostCounter> host_ticks(std::chrono::nanoseconds length, time::Hz hz) {
    const auto ns = static_cast<std::uint64_t>(std::max<std::int64_t>(length.count(), 0));
    const auto ticks = time::u128{ns} * hz.hz() / time::kNanosPerSecond;
    return time::Ticks<time::HostCounter>::from_raw(static_cast<std::int64_t>(ticks));
}

/// Nanoseconds for guest ticks, rounded down; signed.
std::int64_t guest_ns(time::Ticks<time::GuestCounter> ticks, time::Hz hz) {
    const time::Line<time::GuestCounter, time::Kvmclock> line{
        {}, {}, time::ExactRatio::nanos_per_tick(hz)};
    return (line.at(time::Count<time::GuestCounter>{} + ticks) - time::Instant<time::Kvmclock>{})
        .raw();
}

bool holds_witness(const kvm::GuestMemory& memory) {
    const auto magic = memory.load<std::uint64_t>(witness::kControl);
    return magic && *magic == witness::kMagic;
}

}  // namespace

std::unique_ptr<kvm::ClockMachine> clock_machine_of(VirtualMachine& machine,
                                                    const HostFindings& findings) {
    std::vector<kvm::Vcpu*> vcpus;
    for (kvm::Vcpu& vcpu : machine.vcpus())
        vcpus.push_back(&vcpu);
    kvm::ClockMachineOptions options;
    options.quirks = findings.quirks;
    options.settle_on_its_thread = [&machine](std::size_t vcpu) {
        return machine.on_vcpu_thread(static_cast<std::uint32_t>(vcpu),
                                      [](kvm::Vcpu& self) { return kvm::settle_vcpu(self); });
    };
    return std::make_unique<kvm::ClockMachine>(machine.vm(), vcpus, machine.memory(), findings.host,
                                               std::move(options));
}

Status start_vmclock(VirtualMachine& machine, const HostFindings& findings) {
    VmclockDevice* device = machine.board().vmclock();
    if (device == nullptr) return {};
    const auto counter = vmclock_counter(*clock_machine_of(machine, findings));
    if (!counter) return tl::unexpected(counter.error());
    return device->start(*counter);
}

// ---- Source ----

KvmSourceVm::KvmSourceVm(const kvm::System& system, std::unique_ptr<VirtualMachine> machine,
                         HostFindings findings)
    : system_{system}, machine_{std::move(machine)}, findings_{std::move(findings)} {}

Bytes KvmSourceVm::shape() {
    return encode_shape({machine_->config(), machine_->cpu_model()});
}

std::span<const std::byte> KvmSourceVm::memory() {
    return {machine_->memory().host(), machine_->memory().size()};
}

Status KvmSourceVm::fetch_touched_pages(std::vector<std::uint64_t>& bitmap) {
    const std::uint64_t pages = machine_->memory().size() / kvm::kPageSize;
    bitmap.assign((pages + 63) / 64, 0);
    return machine_->memory().find_touched_pages(bitmap);
}

Status KvmSourceVm::log_dirty_pages(bool on) {
    // A guest of which a vCPU has died is not moved: there it would fail again, and mysteriously.
    if (auto well = machine_->health(); on && !well) return well;
    return machine_->log_dirty_pages(on);
}

Status KvmSourceVm::fetch_dirty_pages(std::vector<std::uint64_t>& bitmap) {
    return machine_->fetch_dirty_pages(bitmap);
}

Status KvmSourceVm::stop() {
    if (auto stopped = machine_->stop(); !stopped) return stopped;
    return machine_->health();
}

Result<Bytes> KvmSourceVm::capture_clocks() {
    auto record = machine::capture(*clock_machine_of(*machine_, findings_));
    if (!record) return tl::unexpected(std::move(record.error()));
    if (NoticeDevice* device = machine_->board().notice())
        record->notice_sequence = device->save().sums.sequence;
    else if (const auto notice = read_notice(machine_->memory()); notice && *notice)
        record->notice_sequence = (*notice)->page.migration_sequence;
    if (auto good = state::check(*record); !good) return tl::unexpected(std::move(good.error()));
    record_ = std::move(*record);
    return state::encode(*record_);
}

Result<Bytes> KvmSourceVm::save_state() {
    const auto saved = vmm::save_state(*machine_, system_);
    if (!saved) return tl::unexpected(saved.error());
    return encode_state(*saved);
}

Status KvmSourceVm::resume() {
    return machine_->resume();
}

void KvmSourceVm::destroy() {
    machine_.reset();
}

// ---- Destination ----

KvmDestinationVm::KvmDestinationVm(const kvm::System& system, HostFindings findings,
                                   ArrivalOptions options)
    : system_{system}, findings_{std::move(findings)}, options_{options} {}

Status KvmDestinationVm::create(std::span<const std::byte> shape) {
    const auto wanted = decode_shape(shape);
    if (!wanted) return tl::unexpected(wanted.error());
    auto machine = VirtualMachine::create(
        system_, wanted->config, wanted->model,
        options_.by_value ? CounterControl::kByValue : CounterControl::kExact);
    if (!machine) return tl::unexpected(std::move(machine.error()));
    machine_ = std::move(*machine);
    clocks_ = clock_machine_of(*machine_, findings_);
    return {};
}

std::span<std::byte> KvmDestinationVm::memory() {
    return {machine_->memory().host(), machine_->memory().size()};
}

Status KvmDestinationVm::load(std::span<const std::byte> state, std::span<const std::byte> clocks) {
    auto decoded = decode_state(state);
    if (!decoded) return tl::unexpected(std::move(decoded.error()));
    auto record = state::decode(clocks);
    if (!record) return tl::unexpected(std::move(record.error()));
    state_ = std::move(*decoded);
    record_ = std::move(*record);
    if (auto loaded = load_state(*machine_, *state_); !loaded) return loaded;
    if (const auto notice = read_notice(machine_->memory())) notice_before_ = *notice;
    const HostCount trial =
        kvm::host_counter() + host_ticks(options_.lead, findings_.host.frequency());
    // A second write by value would meet KVM's synchronisation with the first: one is made, at the
    // entry.
    if (options_.by_value) return plan_for(trial).map([](const state::Plan&) {});
    // The clocks are set twice: now, so that whatever cannot be done is known before the source
    // gives the VM up, and for good at the entry.
    return set_clocks(trial);
}

void KvmDestinationVm::take_exchange(const state::Exchange& rounds) {
    exchange_ = rounds;
}

bool KvmDestinationVm::more_rounds_help() {
    // Once the counters may have drifted apart by more since the rounds than these took to and fro.
    // A few rounds then cost a few thousandths of the time that the VM has stood still.
    if (!plan_ || !plan_->measures.by_exchange) return false;
    return plan_->measures.by_exchange->drift_ns > plan_->measures.by_exchange->bracket_ns;
}

Result<state::Plan> KvmDestinationVm::plan_for(HostCount resume_at) {
    auto destination = machine::destination_for(*clocks_, *record_);
    if (!destination) return tl::unexpected(std::move(destination.error()));
    destination->exchange = exchange_;
    state::PlanOptions options = options_.plan;
    options.resume_at = resume_at;
    auto planned = state::plan(*record_, *destination, options);
    if (!planned) return tl::unexpected(refusal_error(planned.error()));
    return std::move(*planned);
}

Status KvmDestinationVm::set_clocks(HostCount resume_at) {
    auto planned = plan_for(resume_at);
    if (!planned) return tl::unexpected(std::move(planned.error()));
    auto applied = options_.by_value ? machine::apply_by_value(*clocks_, *record_, *planned)
                                     : machine::apply(*clocks_, *planned, options_.apply);
    if (!applied) return tl::unexpected(std::move(applied.error()));
    if (planned->notice) {
        const auto told = tell(*planned->notice, planned->gap_bound_ns);
        if (!told) return tl::unexpected(told.error());
        applied->notice_published = *told;
    }
    if (auto told = disrupt_vmclock(); !told) return told;
    auto certificate = machine::verify(*clocks_, *planned, *applied);
    if (!certificate) return tl::unexpected(std::move(certificate.error()));
    plan_ = std::move(*planned);
    certificate_ = std::move(*certificate);
    return {};
}

Result<bool> KvmDestinationVm::tell(const state::Notice& notice, std::uint64_t bound_ns) {
    if (NoticeDevice* device = machine_->board().notice())
        return device->raise(
            {notice.delta_realtime.raw(), static_cast<std::uint64_t>(notice.gap.raw()), bound_ns});
    if (!notice_before_) return false;
    auto told = publish_notice(*machine_, *notice_before_, notice, bound_ns);
    if (!told) return tl::unexpected(std::move(told.error()));
    return true;
}

Status KvmDestinationVm::disrupt_vmclock() {
    VmclockDevice* device = machine_->board().vmclock();
    if (device == nullptr) return {};
    // As it is in force now, not as it was planned.
    const auto counter = vmclock_counter(*clocks_);
    if (!counter) return tl::unexpected(counter.error());
    return device->disrupt(*counter, options_.generation
                                         ? std::optional{options_.generation->counter()}
                                         : std::nullopt);
}

void KvmDestinationVm::announce() {
    NoticeDevice* notice = machine_->board().notice();
    if (notice != nullptr && plan_->notice) notice->announce();
    if (VmclockDevice* vmclock = machine_->board().vmclock()) vmclock->announce();
    GenerationDevice* generation = machine_->board().generation();
    if (generation != nullptr && options_.generation) generation->announce();
}

Status KvmDestinationVm::tell_generation() {
    if (!options_.generation) return {};
    if (GenerationDevice* device = machine_->board().generation()) {
        device->set(*options_.generation);
        generation_told_ = true;
    }
    if (!holds_witness(machine_->memory())) return {};
    generation_told_ = true;
    return set_generation(*machine_, options_.generation->counter());
}

Status KvmDestinationVm::run() {
    if (auto told = tell_generation(); !told) return told;
    if (holds_witness(machine_->memory())) {
        const auto epoch = raise_epoch(*machine_);
        if (!epoch) return tl::unexpected(epoch.error());
        epoch_ = *epoch;
    }
    if (options_.by_value) return run_by_value();
    std::chrono::nanoseconds lead = options_.lead;
    for (attempts_ = 1;; ++attempts_, lead *= 2) {
        const HostCount resume_at =
            kvm::host_counter() + host_ticks(lead, findings_.host.frequency());
        if (auto set = set_clocks(resume_at); !set) return set;
        if (auto armed = arm_timers(*machine_, *state_); !armed) return armed;
        // A quarter of the lead is left for the threads to wake and reach the gate.
        const HostCount latest = resume_at - host_ticks(lead / 4, findings_.host.frequency());
        const bool in_time = (latest - kvm::host_counter()).raw() >= 0;
        if (in_time || attempts_ == kAttemptsMax) {
            announce();
            return machine_->resume_at(resume_at);
        }
    }
}

Status KvmDestinationVm::run_by_value() {
    attempts_ = 1;
    if (auto set = set_clocks(kvm::host_counter()); !set) return set;
    if (auto armed = arm_timers(*machine_, *state_); !armed) return armed;
    announce();
    return machine_->resume();
}

void KvmDestinationVm::discard() {
    clocks_.reset();
    machine_.reset();
}

// ---- Reports ----

state::Error refusal_error(const state::Refusals& refusals) {
    const state::Refusal& first = refusals.front();
    std::string where{state::name(first.clock)};
    if (first.vcpu) where += " of vCPU " + std::to_string(*first.vcpu);
    std::string what = first.message;
    if (refusals.size() > 1) what += " (and " + std::to_string(refusals.size() - 1) + " more)";
    return {ErrorCode::kRefused, std::move(where), std::move(what), first.advice, 0};
}

Status await_epoch(VirtualMachine& machine, std::uint64_t epoch,
                   std::chrono::milliseconds timeout) {
    const auto until = after(timeout);
    for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus;) {
        if (auto well = machine.health(); !well) return well;
        const auto report = witness_report(machine.memory(), vcpu);
        if (!report) return tl::unexpected(report.error());
        if (epoch_record(*report, epoch)) {
            ++vcpu;
            continue;
        }
        if (std::chrono::steady_clock::now() > until) {
            return state::fail(ErrorCode::kTimeout, "vCPU " + std::to_string(vcpu),
                               "the witness has not looked at its clocks since the resume");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    return {};
}

Result<std::vector<state::GuestObservation>> observe_witness(VirtualMachine& machine,
                                                             const state::Plan& plan,
                                                             std::uint64_t epoch) {
    std::vector<state::GuestObservation> seen;
    for (const state::PrescribedTsc& tsc : plan.tsc) {
        const auto report = witness_report(machine.memory(), tsc.vcpu);
        if (!report) return tl::unexpected(report.error());
        const auto record = epoch_record(*report, epoch);
        if (!record) continue;
        using GuestCount = time::Count<time::GuestCounter>;
        // A reading that straddles the stop was taken after it where its TSC is past the entry.
        const auto straddle = GuestCount::from_raw(record->straddle.counter);
        const bool straddle_is_first =
            (record->flags & witness::kHasStraddle) != 0 && (straddle - tsc.at_resume).raw() >= 0;
        const witness::Reading& first = straddle_is_first ? record->straddle : record->after;
        const auto first_tsc = GuestCount::from_raw(first.counter);
        state::GuestObservation observation;
        observation.vcpu = tsc.vcpu;
        observation.first_tsc = first.counter;
        observation.after_resume_ns = guest_ns(first_tsc - tsc.at_resume, plan.guest_frequency);
        if (plan.kvmclock) {
            const auto read = time::Instant<time::Kvmclock>::from_raw(first.clock);
            observation.kvmclock_seam_ns = (read - plan.kvmclock->line.at(first_tsc)).raw();
        }
        observation.backward_steps = report->counter_back_own.count +
                                     report->counter_back_cross.count +
                                     report->clock_back_own.count + report->clock_back_cross.count;
        seen.push_back(observation);
    }
    return seen;
}

}  // namespace continuo::vmm
