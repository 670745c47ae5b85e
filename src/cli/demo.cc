// continuo demo: a real VM moves live from one process to another, and its certificate says to the
// nanosecond what happened to each of its clocks. Once for each policy; the restore by value that
// VMMs do today is measured beside it, on the same host and in the same run.
#include <fmt/format.h>

#include <memory>
#include <thread>
#include <variant>
#include <vector>

#include "arrival.h"
#include "certificate_table.h"
#include "child_process.h"
#include "command.h"
#include "continuo/vmm/witness_names.h"
#include "control.h"
#include "doctor_report.h"
#include "host_choice.h"
#include "local_host.h"
#include "policy_option.h"
#include "progress.h"
#include "running_vm.h"
#include "text.h"
#include "vm_options.h"

namespace continuo::cli {

namespace {

using state::Error;
using state::ErrorCode;
using state::fail;
using state::Policy;
using state::Status;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr const char* kExample =
    "A VM with 4 vCPUs, whose guest reads its clocks without pause, is migrated live to another\n"
    "process: as if never stopped (advance), then going on from the stop (freeze). Uses an "
    "emulated\n"
    "host where this machine's KVM is missing or does not honour TSC offsets.\n"
    "Example:\n"
    "  $ continuo demo\n"
    "  $ continuo demo --policy advance --json | jq .certificate\n";

constexpr auto kWarmUp = 300ms;
constexpr auto kAfterwards = 300ms;
constexpr auto kPatience = 60s;

struct Options {
    std::string host = "auto";
    std::string policy;
    std::string transport = "unix";
    WitnessOptions witness;
    bool json = false;
};

/// One migration.
struct Leg {
    Policy policy{};
    Arrival arrival;
    std::optional<state::Certificate> by_value;
    Json witness;
    std::uint64_t pages_verified = 0;
};
/// A leg that this host cannot do, or that failed.
struct NoLeg {
    Policy policy{};
    Error error;
};
using AnyLeg = std::variant<Leg, NoLeg>;

// -- one migration --

/// The VM's first process: `vm run`, reached through its control socket.
class SourceProcess {
  public:
    static Result<SourceProcess> start(const Options& options, const TemporaryFolder& folder,
                                       std::string_view policy) {
        std::string control = folder.file(fmt::format("{}.control", policy));
        auto child = ChildProcess::start({"vm", "run", "--control", control, "--vcpus",
                                          options.witness.vcpus, "--memory", options.witness.memory,
                                          "--dirty-rate", options.witness.dirty_rate});
        if (!child) return tl::unexpected(std::move(child.error()));
        return SourceProcess{std::move(*child), std::move(control)};
    }

    /// Until the guest has looked at its clocks for a while.
    Status await_guest() {
        const auto until = Clock::now() + kPatience;
        while (Clock::now() < until) {
            const auto status = ask(control_, {{"command", "status"}}, 5s);
            if (status && !status->at("witness").is_null() &&
                status->at("witness").value("loops", std::uint64_t{0}) > 1000) {
                std::this_thread::sleep_for(kWarmUp);
                return {};
            }
            if (const auto code = child_.wait(0ms))
                return fail(ErrorCode::kPeer, "the source's process",
                            fmt::format("it ended with {} before the VM ran", *code),
                            "Its own message stands above");
            std::this_thread::sleep_for(20ms);
        }
        return fail(ErrorCode::kTimeout, "the source's process", "its guest does not run",
                    "Run `continuo doctor`");
    }

    /// Tells it to migrate; the answer comes when it is over.
    Status begin_send(const vmm::Address& to) {
        auto connection = connect_control(control_);
        if (!connection) return tl::unexpected(std::move(connection.error()));
        connection_ = std::move(*connection);
        return send_line(connection_, {{"command", "send"}, {"to", to.text()}, {"force", true}});
    }
    Result<Json> sent() { return answer_or_error(receive_line(connection_, kPatience)); }

    Status ended() {
        if (child_.wait(10s)) return {};
        return fail(ErrorCode::kTimeout, "the source's process",
                    "it did not end after the VM had moved");
    }

  private:
    SourceProcess(ChildProcess child, std::string control)
        : child_{std::move(child)}, control_{std::move(control)} {}
    ChildProcess child_;
    std::string control_;
    kvm::Fd connection_;
};

vmm::MigrationStats stats_of(const Json& answer, vmm::MigrationStats stats) {
    const auto found = answer.find("migration");
    if (found == answer.end() || !found->is_object()) return stats;
    const auto number = [&](const char* key) { return found->value(key, std::uint64_t{0}); };
    stats.rounds = static_cast<std::uint32_t>(number("rounds"));
    stats.pages_sent = number("pages_sent");
    stats.zero_pages = number("zero_pages");
    stats.last_pages = number("last_pages");
    stats.bytes = number("bytes");
    stats.total = std::chrono::nanoseconds{found->value("total_ns", std::int64_t{0})};
    stats.downtime = std::chrono::nanoseconds{found->value("downtime_ns", std::int64_t{0})};
    return stats;
}

Result<vmm::Address> listen_address(const Options& options, const TemporaryFolder& folder,
                                    std::string_view policy) {
    return vmm::parse_address(options.transport == "tcp"
                                  ? std::string{"tcp:127.0.0.1:0"}
                                  : "unix:" + folder.file(fmt::format("{}.migration", policy)));
}

/// Lets the VM run on for a while, then looks at everything that it saw and wrote.
Status examine_guest(vmm::VirtualMachine& machine, Leg& leg) {
    std::this_thread::sleep_for(kAfterwards);
    if (auto stopped = machine.stop(); !stopped) return stopped;
    if (auto well = machine.health(); !well) return well;
    leg.witness = witness_json(machine);
    const auto pages = vmm::verify_workload(machine.memory(), machine.config().vcpus);
    if (!pages) return tl::unexpected(pages.error());
    leg.pages_verified = *pages;
    return {};
}

/// How a guest's clocks are restored: by a plan, or by value, to be measured beside it.
enum class Restore : std::uint8_t { kPlanned, kByValue };

Result<Leg> migrate(const LocalHost& host, const Options& options, const TemporaryFolder& folder,
                    Policy policy, Restore restore) {
    const std::string policy_name =
        fmt::format("{}{}", state::name(policy), restore == Restore::kByValue ? "-by-value" : "");
    progress("{}: booting a VM with {} vCPUs in another process", policy_name,
             options.witness.vcpus);
    auto source = SourceProcess::start(options, folder, policy_name);
    if (!source) return tl::unexpected(std::move(source.error()));
    if (auto runs = source->await_guest(); !runs) return tl::unexpected(std::move(runs.error()));

    const auto address = listen_address(options, folder, policy_name);
    if (!address) return tl::unexpected(address.error());
    auto receiver = vmm::Receiver::open(*address);
    if (!receiver) return tl::unexpected(std::move(receiver.error()));
    vmm::ArrivalOptions how;
    how.plan.policy = policy;
    how.by_value = restore == Restore::kByValue;
    vmm::KvmDestinationVm vm{host.system, host.findings, how};
    progress("{}: migrating it live to this process", policy_name);
    if (auto begun = source->begin_send((*receiver)->address()); !begun)
        return tl::unexpected(std::move(begun.error()));
    auto outcome = (*receiver)->receive(vm, {}, kPatience);
    if (!outcome) return tl::unexpected(std::move(outcome.error()));
    if (auto* discarded = std::get_if<vmm::Discarded>(&*outcome))
        return tl::unexpected(std::move(discarded->reason));
    auto arrival = describe_arrival(vm, std::get<vmm::Arrived>(*outcome));
    if (!arrival) return tl::unexpected(std::move(arrival.error()));
    Leg leg{policy, std::move(*arrival), std::nullopt, {}, 0};
    const auto answer = source->sent();
    if (!answer) return tl::unexpected(answer.error());
    leg.arrival.stats = stats_of(*answer, leg.arrival.stats);
    if (auto gone = source->ended(); !gone) return tl::unexpected(std::move(gone.error()));
    if (auto seen = examine_guest(*vm.machine(), leg); !seen)
        return tl::unexpected(std::move(seen.error()));
    return leg;
}

// -- what is printed --

Json leg_json(const AnyLeg& any) {
    Json json;
    if (const auto* none = std::get_if<NoLeg>(&any)) {
        json["policy"] = state::name(none->policy);
        json["error"] = state::error_to_json(none->error).at("error");
        return json;
    }
    const Leg& leg = std::get<Leg>(any);
    const auto worst = worst_first_read_ns(leg.arrival.certificate);
    json["policy"] = state::name(leg.policy);
    json["certificate"] = state::certificate_to_json(leg.arrival.certificate);
    json["by_value"] = leg.by_value ? state::certificate_to_json(*leg.by_value) : Json(nullptr);
    json["first_read_ns_max"] = worst ? Json(*worst) : Json(nullptr);
    json["attempts"] = leg.arrival.attempts;
    json["migration"] = stats_json(leg.arrival.stats);
    json["witness"] = leg.witness;
    json["pages_verified"] = leg.pages_verified;
    return json;
}

/// The first leg's certificate stands at the top, for `jq .certificate`.
Json demo_json(const LocalHost& host, const std::vector<AnyLeg>& legs) {
    Json json;
    json["schema"] = "continuo/demo/1";
    json["host"] = doctor_json(host.report);
    json["host"]["emulated"] = is_emulated_host();
    json["policy"] = nullptr;
    json["certificate"] = nullptr;
    json["by_value"] = nullptr;
    json["runs"] = Json::array();
    for (const AnyLeg& leg : legs)
        json["runs"].push_back(leg_json(leg));
    const Json& first = json["runs"].front();
    json["policy"] = first.at("policy");
    if (first.contains("certificate")) {
        json["certificate"] = first.at("certificate");
        json["by_value"] = first.at("by_value");
    }
    return json;
}

/// What the guest took note of; empty where nobody told it anything.
std::string notice_text(const Leg& leg) {
    if (!leg.arrival.certificate.notice || !leg.witness.is_object()) return "";
    const Json& notice = leg.witness.at("notice");
    if (!notice.is_object()) return "";
    const bool pending = notice.at("sequence").get<std::uint64_t>() % 2 != 0;
    return fmt::format("the guest {} a gap of {} ns, and REALTIME behind by {} ns",
                       pending ? "has not answered yet; it knew of" : "has taken note of",
                       notice.at("told_gap_ns").get<std::uint64_t>(),
                       notice.at("told_delta_realtime_ns").get<std::uint64_t>());
}

std::string worst_skew_key() {
    return fmt::format("worst_cross_skew_{}", vmm::kCrossSkewUnit);
}

std::string migration_text(const Leg& leg) {
    const auto& stats = leg.arrival.stats;
    const auto worst = worst_first_read_ns(leg.arrival.certificate);
    Table table{{{""}, {""}}};
    table.add({"pre-copy",
               fmt::format("{} rounds, {} pages, {} KiB in {}", stats.rounds, stats.pages_sent,
                           stats.bytes / 1024, show_ns(stats.total.count()))});
    table.add({"blackout", fmt::format("{} (stop to running, with {} pages)",
                                       show_ns(stats.downtime.count()), stats.last_pages)});
    table.add({"clocks set", leg.arrival.attempts == 1
                                 ? "once, in time for the common instant"
                                 : fmt::format("{} times, until the common instant was met",
                                               leg.arrival.attempts)});
    if (worst)
        table.add({"first guest read",
                   fmt::format("at most {} after the prescribed instant", show_ns(*worst))});
    if (leg.witness.is_object())
        table.add({"witness", fmt::format("{} loops, {} backward steps, {} {} {}",
                                          leg.witness.at("loops").get<std::uint64_t>(),
                                          leg.witness.at("backward_steps").get<std::uint64_t>(),
                                          vmm::kCrossSkewMeaning,
                                          leg.witness.at(worst_skew_key()).get<std::uint64_t>(),
                                          vmm::kCrossSkewUnit)});
    if (const std::string told = notice_text(leg); !told.empty()) table.add({"notice", told});
    table.add({"memory", fmt::format("{} pages hold what the guest wrote", leg.pages_verified)});
    return table.text("  ");
}

std::string leg_text(const AnyLeg& any) {
    if (const auto* none = std::get_if<NoLeg>(&any))
        return fmt::format("== {}: not done\n", state::name(none->policy)) +
               wrapped(none->error.message(), "  ", "  ");
    const Leg& leg = std::get<Leg>(any);
    const auto& certificate = leg.arrival.certificate;
    return fmt::format("== {}\n", state::name(leg.policy)) +
           wrapped(std::string{state::meaning(leg.policy)} + ".", "  ", "  ") +
           migration_text(leg) + "\n" + certificate_table(certificate) + "\n" +
           observed_table(certificate) + "\n" +
           seam_plot(certificate, leg.by_value, leg.arrival.guest_frequency);
}

std::string demo_text(const LocalHost& host, const std::vector<AnyLeg>& legs) {
    std::string text =
        fmt::format("Host: {}{}, verdict {}\n", host.findings.host.identity.kernel,
                    is_emulated_host() ? " (emulated)" : "", name(host.report.verdict));
    for (const AnyLeg& leg : legs)
        text += "\n" + leg_text(leg);
    return text;
}

// -- the whole --

std::vector<AnyLeg> run_legs(const LocalHost& host, const Options& options,
                             const TemporaryFolder& folder, const std::vector<Policy>& policies) {
    std::vector<AnyLeg> legs;
    for (const Policy policy : policies) {
        auto leg = migrate(host, options, folder, policy, Restore::kPlanned);
        if (!leg) {
            legs.emplace_back(NoLeg{policy, std::move(leg.error())});
            continue;
        }
        auto beside = migrate(host, options, folder, policy, Restore::kByValue);
        if (beside)
            leg->by_value = std::move(beside->arrival.certificate);
        else
            progress("by value: {}", beside.error().message());
        legs.emplace_back(std::move(*leg));
    }
    return legs;
}

/// Every leg counts, but one that this host must refuse and that nobody asked for by name.
ExitCode code_of(const std::vector<AnyLeg>& legs, bool asked_by_name) {
    for (const AnyLeg& any : legs) {
        if (const auto* none = std::get_if<NoLeg>(&any)) {
            const bool first = &any == &legs.front();
            if (none->error.code == ErrorCode::kRefused && !first && !asked_by_name) continue;
            return exit_code(none->error.code);
        }
        if (!std::get<Leg>(any).arrival.certificate.holds()) return ExitCode::kDoesNotHold;
    }
    return ExitCode::kDone;
}

Result<ExitCode> run_here(const LocalHost& host, const Options& options,
                          const std::vector<Policy>& policies) {
    const auto folder = TemporaryFolder::make();
    if (!folder) return tl::unexpected(folder.error());
    const auto legs = run_legs(host, options, *folder, policies);
    const ExitCode code = code_of(legs, !options.policy.empty());
    if (options.json) return print_json(demo_json(host, legs), code);
    return print_text(demo_text(host, legs), code);
}

Error run_emulated(const Options& options) {
    std::vector<std::string> words{"demo",
                                   "--host",
                                   "local",
                                   "--vcpus",
                                   options.witness.vcpus,
                                   "--memory",
                                   options.witness.memory,
                                   "--dirty-rate",
                                   options.witness.dirty_rate,
                                   "--transport",
                                   options.transport};
    if (!options.policy.empty()) words.insert(words.end(), {"--policy", options.policy});
    if (options.json) words.emplace_back("--json");
    return run_on_emulated_host(words);
}

/// Why this machine's KVM will not do; empty where it will.
std::string why_not_local(const Result<LocalHost>& host) {
    if (!host) return host.error().message();
    if (host->report.verdict == kvm::Verdict::kExact) return "";
    return fmt::format("this machine's KVM ({}) is \"{}\": {}", host->findings.host.identity.kernel,
                       name(host->report.verdict), meaning(host->report.verdict));
}

Result<ExitCode> run(const Options& options) {
    const auto choice = parse_host(options.host);
    if (!choice) return tl::unexpected(choice.error());
    const auto shape = parse_witness_options(options.witness);
    if (!shape) return tl::unexpected(shape.error());
    if (options.transport != "unix" && options.transport != "tcp")
        return fail(ErrorCode::kInvalidArgument, "--transport",
                    fmt::format("'{}' is no transport", printable(options.transport)),
                    "Give unix or tcp");
    std::vector<Policy> policies{Policy::kAdvance, Policy::kFreeze};
    if (!options.policy.empty()) {
        const auto policy = parse_policy(options.policy);
        if (!policy) return tl::unexpected(policy.error());
        policies = {*policy};
    }
    if (*choice == HostChoice::kEmulated) return tl::unexpected(run_emulated(options));
    progress("examining this host");
    const auto host = examine_local_host();
    if (*choice == HostChoice::kAuto && !is_emulated_host()) {
        if (const std::string why = why_not_local(host); !why.empty()) {
            progress("{}", why);
            progress(
                "using an emulated host instead: Linux with KVM under QEMU, with this same "
                "program in it");
            return tl::unexpected(run_emulated(options));
        }
    }
    if (!host) return tl::unexpected(host.error());
    return run_here(*host, options, policies);
}

}  // namespace

void add_demo(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(program, invocation, "demo", "Migrate a real VM live and certify its clocks",
                    kExample, options, &run);
    add_host_option(*command, options->host);
    command
        ->add_option("--policy", options->policy,
                     "Only this policy (else advance, then freeze, where the host can)")
        ->type_name("POLICY");
    command->add_option("--transport", options->transport, "unix (the default) or tcp")
        ->type_name("unix|tcp");
    add_witness_options(*command, options->witness);
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
