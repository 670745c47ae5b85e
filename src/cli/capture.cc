// continuo capture: the clocks of a running VM, all at one host counter value.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "command.h"
#include "continuo/state/codec.h"
#include "control.h"
#include "findings.h"
#include "record_table.h"
#include "text.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Stops the VM for as long as the capture takes, and lets it go on. --json prints the record "
    "as\n"
    "`continuo plan` takes it.\n"
    "Example:\n"
    "  $ continuo capture --control /tmp/vm.sock --json >r.json\n"
    "  $ continuo capture --control /tmp/vm.sock --output r.bin\n";

struct Options {
    std::string control;
    std::string output;
    bool json = false;
};

Result<state::Record> capture(const std::string& path, std::int64_t& paused_ns) {
    const auto answer = ask(path, {{"command", "capture"}}, std::chrono::seconds{30});
    if (!answer) return tl::unexpected(answer.error());
    const auto record = answer->find("record");
    const auto paused = answer->find("paused_ns");
    if (record == answer->end() || paused == answer->end() || !paused->is_number_integer())
        return state::fail(state::ErrorCode::kPeer, "control socket", "the answer holds no record");
    paused_ns = paused->get<std::int64_t>();
    return state::record_from_json(record->dump());
}

Result<ExitCode> write_blob(const std::string& path, const state::Record& record) {
    const auto blob = state::encode(record);
    std::FILE* file = std::fopen(path.c_str(), "wbe");
    if (file == nullptr)
        return state::fail(state::ErrorCode::kIo, path, "cannot be written", "Check the path",
                           errno);
    const bool written = std::fwrite(blob.data(), 1, blob.size(), file) == blob.size();
    const bool closed = std::fclose(file) == 0;
    if (written && closed) return ExitCode::kDone;
    return state::fail(state::ErrorCode::kIo, path, "cannot be written in full",
                       "Check the space that is left", errno);
}

Result<ExitCode> run(const Options& options) {
    const auto path = control_path(options.control);
    if (!path) return tl::unexpected(path.error());
    std::int64_t paused_ns = 0;
    const auto record = capture(*path, paused_ns);
    if (!record) return tl::unexpected(record.error());
    if (!options.output.empty())
        if (auto written = write_blob(options.output, *record); !written) return written;
    if (options.json) return print_json(state::record_to_json(*record));
    return print_text(record_table(*record) +
                      fmt::format("\nThe VM stood still for {}.\n", show_ns(paused_ns)));
}

}  // namespace

void add_capture(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(program, invocation, "capture",
                                    "Capture the clocks of a running VM", kExample, options, &run);
    command->add_option("--control", options->control, "The VM's control socket")
        ->type_name("PATH")
        ->required();
    command->add_option("--output", options->output, "Also write the record's wire format here")
        ->type_name("FILE");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
