// continuo vm send: has a running VM migrate to where a `vm receive` listens.
#include <fmt/format.h>

#include <memory>

#include "continuo/vmm/address.h"
#include "number.h"
#include "progress.h"
#include "run_progress.h"
#include "text.h"
#include "vm.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Memory is copied in passes while the guest runs, until what is left takes less than\n"
    "--downtime-limit. Where the guest writes faster than that, it stays here after --rounds "
    "passes;\n"
    "with --force it is stopped all the same.\n"
    "The VM's process keeps it until the destination has said that it runs: whatever fails, "
    "exactly\n"
    "one VM is left, and the error says where.\n"
    "Example:\n"
    "  $ continuo vm send --control /tmp/vm.sock --to tcp:192.0.2.7:7000 --downtime-limit 300ms\n";

struct Options {
    std::string control;
    std::string to;
    std::string downtime_limit = fmt::format("{}ns", kDowntimeLimitNs);
    std::string rounds = std::to_string(kRounds);
    bool force = false;
    bool json = false;
};

/// Without a word of progress; longer than a migration's own time limits together.
constexpr std::chrono::minutes kPatience{10};

Result<Json> request_of(const Options& options) {
    const auto address = vmm::parse_address(options.to);
    if (!address) return tl::unexpected(address.error());
    const auto limit = parse_duration("--downtime-limit", options.downtime_limit);
    if (!limit) return tl::unexpected(limit.error());
    const auto rounds = parse_u64("--rounds", options.rounds, {.min = 1, .max = kRoundsMost});
    if (!rounds) return tl::unexpected(rounds.error());
    if (*limit == 0 || *limit > kDowntimeLimitNsMost)
        return state::fail(state::ErrorCode::kInvalidArgument, "--downtime-limit",
                           "is not from 1ns to 24h");
    return Json{{"command", "send"},           {"to", options.to},  {"progress", true},
                {"downtime_limit_ns", *limit}, {"rounds", *rounds}, {"force", options.force}};
}

std::string in_words(const Json& now) {
    std::string text =
        fmt::format("round {}: {} of {} pages, {} MiB sent, {} MiB/s", now.value("round", 0U),
                    now.value("pages_done", std::uint64_t{0}), now.value("pages", std::uint64_t{0}),
                    now.value("bytes", std::uint64_t{0}) >> 20,
                    now.value("bytes_a_second", std::uint64_t{0}) >> 20);
    const auto expected = now.find("expected_downtime_ns");
    if (expected != now.end() && expected->is_number_integer())
        text += fmt::format(", expected downtime {} ms", expected->get<std::int64_t>() / 1'000'000);
    return text;
}

/// Shows what is told on the way: a pass that is under way on a line that is written over, where
/// there is a terminal, and each that is over on one of its own.
class Passes {
  public:
    void take(const Json& now) {
        const bool same =
            !passes_.empty() && passes_.back().value("round", 0U) == now.value("round", 0U);
        if (!same) {
            end();
            passes_.push_back(Json{});
        }
        passes_.back() = now;
        live_.show(in_words(now));
    }
    /// The pass that was told of last is over.
    void end() {
        live_.end();
        if (!passes_.empty()) progress("{}", in_words(passes_.back()));
    }
    /// The last that was told of each.
    const Json& json() const { return passes_; }

  private:
    RunProgress live_;
    Json passes_ = Json::array();
};

Result<Json> send(const std::string& control, const Json& request, Passes& passes) {
    const auto connection = connect_control(control);
    if (!connection) return tl::unexpected(connection.error());
    if (auto sent = send_line(*connection, request); !sent)
        return tl::unexpected(std::move(sent.error()));
    std::string pending;
    for (;;) {
        auto line = receive_line(*connection, kPatience, pending);
        if (!line) return line;
        const auto now = line->find("progress");
        if (now == line->end() || !now->is_object()) return answer_or_error(std::move(line));
        passes.take(*now);
    }
}

Result<ExitCode> run(const Options& options) {
    const auto request = request_of(options);
    if (!request) return tl::unexpected(request.error());
    const auto path = control_path(options.control);
    if (!path) return tl::unexpected(path.error());
    Passes passes;
    auto answer = send(*path, *request, passes);
    passes.end();
    if (!answer) return tl::unexpected(answer.error());
    if (options.json) {
        (*answer)["passes"] = passes.json();
        return print_json(*answer);
    }
    Table table{{{""}, {""}}};
    table.add({"outcome", answer->value("outcome", "")});
    const auto stats = answer->find("migration");
    if (stats != answer->end())
        for (const auto& [key, value] : stats->items())
            table.add({key, value.dump()});
    return print_text(table.text());
}

}  // namespace

void add_vm_send(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command =
        add_command(vm, invocation, "send", "Migrate a running VM live", kExample, options, &run);
    command->add_option("--control", options->control, "The VM's control socket")
        ->type_name("PATH")
        ->required();
    command->add_option("--to", options->to, "Where `vm receive` listens")
        ->type_name("unix:PATH|tcp:HOST:PORT")
        ->required();
    command
        ->add_option("--downtime-limit", options->downtime_limit,
                     "Stop the guest once the rest takes less (else 50ms)")
        ->type_name("DURATION");
    command->add_option("--rounds", options->rounds, "Passes over its memory, 1 to 900 (else 30)")
        ->type_name("N");
    command->add_flag("--force", options->force, "Then stop the guest, whatever is left");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
