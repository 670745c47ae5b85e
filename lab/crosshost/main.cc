// continuo-crosshost: what runs on both hosts of `continuo-lab pair`.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "host_clock.h"
#include "pairing.h"
#include "shared_page.h"
#include "shuttle.h"
#include "steps.h"

namespace continuo::crosshost {

namespace {

struct Options {
    std::int64_t offset_ns = 0;
    std::optional<std::uint32_t> maxerror_us;
    bool unsynchronised = false;
    std::int32_t tai_offset_sec = 0;
    std::uint32_t pairings = 3;
    std::uint32_t pause_ms = 0;
    std::string steps;
};

Status run_clock(SharedPage& page, const Options& options) {
    const auto found = set_realtime_offset(page, options.offset_ns);
    if (!found) return tl::unexpected(found.error());
    if (!options.maxerror_us && !options.unsynchronised) return {};
    NtpState ntp;
    ntp.synchronised = !options.unsynchronised;
    ntp.maxerror_us = options.maxerror_us.value_or(ntp.maxerror_us);
    ntp.tai_offset_sec = options.tai_offset_sec;
    return set_ntp_state(ntp);
}

Status run_pairing(SharedPage& page, const Options& options) {
    for (std::uint32_t i = 0; i < options.pairings; ++i) {
        if (i != 0) std::this_thread::sleep_for(std::chrono::milliseconds{options.pause_ms});
        const auto pairing = pair_counters(page);
        if (!pairing) return tl::unexpected(pairing.error());
        if (!*pairing) continue;
        const Bracket& narrowest = (*pairing)->narrowest;
        const nlohmann::ordered_json line{{"event", "pairing"},
                                          {"rounds", (*pairing)->rounds},
                                          {"a", narrowest.a},
                                          {"b_before", narrowest.b_before},
                                          {"b_after", narrowest.b_after},
                                          {"difference_least", (*pairing)->difference_least},
                                          {"difference_most", (*pairing)->difference_most}};
        std::printf("%s\n", line.dump().c_str());
        std::fflush(stdout);
    }
    return {};
}

Status run_shuttle(SharedPage& page, const Options& options) {
    std::ifstream file{options.steps, std::ios::binary};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    if (!file.is_open() || file.bad())
        return state::fail(state::ErrorCode::kIo, options.steps, "cannot be read",
                           "Take it along: continuo-lab pair --file " + options.steps);
    const auto steps = parse_steps(text);
    if (!steps) return tl::unexpected(steps.error());
    return shuttle(page, *steps);
}

Status run(const CLI::App& app, const Options& options) {
    const auto side = this_side();
    if (!side) return tl::unexpected(side.error());
    auto page = SharedPage::open(*side);
    if (!page) return tl::unexpected(std::move(page.error()));
    if (app.got_subcommand("clock")) return run_clock(*page, options);
    if (app.got_subcommand("pairing")) return run_pairing(*page, options);
    return run_shuttle(*page, options);
}

void add_commands(CLI::App& app, Options& options) {
    app.require_subcommand(1);
    CLI::App* clock = app.add_subcommand("clock", "Set b's REALTIME off a's, and the NTP state");
    clock->add_option("--offset-ns", options.offset_ns, "b's REALTIME less a's");
    clock->add_option("--maxerror-us", options.maxerror_us, "adjtimex maxerror on this host");
    clock->add_flag("--unsynchronised", options.unsynchronised, "STA_UNSYNC on this host");
    clock->add_option("--tai-offset", options.tai_offset_sec, "TAI - UTC, seconds, on this host");
    CLI::App* pairing = app.add_subcommand("pairing", "Pair the hosts' counters; b prints");
    pairing->add_option("--count", options.pairings, "How often");
    pairing->add_option("--pause-ms", options.pause_ms, "Time between two pairings");
    CLI::App* shuttle = app.add_subcommand("shuttle", "Move the witness back and forth");
    shuttle->add_option("STEPS", options.steps, "JSON file, the same on both hosts")->required();
}

int guarded_main(int argc, char** argv) {
    CLI::App app{"What runs on both hosts of `continuo-lab pair`", "continuo-crosshost"};
    Options options;
    add_commands(app, options);
    CLI11_PARSE(app, argc, argv);
    const auto done = run(app, options);
    if (done) return 0;
    std::fprintf(stderr, "continuo-crosshost: error: %s\n", done.error().message().c_str());
    return 1;
}

}  // namespace

}  // namespace continuo::crosshost

int main(int argc, char** argv) {
    try {
        return continuo::crosshost::guarded_main(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "continuo-crosshost: error: %s\n", error.what());
        return 1;
    }
}
