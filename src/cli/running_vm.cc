#include "running_vm.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <iterator>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "continuo/vmm/confinement.h"
#include "continuo/vmm/snapshot.h"
#include "continuo/vmm/witness_names.h"
#include "progress.h"
#include "text.h"
#include "time_devices.h"

namespace continuo::cli {

using state::ErrorCode;
using state::fail;
using state::Json;
using state::Result;
using state::Status;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

namespace {

constexpr const char* kWhoHasIt = "Find out who has it; `continuo vm resume` lets it go on here";

volatile std::sig_atomic_t signalled = 0;

extern "C" void on_signal(int /*number*/) {
    signalled = 1;
}

std::string text_of_key(const Json& request, const char* key) {
    const auto found = request.find(key);
    return found != request.end() && found->is_string() ? found->get<std::string>() : std::string{};
}

bool flag_of_key(const Json& request, const char* key) {
    const auto found = request.find(key);
    return found != request.end() && found->is_boolean() && found->get<bool>();
}

/// A whole number of the request, from 1 to `most`; `otherwise` where there is none.
Result<std::uint64_t> number_of_key(const Json& request, const char* key, std::uint64_t otherwise,
                                    std::uint64_t most) {
    const auto found = request.find(key);
    if (found == request.end()) return otherwise;
    if (found->is_number_unsigned()) {
        const auto number = found->get<std::uint64_t>();
        if (number >= 1 && number <= most) return number;
    }
    return fail(ErrorCode::kInvalidArgument, fmt::format("control socket, \"{}\"", key),
                fmt::format("is no whole number from 1 to {}", most));
}

/// How long a migration may go on, and how it is to end.
Result<vmm::MigrationOptions> limits_of(const Json& request) {
    const auto downtime =
        number_of_key(request, "downtime_limit_ns", kDowntimeLimitNs, kDowntimeLimitNsMost);
    if (!downtime) return tl::unexpected(downtime.error());
    const auto rounds = number_of_key(request, "rounds", kRounds, kRoundsMost);
    if (!rounds) return tl::unexpected(rounds.error());
    vmm::MigrationOptions options;
    options.downtime_max = std::chrono::nanoseconds{static_cast<std::int64_t>(*downtime)};
    options.rounds_max = static_cast<std::uint32_t>(*rounds);
    options.force = flag_of_key(request, "force");
    return options;
}

Json progress_json(const vmm::MigrationProgress& now) {
    Json json{{"round", now.round},
              {"pages", now.pages},
              {"pages_done", now.pages_done},
              {"bytes", now.bytes},
              {"bytes_a_second", now.bytes_a_second}};
    json["expected_downtime_ns"] =
        now.expected_downtime ? Json(now.expected_downtime->count()) : Json{};
    return json;
}

std::chrono::milliseconds as_ms(std::chrono::nanoseconds length) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(length);
}

class RunningVm {
  public:
    RunningVm(const LocalHost& host, std::unique_ptr<vmm::VirtualMachine> machine,
              RunOptions options)
        : host_{host}, options_{std::move(options)} {
        take(std::move(machine));
        if (options_.run_for) until_ = Clock::now() + *options_.run_for;
    }

    Result<VmRun> run() {
        while (!end_) {
            wait();
            if (auto well = look(); !well) return tl::unexpected(std::move(well.error()));
        }
        if (auto* machine = vm_->machine()) {
            if (auto stopped = machine->stop(); !stopped)
                return tl::unexpected(std::move(stopped.error()));
            options_.console.print(*machine);
        }
        return VmRun{*end_, std::move(vm_), stats_, resets_};
    }

  private:
    void take(std::unique_ptr<vmm::VirtualMachine> machine) {
        vm_ = std::make_unique<vmm::KvmSourceVm>(host_.system, std::move(machine), host_.findings);
    }

    /// Until there is a client, or something new of the guest, or it is time to look again.
    void wait() {
        auto left = 50ms;
        if (until_) left = std::min(left, std::max(0ms, as_ms(*until_ - Clock::now())));
        const auto& control = options_.control;
        pollfd fds[] = {{control != nullptr ? control->fd() : -1, POLLIN, 0},
                        {vm_->machine()->attention_fd(), POLLIN, 0},
                        {options_.console.input_fd(), POLLIN, 0}};
        if (::poll(fds, std::size(fds), static_cast<int>(left.count())) <= 0) return;
        if (fds[1].revents != 0) vm_->machine()->clear_attention();
        if (fds[2].revents != 0) options_.console.read_input();
        if (fds[0].revents == 0) return;
        if (auto client = control->accept()) serve(*client);
    }

    Status look() {
        if (end_) return {};
        vmm::VirtualMachine& machine = *vm_->machine();
        options_.console.print(machine);
        options_.console.type(machine);
        tend_time_devices(machine);
        const auto ended = machine.ended();
        if (ended == vmm::GuestEnd::kReset && options_.start_again) return start_again();
        if (auto well = machine.health(); !well) return well;
        if (ended) end_ = end_of(*ended);
        if (until_ && Clock::now() >= *until_) end_ = VmEnd::kTime;
        if (signalled != 0) end_ = VmEnd::kSignal;
        return {};
    }

    static VmEnd end_of(vmm::GuestEnd ended) {
        switch (ended) {
            case vmm::GuestEnd::kExit:
                return VmEnd::kGuest;
            case vmm::GuestEnd::kPowerOff:
                return VmEnd::kPowerOff;
            case vmm::GuestEnd::kReset:
                return VmEnd::kReset;
        }
        return VmEnd::kGuest;
    }

    /// A machine that is switched on anew: everything but the guest's files is gone.
    Status start_again() {
        if (auto stopped = vm_->machine()->stop(); !stopped) return stopped;
        // A vCPU that shut down says where it stood.
        if (auto well = vm_->machine()->health(); !well) progress("{}", well.error().message());
        options_.console.print(*vm_->machine());
        vm_->destroy();
        auto machine = options_.start_again();
        if (!machine) return tl::unexpected(std::move(machine.error()));
        progress("the guest has reset its machine: started again, time {}", ++resets_);
        take(std::move(*machine));
        return {};
    }

    /// A client that breaks off harms nobody: its command has been carried out or not.
    void serve(const kvm::Fd& client) {
        const auto request = receive_message(client, 2s);
        const auto answer = request ? carry_out(request->json, request->file, client)
                                    : tl::unexpected(request.error());
        (void)send_line(client, answer ? *answer : state::error_to_json(answer.error()));
    }

    Result<Json> carry_out(const Json& request, const kvm::Fd& file, const kvm::Fd& client) {
        const std::string command = text_of_key(request, "command");
        if (command == "status") return status();
        if (command == "capture") return capture();
        if (command == "send") return send(request, client);
        if (command == "snapshot") return snapshot(request, file);
        if (command == "resume") return resume();
        if (command == "stop") {
            end_ = VmEnd::kStopped;
            return status();
        }
        return fail(ErrorCode::kInvalidArgument, "control socket",
                    fmt::format("no command '{}'", printable(command)),
                    "The commands are status, capture, send, snapshot, resume and stop");
    }

    Result<Json> status() {
        auto& machine = *vm_->machine();
        Json json;
        json["running"] = machine.running();
        json["vcpus"] = machine.config().vcpus;
        json["memory_bytes"] = machine.config().memory_bytes;
        json["witness"] = witness_json(machine);
        json["notice"] = notice_device_json(machine);
        json["vmclock"] = vmclock_json(machine);
        return json;
    }

    Result<Json> capture() {
        const bool was_running = vm_->machine()->running();
        const auto stopped_at = Clock::now();
        if (auto stopped = vm_->stop(); !stopped) return tl::unexpected(stopped.error());
        const auto captured = vm_->capture_clocks();
        if (was_running)
            if (auto resumed = vm_->resume(); !resumed) return tl::unexpected(resumed.error());
        if (!captured) return tl::unexpected(captured.error());
        Json json;
        json["record"] = state::record_to_json(*vm_->record());
        json["paused_ns"] = std::chrono::nanoseconds{Clock::now() - stopped_at}.count();
        return json;
    }

    Result<Json> resume() {
        if (auto resumed = vm_->resume(); !resumed) return tl::unexpected(resumed.error());
        return status();
    }

    Result<Json> snapshot(const Json& request, const kvm::Fd& file) {
        if (!file) {
            return fail(ErrorCode::kInvalidArgument, "vm snapshot", "no file came with it",
                        "`continuo vm snapshot` passes one");
        }
        if (!vm_->machine()->running())
            return fail(ErrorCode::kBusy, "vm snapshot", "the VM stands still", kWhoHasIt);
        options_.console.print(*vm_->machine());
        const bool stays = flag_of_key(request, "stop");
        Result<vmm::SavedSnapshot> saved;
        const auto confined = vmm::run_confined(vmm::Confinement::kMigration, [&] {
            saved = vmm::save_snapshot(
                *vm_, file.get(),
                stays ? vmm::AfterSnapshot::kStandStill : vmm::AfterSnapshot::kGoOn);
        });
        if (!confined) return tl::unexpected(confined.error());
        if (!saved) return tl::unexpected(std::move(saved.error()));
        progress("snapshot {}: {} pages", vmm::text_of(saved->id), saved->pages);
        return Json{{"id", vmm::text_of(saved->id)},
                    {"bytes", saved->bytes},
                    {"pages", saved->pages},
                    {"zero_pages", saved->zero_pages},
                    {"stood_still_ns", saved->stood_still.count()},
                    {"running", vm_->machine()->running()},
                    {"record", state::record_to_json(*vm_->record())}};
    }

    Result<Json> send(const Json& request, const kvm::Fd& client) {
        const auto address = vmm::parse_address(text_of_key(request, "to"));
        if (!address) return tl::unexpected(address.error());
        if (!vm_->machine()->running())
            return fail(ErrorCode::kBusy, "vm send", "the VM stands still", kWhoHasIt);
        const auto connect = [to = *address] { return vmm::connect_to(to, 5s); };
        auto connection = connect();
        if (!connection) return tl::unexpected(std::move(connection.error()));
        auto limits = limits_of(request);
        if (!limits) return tl::unexpected(std::move(limits.error()));
        vmm::MigrationOptions options = std::move(*limits);
        if (flag_of_key(request, "progress")) {
            options.progress = [&client](const vmm::MigrationProgress& now) {
                offer_line(client, {{"progress", progress_json(now)}});
            };
        }
        options.observer = [this, round = 0](vmm::Step step) mutable {
            // What it printed here is printed here, up to its last byte.
            if (auto* machine = vm_->machine()) {
                options_.console.print(*machine);
                tend_time_devices(*machine);
            }
            if (step == vmm::Step::kSourceRound) progress("pre-copy, round {}", ++round);
            if (step == vmm::Step::kSourceStop) progress("the guest is stopped");
            if (step == vmm::Step::kSourceCommit) progress("the VM is handed over");
        };
        progress("sending the VM to {}", address->text());
        std::optional<vmm::SourceOutcome> outcome;
        const auto confined = vmm::run_confined(vmm::Confinement::kMigration, [&] {
            outcome = vmm::send_vm(std::move(*connection), *vm_, connect, options);
        });
        if (!confined) return tl::unexpected(confined.error());
        return outcome_json(*outcome);
    }

    Result<Json> outcome_json(const vmm::SourceOutcome& outcome) {
        if (const auto* moved = std::get_if<vmm::Moved>(&outcome)) {
            end_ = VmEnd::kMovedAway;
            stats_ = moved->stats;
            return Json{{"outcome", "moved"},
                        {"migration", stats_json(moved->stats)},
                        {"record", state::record_to_json(*vm_->record())}};
        }
        state::Error reason = std::holds_alternative<vmm::Kept>(outcome)
                                  ? std::get<vmm::Kept>(outcome).reason
                                  : std::get<vmm::Undecided>(outcome).reason;
        const bool kept = std::holds_alternative<vmm::Kept>(outcome);
        reason.what += kept ? "; the VM goes on here, as it was" : "; the VM stands still here";
        return tl::unexpected(std::move(reason));
    }

    const LocalHost& host_;
    RunOptions options_;
    std::unique_ptr<vmm::KvmSourceVm> vm_;
    std::uint32_t resets_ = 0;
    std::optional<Clock::time_point> until_;
    std::optional<VmEnd> end_;
    std::optional<vmm::MigrationStats> stats_;
};

/// What the witness was told of gaps and has taken note of; null where it cannot be read.
Json notice_json(vmm::VirtualMachine& machine) {
    const auto notice = vmm::read_notice(machine.memory());
    if (!notice || !*notice) return nullptr;
    Json json;
    json["sequence"] = (*notice)->page.migration_sequence;
    json["answers"] = (*notice)->answers;
    json["told_gap_ns"] = (*notice)->told_gap_ns;
    json["told_delta_realtime_ns"] = (*notice)->told_delta_realtime_ns;
    return json;
}

}  // namespace

void end_vms_by_signals() {
    struct sigaction action {};
    action.sa_handler = on_signal;
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    // A snapshot that outgrows the limit of a file's size is an error, and no end.
    std::signal(SIGXFSZ, SIG_IGN);
}

std::string_view name(VmEnd end) {
    switch (end) {
        case VmEnd::kTime:
            return "time";
        case VmEnd::kSignal:
            return "signal";
        case VmEnd::kStopped:
            return "stopped";
        case VmEnd::kMovedAway:
            return "moved";
        case VmEnd::kGuest:
            return "guest";
        case VmEnd::kPowerOff:
            return "power-off";
        case VmEnd::kReset:
            return "reset";
    }
    return "unknown";
}

Result<VmRun> run_vm(const LocalHost& host, std::unique_ptr<vmm::VirtualMachine> machine,
                     RunOptions options) {
    if (auto confined = vmm::confine_this_thread(vmm::Confinement::kControl); !confined)
        return tl::unexpected(std::move(confined.error()));
    return RunningVm{host, std::move(machine), std::move(options)}.run();
}

Json stats_json(const vmm::MigrationStats& stats) {
    Json json;
    json["rounds"] = stats.rounds;
    json["pages_sent"] = stats.pages_sent;
    json["zero_pages"] = stats.zero_pages;
    json["last_pages"] = stats.last_pages;
    json["bytes"] = stats.bytes;
    json["total_ns"] = stats.total.count();
    json["expected_downtime_ns"] = stats.expected_downtime.count();
    json["downtime_ns"] = stats.downtime.count();
    return json;
}

Json witness_json(vmm::VirtualMachine& machine) {
    const auto reports = vmm::witness_reports(machine.memory(), machine.config().vcpus);
    if (!reports) return nullptr;
    const vmm::WitnessSummary summary = vmm::summarise(*reports);
    Json json;
    json["loops"] = summary.loops;
    json["backward_steps"] = summary.backward_steps;
    json[fmt::format("worst_backward_{}", vmm::kCounterName)] = summary.worst_backward_counter;
    json[fmt::format("worst_backward_{}", vmm::kClockName)] = summary.worst_backward_clock;
    json[fmt::format("worst_cross_skew_{}", vmm::kCrossSkewUnit)] = summary.worst_cross_skew;
    json["ticks"] = summary.ticks;
    json["guest_stopped"] = summary.guest_stopped;
    json["pages_written"] = summary.pages_written;
    json["generation"] = summary.generation ? Json(*summary.generation) : Json{};
    json["notice"] = notice_json(machine);
    return json;
}

}  // namespace continuo::cli
