#include "shuttle.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "continuo/kvm/doctor.h"
#include "continuo/state/json.h"
#include "continuo/vmm/kvm_migration.h"
#include "continuo/vmm/migration.h"
#include "continuo/vmm/witness.h"
#include "pairing.h"

namespace continuo::crosshost {

namespace {

using namespace std::chrono_literals;
using state::ErrorCode;
using state::Json;

constexpr const char* kAddressOfA = "10.77.0.1";
constexpr const char* kAddressOfB = "10.77.0.2";
constexpr const char* kPort = "7001";
constexpr std::uint32_t kVcpus = 2;
constexpr std::uint64_t kMemoryBytes = 4ull << 20;
constexpr std::uint64_t kLoopsBetweenMoves = 50;
/// For anything that waits for the guest: these hosts are emulated, and their machine may be busy.
constexpr auto kPatience = 60s;

void emit(const Json& line) {
    // One write a line, and at once: where the other host dies, what was found stays.
    const std::string text = line.dump() + "\n";
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

/// Waits until every vCPU of a running witness has gone round `loops` times.
Status run_loops(vmm::VirtualMachine& machine, std::uint64_t loops) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
        const auto first = vmm::witness_report(machine.memory(), vcpu);
        if (!first) return tl::unexpected(first.error());
        for (;;) {
            const auto now = vmm::witness_report(machine.memory(), vcpu);
            if (!now) return tl::unexpected(now.error());
            if (now->loops >= first->loops + loops) break;
            if (auto well = machine.health(); !well) return well;
            if (std::chrono::steady_clock::now() > until)
                return state::fail(ErrorCode::kTimeout, "witness", "it stands still");
            std::this_thread::sleep_for(1ms);
        }
    }
    return {};
}

Json reading_json(const vmm::witness::Reading& reading) {
    return {{"tsc", reading.counter}, {"kvmclock_ns", reading.clock}};
}

Json page_json(const time::PvclockLine& page) {
    return {{"tsc_timestamp", page.tsc_timestamp().raw()},
            {"system_time", page.system_time().raw()},
            {"mul", page.scale().mul()},
            {"shift", page.scale().shift()}};
}

Json moved_json(const vmm::MigrationStats& stats) {
    return {{"downtime_ns", stats.downtime.count()},
            {"rounds", stats.rounds},
            {"pages_sent", stats.pages_sent}};
}

class Shuttle {
  public:
    Shuttle(SharedPage& page, const kvm::System& system, vmm::HostFindings findings)
        : page_{page}, system_{system}, findings_{std::move(findings)} {}

    Status run(const std::vector<Step>& steps) {
        if (auto done = begin(); !done) return done;
        for (const Step& step : steps)
            if (auto done = run_step(step); !done) return done;
        return end();
    }

  private:
    bool is_a() const { return page_.side() == Side::kA; }
    const char* host_name() const { return is_a() ? "a" : "b"; }

    Json event(std::string_view what) const {
        Json line;
        line["event"] = what;
        line["host"] = host_name();
        line["move"] = move_;
        return line;
    }

    Status begin() {
        Json line = event("host");
        line["kernel"] = findings_.host.identity.kernel;
        line["tsc_khz"] = findings_.host.tsc_khz();
        emit(line);
        if (!is_a()) return {};
        auto machine =
            vmm::VirtualMachine::create(system_, {.vcpus = kVcpus, .memory_bytes = kMemoryBytes});
        if (!machine) return tl::unexpected(std::move(machine.error()));
        const vmm::WitnessConfig config{.dirty_pages_a_second = 100, .workload_pages_a_vcpu = 32};
        if (auto done = vmm::load_witness(**machine, config); !done) return done;
        if (auto done = (*machine)->resume(); !done) return done;
        here_ = std::move(*machine);
        return run_loops(*here_, kLoopsBetweenMoves);
    }

    Status run_step(const Step& step) {
        const auto found = set_realtime_offset(page_, step.offset_ns);
        if (!found) return tl::unexpected(found.error());
        if (auto set = set_ntp_state(is_a() ? step.ntp_a : step.ntp_b); !set) return set;
        Json line = event("step");
        line["name"] = step.name;
        if (*found) line["offset_found_ns"] = **found;
        emit(line);
        // After every step's clocks, and before the first move: the truth at both ends.
        if (auto paired = pair(); !paired) return paired;
        for (std::uint32_t i = 0; i < step.moves; ++i, ++move_) {
            if (auto moved = here_ ? send(step) : receive(step); !moved) return moved;
            if (auto paired = pair(); !paired) return paired;
        }
        return {};
    }

    Status pair() {
        const auto pairing = pair_counters(page_);
        if (!pairing) return tl::unexpected(pairing.error());
        if (!*pairing) return {};
        const Bracket& narrowest = (*pairing)->narrowest;
        Json line = event("pairing");
        line["rounds"] = (*pairing)->rounds;
        line["a"] = narrowest.a;
        line["b_before"] = narrowest.b_before;
        line["b_after"] = narrowest.b_after;
        line["difference_least"] = (*pairing)->difference_least;
        line["difference_most"] = (*pairing)->difference_most;
        emit(line);
        return {};
    }

    // ---- the side that has the VM ----

    Status send(const Step& step) {
        vmm::KvmSourceVm source{system_, std::move(here_), findings_};
        if (auto met = page_.meet(); !met) return met;  // the other one listens now
        const auto to =
            vmm::parse_address(fmt::format("tcp:{}:{}", is_a() ? kAddressOfB : kAddressOfA, kPort));
        if (!to) return tl::unexpected(to.error());
        auto connection = vmm::connect_to(*to, 20s);
        if (!connection) return tl::unexpected(std::move(connection.error()));
        const auto outcome = vmm::send_vm(
            std::move(*connection), source, [&] { return vmm::connect_to(*to, 5s); },
            migration_options(step));
        return report_sent(step, source, outcome);
    }

    Status report_sent(const Step& step, vmm::KvmSourceVm& source,
                       const vmm::SourceOutcome& outcome) {
        Json line = event("left");
        line["step"] = step.name;
        if (source.record()) line["record"] = state::record_to_json(*source.record());
        if (const auto* moved = std::get_if<vmm::Moved>(&outcome)) {
            line["outcome"] = "moved";
            line["migration"] = moved_json(moved->stats);
        } else if (const auto* kept = std::get_if<vmm::Kept>(&outcome)) {
            line["outcome"] = "kept";
            line.update(state::error_to_json(kept->reason));
            here_ = source.release();
            if (auto well = run_loops(*here_, kLoopsBetweenMoves); !well) return well;
            line["runs_on"] = true;
        } else {
            return tl::unexpected(std::get<vmm::Undecided>(outcome).reason);
        }
        emit(line);
        return page_.meet();
    }

    // ---- the side that waits for it ----

    Status receive(const Step& step) {
        const auto at = vmm::parse_address(fmt::format("tcp:0.0.0.0:{}", kPort));
        if (!at) return tl::unexpected(at.error());
        auto receiver = vmm::Receiver::open(*at);
        if (!receiver) return tl::unexpected(std::move(receiver.error()));
        vmm::ArrivalOptions options;
        options.plan.policy = step.policy;
        vmm::KvmDestinationVm vm{system_, findings_, options};
        if (auto met = page_.meet(); !met) return met;
        const auto outcome = (*receiver)->receive(vm, migration_options(step), kPatience);
        if (!outcome) return tl::unexpected(outcome.error());
        return report_received(step, vm, *outcome);
    }

    Status report_received(const Step& step, vmm::KvmDestinationVm& vm,
                           const vmm::DestinationOutcome& outcome) {
        Json line = event("arrived");
        line["step"] = step.name;
        if (const auto* discarded = std::get_if<vmm::Discarded>(&outcome)) {
            line["outcome"] = "discarded";
            line.update(state::error_to_json(discarded->reason));
        } else {
            line["outcome"] = "runs";
            if (auto seen = describe_arrival(vm, line); !seen) return seen;
            here_ = vm.release();
        }
        emit(line);
        return page_.meet();
    }

    /// The certificate, and beside it what the kernel and the guest say, from which it was not
    /// made.
    Status describe_arrival(vmm::KvmDestinationVm& vm, Json& line) {
        if (!vm.certificate() || !vm.epoch() || vm.machine() == nullptr)
            return state::fail(ErrorCode::kPeer, "migration", "the VM came without its clocks");
        vmm::VirtualMachine& machine = *vm.machine();
        auto seen = vmm::await_epoch(machine, *vm.epoch(), kPatience);
        if (!seen) return seen;
        if (auto told = await_answer(machine, *vm.certificate()); !told) return told;
        if (auto stopped = machine.stop(); !stopped) return stopped;
        line["certificate"] = state::certificate_to_json(*vm.certificate());
        line["attempts"] = vm.attempts();
        line["vcpus"] = Json::array();
        const auto clocks = vmm::clock_machine_of(machine, findings_);
        for (std::uint32_t vcpu = 0; vcpu < machine.config().vcpus; ++vcpu) {
            auto entry = describe_vcpu(machine, *clocks, vcpu, *vm.epoch());
            if (!entry) return tl::unexpected(std::move(entry.error()));
            line["vcpus"].push_back(std::move(*entry));
        }
        if (auto notice = describe_notice(machine, line); !notice) return notice;
        return machine.resume();
    }

    static Result<Json> describe_vcpu(vmm::VirtualMachine& machine, machine::Machine& clocks,
                                      std::uint32_t vcpu, std::uint64_t epoch) {
        const auto map = clocks.tsc_map(vcpu);
        if (!map) return tl::unexpected(map.error());
        if (map->scales())
            return state::fail(ErrorCode::kUnsupported, "vCPU " + std::to_string(vcpu),
                               "its TSC is scaled, and no emulated host here can do that");
        const auto report = vmm::witness_report(machine.memory(), vcpu);
        if (!report) return tl::unexpected(report.error());
        const auto record = vmm::epoch_record(*report, epoch);
        if (!record)
            return state::fail(ErrorCode::kGuest, "vCPU " + std::to_string(vcpu),
                               "the witness has no record of its arrival");
        Json json;
        json["tsc_offset"] = map->offset();
        const auto page = clocks.pvclock_page(vcpu);
        if (!page) return tl::unexpected(page.error());
        if (*page) json["page"] = page_json(**page);
        json["before"] = reading_json(record->before);
        json["after"] = reading_json(record->after);
        json["backward_steps"] = report->counter_back_own.count + report->counter_back_cross.count +
                                 report->clock_back_own.count + report->clock_back_cross.count;
        json["loops"] = report->loops;
        return json;
    }

    /// Waits until the witness has answered the notice of this arrival, where it was told one.
    static Status await_answer(vmm::VirtualMachine& machine,
                               const state::Certificate& certificate) {
        if (!certificate.notice) return {};
        const auto until = std::chrono::steady_clock::now() + kPatience;
        for (;;) {
            const auto notice = vmm::read_notice(machine.memory());
            if (!notice) return tl::unexpected(notice.error());
            const bool answered =
                *notice && (*notice)->page.migration_sequence > certificate.notice->sequence;
            if (answered) return {};
            if (std::chrono::steady_clock::now() > until)
                return state::fail(ErrorCode::kTimeout, "notice", "the witness does not answer it");
            std::this_thread::sleep_for(1ms);
        }
    }

    static Status describe_notice(vmm::VirtualMachine& machine, Json& line) {
        const auto notice = vmm::read_notice(machine.memory());
        if (!notice) return tl::unexpected(notice.error());
        if (!*notice) return {};
        line["notice"] = {{"sequence", (*notice)->page.migration_sequence},
                          {"answers", (*notice)->answers},
                          {"told_gap_ns", (*notice)->told_gap_ns},
                          {"told_delta_realtime_ns", (*notice)->told_delta_realtime_ns}};
        return {};
    }

    Status end() {
        if (!here_) return {};
        if (auto well = run_loops(*here_, kLoopsBetweenMoves); !well) return well;
        if (auto stopped = here_->stop(); !stopped) return stopped;
        const auto pages = vmm::verify_workload(here_->memory(), here_->config().vcpus);
        if (!pages) return tl::unexpected(pages.error());
        const auto reports = vmm::witness_reports(here_->memory(), here_->config().vcpus);
        if (!reports) return tl::unexpected(reports.error());
        const vmm::WitnessSummary summary = vmm::summarise(*reports);
        Json line = event("end");
        line["pages_verified"] = *pages;
        line["loops"] = summary.loops;
        line["backward_steps"] = summary.backward_steps;
        line["worst_cross_skew_ns"] = summary.worst_cross_skew;
        emit(line);
        return {};
    }

    static vmm::MigrationOptions migration_options(const Step& step) {
        vmm::MigrationOptions options;
        options.io_timeout = 60s;
        if (!step.exchange) options.exchange_rounds = 0;
        options.exchange_time = 500ms;  // a round takes tens of them where the machine is busy
        options.rounds_max = 2;         // each is a second of a busy machine, and moves no clock
        return options;
    }

    SharedPage& page_;
    const kvm::System& system_;
    vmm::HostFindings findings_;
    std::unique_ptr<vmm::VirtualMachine> here_;  ///< the VM, where this side has it
    std::uint32_t move_ = 0;
};

}  // namespace

Status shuttle(SharedPage& page, const std::vector<Step>& steps) {
    auto system = kvm::System::open();
    if (!system) return tl::unexpected(std::move(system.error()));
    const auto report = kvm::examine(*system);
    if (!report) return tl::unexpected(report.error());
    if (!report->host)
        return state::fail(ErrorCode::kUnsupported, "doctor", report->reason,
                           "Run this inside `continuo-lab pair`");
    return Shuttle{page, *system, {*report->host, report->quirks}}.run(steps);
}

}  // namespace continuo::crosshost
