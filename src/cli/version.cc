// continuo version: what this program is, and which formats it reads.
#include <fmt/format.h>

#include <memory>

#include "command.h"
#include "continuo/state/codec.h"
#include "text.h"

namespace continuo::cli {

namespace {

struct Options {
    bool json = false;
};

constexpr const char* kExample =
    "Example:\n"
    "  $ continuo version --json\n"
    "  {\"version\": \"0.1.0\", \"record_format\": 1, ...}\n";

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

Result<ExitCode> run(const Options& options) {
    if (options.json) {
        Json json;
        json["version"] = CONTINUO_VERSION;
        json["record_format"] = state::kRecordVersion;
        json["compiler"] = kCompiler;
        json["build_type"] = CONTINUO_BUILD_TYPE;
        json["sanitizers"] = CONTINUO_SANITIZERS;
        return print_json(json);
    }
    Table table{{{""}, {""}}};
    table.add({"continuo", CONTINUO_VERSION});
    table.add({"record format", fmt::format("writes {0}, reads up to {0}", state::kRecordVersion)});
    table.add({"compiler", kCompiler});
    table.add({"build", CONTINUO_BUILD_TYPE});
    if (std::string_view{CONTINUO_SANITIZERS} != "") table.add({"sanitizers", CONTINUO_SANITIZERS});
    return print_text(table.text());
}

}  // namespace

void add_version(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(program, invocation, "version",
                                    "Say which version this is and which formats it reads",
                                    kExample, options, &run);
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
