#include "command.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "text.h"

namespace continuo::cli {

void add_json_flag(CLI::App& command, bool& json) {
    command.add_flag("--json", json, "Print one JSON document on stdout and nothing else there");
}

Result<ExitCode> print_text(std::string_view text, ExitCode code) {
    errno = 0;
    const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
    if (written && std::fflush(stdout) == 0) return code;
    return state::fail(state::ErrorCode::kIo, "stdout", "the output could not be written",
                       "Check where stdout goes", errno);
}

Result<ExitCode> print_json(const Json& json, ExitCode code) {
    return print_text(state::json_text(json), code);
}

ExitCode report(const state::Error& error, bool json) {
    std::string what = error.what;
    if (error.sys_errno != 0) what += fmt::format(" ({})", strerrordesc_np(error.sys_errno));
    std::string text = wrapped(what, "continuo: error: ", "    ");
    if (!error.where.empty()) text += wrapped(error.where, "  where:   ", "    ");
    if (!error.advice.empty()) text += wrapped(error.advice, "  do next: ", "    ");
    std::fwrite(text.data(), 1, text.size(), stderr);
    // Where stdout is what failed, there is nobody left to tell.
    if (json && error.where != "stdout") (void)print_json(state::error_to_json(error));
    return exit_code(error.code);
}

}  // namespace continuo::cli
