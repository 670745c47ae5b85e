#include "scenario_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string_view>
#include <thread>

#include "input.h"
#include "number.h"
#include "text.h"

extern "C" {
/// One scenario of tests/scenarios, as the build put it into the program.
struct continuo_scenario_file {
    const char* name;
    const char* begin;
    const char* end;
};
extern const continuo_scenario_file continuo_scenarios[];
extern const continuo_scenario_file continuo_scenarios_end[];
}

namespace continuo::cli {

namespace {

namespace fs = std::filesystem;

using state::ErrorCode;
using state::fail;
using state::Result;
using state::Status;

/// So that runs of all strategies and scenarios together can be counted in 64 bits with ease.
constexpr std::uint64_t kSeedsMax = std::uint64_t{1} << 40;

using Scenarios = std::vector<sim::Scenario>;
using Texts = std::vector<ScenarioText>;

Status add_file(const std::string& path, Texts& to) {
    const auto input = read_file(path);
    if (!input) return tl::unexpected(input.error());
    to.push_back({input->name, std::string{text_of(*input)}});
    return {};
}

Status add_folder(const std::string& folder, Texts& to) {
    std::error_code error;
    std::vector<std::string> files;
    for (fs::directory_iterator entry{folder, error}; !error && entry != fs::directory_iterator{};
         entry.increment(error))
        if (entry->path().extension() == ".toml") files.push_back(entry->path().string());
    if (error)
        return fail(ErrorCode::kIo, folder, "the folder cannot be read", "Check the path",
                    error.value());
    if (files.empty())
        return fail(ErrorCode::kInvalidArgument, folder, "the folder has no *.toml",
                    "Name a folder of scenarios, or a file");
    std::sort(files.begin(), files.end());
    for (const std::string& file : files)
        if (const Status added = add_file(file, to); !added) return added;
    return {};
}

Texts built_in() {
    Texts out;
    for (const continuo_scenario_file* file = continuo_scenarios; file != continuo_scenarios_end;
         ++file)
        out.push_back({file->name, std::string{file->begin, file->end}});
    return out;
}

}  // namespace

Result<Texts> read_scenarios(const std::vector<std::string>& paths) {
    if (paths.empty()) return built_in();
    Texts out;
    for (const std::string& path : paths) {
        std::error_code error;
        const Status added =
            fs::is_directory(path, error) ? add_folder(path, out) : add_file(path, out);
        if (!added) return tl::unexpected(added.error());
    }
    return out;
}

Result<Scenarios> parse_scenarios(const Texts& texts) {
    Scenarios out;
    std::set<std::string> names;
    for (const ScenarioText& text : texts) {
        auto scenario = sim::parse_scenario(text.text, text.name);
        if (!scenario) return tl::unexpected(scenario.error());
        if (!names.insert(scenario->name).second)
            return fail(
                ErrorCode::kInvalidArgument, text.name,
                fmt::format("another scenario is named \"{}\" too", printable(scenario->name)),
                "Give each scenario a name of its own");
        out.push_back(*std::move(scenario));
    }
    return out;
}

Result<Scenarios> load_scenarios(const std::vector<std::string>& paths) {
    const auto texts = read_scenarios(paths);
    if (!texts) return tl::unexpected(texts.error());
    return parse_scenarios(*texts);
}

Result<sim::SeedRange> parse_seeds(std::string_view option, const std::string& text) {
    const std::size_t dots = text.find("..");
    sim::SeedRange out;
    if (dots == std::string::npos) {
        const auto count = parse_u64(option, text, {.min = 1, .max = kSeedsMax});
        if (!count) return tl::unexpected(count.error());
        out.last = *count;
        return out;
    }
    const auto first = parse_u64(option, std::string_view{text}.substr(0, dots));
    if (!first) return tl::unexpected(first.error());
    const auto last = parse_u64(option, std::string_view{text}.substr(dots + 2), {.min = *first});
    if (!last) return tl::unexpected(last.error());
    out = {*first, *last};
    if (out.last - out.first >= kSeedsMax)
        return fail(ErrorCode::kInvalidArgument, std::string{option},
                    fmt::format("more than {} seeds", kSeedsMax), "Ask for fewer at a time");
    return out;
}

Result<unsigned> parse_jobs(std::string_view option, const std::string& text) {
    if (text.empty()) return std::max(std::thread::hardware_concurrency(), 1U);
    const auto jobs = parse_u64(option, text, {.min = 1, .max = 1024});
    if (!jobs) return tl::unexpected(jobs.error());
    return static_cast<unsigned>(*jobs);
}

}  // namespace continuo::cli
