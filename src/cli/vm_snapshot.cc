// continuo vm snapshot: has a running VM write itself into a file.
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>

#include <memory>

#include "output_file.h"
#include "progress.h"
#include "text.h"
#include "vm.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "The VM stands still while it is written, and then goes on; with --stop it stays as it is, "
    "and\n"
    "`vm resume` or `vm stop` decides. The file has its name once it is whole and on the disk.\n"
    "Example:\n"
    "  $ continuo vm snapshot --control /tmp/vm.sock --output vm.snapshot\n"
    "  $ continuo vm restore --from vm.snapshot --control /tmp/again.sock\n";

struct Options {
    std::string control;
    std::string output;
    bool stop = false;
    bool json = false;
};

constexpr std::chrono::seconds kPatience{30};

/// Says every second how far the file has grown, until there is an answer: that takes as long as
/// the disk does.
Result<Json> await_answer(const kvm::Fd& connection, int file) {
    pollfd one{connection.get(), POLLIN, 0};
    while (::poll(&one, 1, 1'000) == 0) {
        struct stat info {};
        if (::fstat(file, &info) == 0) progress("{} MiB are written", info.st_size >> 20);
    }
    return answer_or_error(receive_line(connection, kPatience));
}

Result<Json> take(const std::string& path, const Options& options, OutputFile& file) {
    const auto connection = connect_control(path);
    if (!connection) return tl::unexpected(connection.error());
    const Json request{{"command", "snapshot"}, {"stop", options.stop}};
    if (auto sent = send_line(*connection, request, file.fd()); !sent)
        return tl::unexpected(std::move(sent.error()));
    auto answer = await_answer(*connection, file.fd());
    if (!answer) return answer;
    if (auto kept = file.keep(); !kept) {
        if (options.stop) (void)ask(path, {{"command", "resume"}}, kPatience);
        return tl::unexpected(std::move(kept.error()));
    }
    return answer;
}

Result<ExitCode> run(const Options& options) {
    const auto path = control_path(options.control);
    if (!path) return tl::unexpected(path.error());
    auto file = OutputFile::create(options.output);
    if (!file) return tl::unexpected(std::move(file.error()));
    const auto answer = take(*path, options, *file);
    if (!answer) return tl::unexpected(answer.error());
    if (options.json) return print_json(*answer);
    Table table{{{""}, {""}}};
    for (const auto& [key, value] : answer->items())
        if (!value.is_object())
            table.add({key, value.is_string() ? value.get<std::string>() : value.dump()});
    return print_text(table.text());
}

}  // namespace

void add_vm_snapshot(CLI::App& vm, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(vm, invocation, "snapshot", "Write a running VM into a file",
                                    kExample, options, &run);
    command->add_option("--control", options->control, "The VM's control socket")
        ->type_name("PATH")
        ->required();
    command->add_option("--output", options->output, "The file; one of this name is replaced")
        ->type_name("FILE")
        ->required();
    command->add_flag("--stop", options->stop, "Leave the VM standing still");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
