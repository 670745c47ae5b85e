// continuo_differential: random sequences of controls and guest actions on this host's KVM, and the
// model's answer to each.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>

#include "continuo/kvm/doctor.h"
#include "kvm_subject.h"
#include "report.h"

namespace continuo::differential {

namespace {

constexpr int kAgreed = 0;
constexpr int kMismatch = 1;
constexpr int kCannotRun = 2;
constexpr int kSkipped = 77;

struct Options {
    CampaignOptions campaign;
    std::optional<std::uint64_t> replay;
    std::string rules;
    bool json = false;
    bool quiet = false;
};

bool works(const kvm::DoctorReport& report, std::string_view check) {
    for (const kvm::DoctorCheck& one : report.checks)
        if (one.id == check) return one.state == kvm::CheckState::kWorks;
    return false;
}

/// "6.12.9-amd64" or "6.12": the first two numbers.
Result<std::pair<unsigned, unsigned>> release(const std::string& text) {
    unsigned major = 0;
    unsigned minor = 0;
    if (std::sscanf(text.c_str(), "%u.%u", &major, &minor) == 2) return std::pair{major, minor};
    return state::fail(state::ErrorCode::kInvalidArgument, "--rules",
                       "'" + text + "' is no release of Linux", "give one such as 6.12");
}

/// HostIdentity's name without "Linux ".
std::string running_release(const kvm::HostClock& host) {
    const std::string& name = host.identity.kernel;
    const auto space = name.find(' ');
    return space == std::string::npos ? name : name.substr(space + 1);
}

Status examine(const kvm::DoctorReport& report, Options& options) {
    if (!report.host)
        return state::fail(state::ErrorCode::kUnsupported, "doctor", "there is no usable KVM");
    if (!report.host->tsc_based())
        return state::fail(state::ErrorCode::kUnsupported, "clocksource",
                           "it is " + report.host->clocksource + ", and the model's host has tsc");
    if (report.host->scaling_frac_bits)
        return state::fail(state::ErrorCode::kUnsupported, "TSC scaling",
                           "instants cannot be told to the tick on a host that scales");
    if (options.rules.empty()) options.rules = running_release(*report.host);
    const auto numbers = release(options.rules);
    if (!numbers) return tl::unexpected(numbers.error());
    CampaignOptions& campaign = options.campaign;
    campaign.rules = model::KernelRules::linux(numbers->first, numbers->second);
    campaign.host.khz = report.host->tsc_khz();
    campaign.abilities.host_khz = campaign.host.khz;
    campaign.abilities.moves_tsc =
        works(report, "tsc_offset_honoured") && works(report, "tsc_write");
    campaign.abilities.catches_up = campaign.abilities.moves_tsc;
    campaign.rules.offset_stays_zero = !campaign.abilities.moves_tsc;
    return {};
}

class ProgressLine {
  public:
    ProgressLine(const Options& options)
        : on_{!options.quiet && ::isatty(STDERR_FILENO) == 1}, of_{options.campaign.sequences} {}
    void operator()(const Tally& tally) {
        const auto now = std::chrono::steady_clock::now();
        if (!on_ || now - told_ < std::chrono::milliseconds{200}) return;
        told_ = now;
        fmt::print(stderr, "\r{} of {} sequences, {} comparisons, {} ambiguous, {} mismatches ",
                   tally.sequences, of_, tally.comparisons, tally.ambiguous, tally.findings.size());
        std::fflush(stderr);
    }
    void end() const {
        if (on_) fmt::print(stderr, "\r\033[K");
    }

  private:
    bool on_;
    std::uint64_t of_;
    std::chrono::steady_clock::time_point told_;
};

Result<int> run(Options& options) {
    const auto system = kvm::System::open();
    if (!system) {
        fmt::print("Skipped\n{}\n", system.error().message());
        return kSkipped;
    }
    const auto report = kvm::examine(*system);
    if (!report) return tl::unexpected(report.error());
    if (auto examined = examine(*report, options); !examined)
        return tl::unexpected(examined.error());
    auto subject = KvmSubject::open(options.campaign.host.khz);
    if (!subject) return tl::unexpected(subject.error());
    if (auto tried = (*subject)->try_guest(options.campaign.abilities); !tried)
        return tl::unexpected(tried.error());
    const auto stores = (*subject)->system_time_write_stores();
    if (!stores) return tl::unexpected(stores.error());
    options.campaign.host.system_time_write_stores = *stores;
    if (options.replay) {
        options.campaign.seed = *options.replay;
        options.campaign.sequences = 1;
    }
    ProgressLine progress{options};
    const auto began = std::chrono::steady_clock::now();
    const auto tally = run_campaign(**subject, options.campaign, std::ref(progress));
    progress.end();
    if (!tally) return tl::unexpected(tally.error());
    About about;
    about.kernel = report->host->identity.kernel;
    about.rules = options.rules;
    about.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    fmt::print("{}\n", options.json ? json_report(about, options.campaign, *tally)
                                    : text_report(about, options.campaign, *tally));
    return tally->findings.empty() ? kAgreed : kMismatch;
}

int main_of(int argc, char** argv) {
    CLI::App app{"Holds the model of KVM's timekeeping against this host's KVM."};
    Options options;
    app.add_option("--seed", options.campaign.seed, "of the first sequence; the next has one more")
        ->capture_default_str();
    app.add_option("--sequences", options.campaign.sequences, "how many")
        ->capture_default_str()
        ->check(CLI::Range(1, 1'000'000'000));
    app.add_option("--seconds", options.campaign.seconds_max, "end after so long; 0: no limit")
        ->capture_default_str()
        ->check(CLI::Range(0, 1'000'000));
    app.add_option("--ops", options.campaign.ops_max, "operations of a sequence at most")
        ->capture_default_str()
        ->check(CLI::Range(1, 1000));
    app.add_option("--replay", options.replay, "run only the sequence of this seed");
    app.add_option("--rules", options.rules,
                   "release whose rules the model has; the running kernel's where none is given");
    app.add_flag("--json", options.json, "one JSON object");
    app.add_flag("--quiet", options.quiet, "no progress line");
    CLI11_PARSE(app, argc, argv);
    const auto code = run(options);
    if (code) return *code;
    fmt::print(stderr, "continuo_differential: {}\n", code.error().message());
    return kCannotRun;
}

}  // namespace

}  // namespace continuo::differential

int main(int argc, char** argv) {
    try {
        return continuo::differential::main_of(argc, argv);
    } catch (const std::exception& error) {
        fmt::print(stderr, "continuo_differential: {}\n", error.what());
        return 2;
    }
}
