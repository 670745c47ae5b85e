#include "host_choice.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <thread>

#include "child_process.h"
#include "text.h"

namespace continuo::cli {

using state::Error;
using state::ErrorCode;
using state::fail;

void add_host_option(CLI::App& command, std::string& host) {
    command
        .add_option("--host", host,
                    "local (this KVM), emulated (Linux with KVM under QEMU) or auto, the default")
        ->type_name("auto|local|emulated");
}

state::Result<HostChoice> parse_host(const std::string& host) {
    if (host == "auto") return HostChoice::kAuto;
    if (host == "local") return HostChoice::kLocal;
    if (host == "emulated") return HostChoice::kEmulated;
    return fail(ErrorCode::kInvalidArgument, "--host",
                fmt::format("'{}' is no kind of host", printable(host)),
                "Give auto, local or emulated");
}

std::optional<std::string> find_lab() {
    std::vector<std::string> places;
    if (const char* told = std::getenv("CONTINUO_LAB"); told != nullptr && *told != '\0')
        return ::access(told, X_OK) == 0 ? std::optional<std::string>{told} : std::nullopt;
    const std::string program = this_program();
    const std::string folder = program.substr(0, program.rfind('/'));
    for (const std::string& place : {std::string{CONTINUO_SOURCE_DIR "/lab/continuo-lab"},
                                     folder + "/continuo-lab", folder + "/../lab/continuo-lab"})
        if (::access(place.c_str(), X_OK) == 0) return place;
    return std::nullopt;
}

Error run_on_emulated_host(const std::vector<std::string>& arguments) {
    if (std::getenv("CONTINUO_LAB_HOST") != nullptr)
        return {ErrorCode::kUnsupported, "continuo demo",
                "this is an emulated host already, and its KVM will not do either",
                "Run `continuo doctor` here", 0};
    const auto lab = find_lab();
    if (!lab)
        return {ErrorCode::kUnsupported, "lab/continuo-lab",
                "the tool that runs an emulated host is not there",
                "Set CONTINUO_LAB to its path, or run it by hand: continuo-lab run -- continuo "
                "demo --host local",
                0};
    const unsigned cpus = std::clamp(std::thread::hardware_concurrency(), 2U, 4U);
    std::vector<std::string> words{*lab,        "run", "--smp", std::to_string(cpus),
                                   "--timeout", "300", "--",    this_program()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    ::execv(lab->c_str(), argv_of(words).data());
    return {ErrorCode::kIo, *lab, "cannot be executed", "Check the file; it needs python3", errno};
}

}  // namespace continuo::cli
