// continuo watch: the clocks of the machine that this runs in, read on every CPU until it is told
// to end, and what happened to them. Runs in any Linux, most usefully in a guest.
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <fstream>
#include <memory>
#include <thread>

#include "command.h"
#include "continuo/guest/watch/analyst.h"
#include "continuo/guest/watch/linux_clocks.h"
#include "continuo/guest/watch/sampler.h"
#include "input.h"
#include "number.h"
#include "progress.h"
#include "report_page.h"
#include "text.h"
#include "watch_report.h"

namespace continuo::cli {

namespace {

using namespace guest::watch;
using state::ErrorCode;
using state::fail;
using state::Status;
using namespace std::chrono_literals;

/// 400 events with their pictures have 4 MB.
constexpr std::size_t kReportBytesMax = std::size_t{64} << 20;

constexpr const char* kExample =
    "Prints a line for each event on stderr while it runs, and all of it at the end: by --for, or\n"
    "by SIGINT or SIGTERM. A seam is the difference of the lines before and after an event, with\n"
    "its bound; what the host's time went on meanwhile needs vmclock or KVM's PTP clock.\n"
    "Example:\n"
    "  $ continuo watch --for 60s --html watch.html\n"
    "  $ continuo watch --rate 1000 --json >watch.json\n";

struct Options {
    std::string length;
    std::string rate = "200";
    std::string window = "1s";
    std::string hole = "100ms";
    std::string vmclock = "auto";
    std::string notice = "auto";
    std::string phc = "auto";
    std::string html, from;
    bool json = false;
};

/// The options, understood.
struct Wanted {
    std::optional<std::chrono::nanoseconds> length;
    std::uint64_t rate_hz = 0;
    Settings settings;
};

Result<Nanos> parse_nanos(std::string_view option, const std::string& text,
                          std::uint64_t least_ns) {
    const auto ns = parse_duration(option, text);
    if (!ns) return tl::unexpected(ns.error());
    if (*ns < least_ns || *ns > 3'600'000'000'000U)
        return fail(ErrorCode::kInvalidArgument, std::string{option},
                    fmt::format("'{}' is too short or too long", printable(text)),
                    fmt::format("Give {} to 1h", show_ns_unsigned(least_ns)));
    return Nanos::from_raw(static_cast<std::int64_t>(*ns));
}

Result<Wanted> parse(const Options& options) {
    Wanted wanted;
    if (!options.length.empty()) {
        const auto length = parse_duration("--for", options.length);
        if (!length) return tl::unexpected(length.error());
        wanted.length = std::chrono::nanoseconds{static_cast<std::int64_t>(*length)};
    }
    const auto rate = parse_u64("--rate", options.rate, {.min = 1, .max = 20'000});
    if (!rate) return tl::unexpected(rate.error());
    wanted.rate_hz = *rate;
    const auto window = parse_nanos("--window", options.window, 1'000'000);
    if (!window) return tl::unexpected(window.error());
    const auto hole = parse_nanos("--hole", options.hole, 1'000);
    if (!hole) return tl::unexpected(hole.error());
    wanted.settings.window = *window;
    // Passes that are on time are no hole.
    wanted.settings.hole = std::max(
        *hole, Nanos::from_raw(static_cast<std::int64_t>(3'000'000'000U / wanted.rate_hz)));
    return wanted;
}

/// "PATH" or "PATH@OFFSET".
struct Place {
    std::string path;
    std::uint64_t offset = 0;
};
Result<Place> parse_place(std::string_view option, const std::string& text) {
    const std::size_t at = text.rfind('@');
    if (at == std::string::npos) return Place{text, 0};
    const auto offset = parse_u64(option, std::string_view{text}.substr(at + 1));
    if (!offset) return tl::unexpected(offset.error());
    if (*offset % 4096 != 0)
        return fail(ErrorCode::kInvalidArgument, std::string{option},
                    "the page's offset is not a multiple of 4096");
    return Place{text.substr(0, at), *offset};
}

Status open_vmclock(const std::string& option, LinuxClocks& clocks, WatchSetup& setup) {
    if (option == "none") return {};
    const bool named = option != "auto";
    const auto place = parse_place("--vmclock", named ? option : "/dev/vmclock0");
    if (!place) return tl::unexpected(place.error());
    const int error = clocks.open_vmclock(place->path, place->offset);
    if (error == 0) setup.vmclock = named ? option : place->path;
    if (error == 0 || (error == ENOENT && !named)) return {};
    if (named)
        return fail(ErrorCode::kIo, place->path, "the vmclock page could not be mapped",
                    "Give a device or file of 4096 bytes, or --vmclock none", error);
    progress("{}: not used: {}", place->path, strerrordesc_np(error));
    return {};
}

Status open_notice(const std::string& option, LinuxClocks& clocks, WatchSetup& setup) {
    if (option == "none") return {};
    const bool named = option != "auto";
    const auto address = named ? std::nullopt : LinuxClocks::notice_address();
    if (!named && !address) return {};
    const std::string text = named ? option : fmt::format("/dev/mem@{:#x}", *address);
    const auto place = parse_place("--notice", text);
    if (!place) return tl::unexpected(place.error());
    const int error = clocks.open_notice(place->path, place->offset);
    if (error == 0) setup.notice = text;
    if (error == 0) return {};
    const std::string_view what =
        error == EBADMSG ? "it is no notice page" : "the notice page could not be mapped";
    if (named)
        return fail(ErrorCode::kIo, text, std::string{what},
                    "Give a device or file and where the page is in it, or --notice none",
                    error == EBADMSG ? 0 : error);
    progress("{}: not used: {}", text, error == EBADMSG ? what : strerrordesc_np(error));
    return {};
}

Status open_phc(const std::string& option, LinuxClocks& clocks, WatchSetup& setup) {
    const std::string path = option == "auto" ? LinuxClocks::kvm_phc() : option;
    if (option == "none" || path.empty()) return {};
    const int error = clocks.open_phc(path);
    if (error == 0) setup.phc = path;
    if (error == 0) return {};
    if (option != "auto")
        return fail(ErrorCode::kIo, path, "it is no PTP clock that can be read",
                    "Give a /dev/ptpN whose time is the host's, or --phc none", error);
    progress("{}: not used: {}", path, strerrordesc_np(error));
    return {};
}

std::string first_line(const char* path) {
    std::ifstream file{path};
    std::string line;
    std::getline(file, line);
    return line.empty() ? "unknown" : line;
}

void describe_machine(WatchSetup& setup) {
    utsname names{};
    setup.kernel = ::uname(&names) == 0 ? names.release : "unknown";
    setup.clocksource =
        first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
}

/// Prints what is found as it is found; on a terminal, below it, how it stands.
class LiveLines final : public Listener {
  public:
    explicit LiveLines(std::size_t lines_max) : left_{lines_max} {}

    void event(const Event& event) override { say(event_line(event)); }
    void ntp(const NtpChange& change) override { say(ntp_line(change)); }
    void backward(const Backward& backward, std::uint64_t count) override {
        // The first ones, then every power of two.
        if (count <= 4 || (count & (count - 1)) == 0) say(backward_line(backward, count));
    }
    void status(const std::string& line) {
        if (terminal_) fmt::print(stderr, "\r\033[K{}", line), std::fflush(stderr);
    }
    void end() { status(""); }

  private:
    void say(const std::string& line) {
        if (left_ == 0) return;
        end();
        progress_line(line);
        if (--left_ == 0) progress("no more lines: the report has the rest");
    }
    bool terminal_ = ::isatty(STDERR_FILENO) != 0;
    std::size_t left_;
};

std::atomic<bool> g_ended{false};

void end_by_signal(int) {
    g_ended.store(true);
}

void catch_signals() {
    struct sigaction action {};
    action.sa_handler = end_by_signal;
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

void feed(Analyst& analyst, const std::vector<Sample>& samples) {
    for (const Sample& sample : samples)
        std::visit([&](const auto& item) { analyst.take(item); }, sample);
}

void watch(const Wanted& wanted, Sampler& sampler, Analyst& analyst, LiveLines& live) {
    const auto until =
        std::chrono::steady_clock::now() + wanted.length.value_or(std::chrono::nanoseconds{0});
    while (!g_ended.load() && !(wanted.length && std::chrono::steady_clock::now() >= until)) {
        std::this_thread::sleep_for(100ms);
        feed(analyst, sampler.take());
        live.status(summary_line(analyst.report()));
    }
    sampler.stop();
    feed(analyst, sampler.take());
    analyst.lose(sampler.lost());
    analyst.finish();
    live.end();
}

/// The page of a watch that was over before, elsewhere: what its --json wrote.
Result<ExitCode> show(const Options& options) {
    if (options.html.empty())
        return fail(ErrorCode::kInvalidArgument, "--from", "it is for pages alone",
                    "Add --html FILE");
    const auto input = read_file(options.from, kReportBytesMax);
    if (!input) return tl::unexpected(input.error());
    const Json document = Json::parse(text_of(*input), nullptr, /*allow_exceptions=*/false);
    if (!document.is_object() || document.value("schema", "") != "continuo/watch/1")
        return fail(ErrorCode::kMalformed, input->name, "it is no report of a watch",
                    "Give what `continuo watch --json` wrote");
    if (auto written = write_page(options.html, ReportPage::kWatch, document); !written)
        return tl::unexpected(written.error());
    return ExitCode::kDone;
}

Result<ExitCode> run(const Options& options) {
    if (!options.from.empty()) return show(options);
    auto wanted = parse(options);
    if (!wanted) return tl::unexpected(wanted.error());
    WatchSetup setup;
    describe_machine(setup);
    LinuxClocks clocks;
    if (auto opened = open_vmclock(options.vmclock, clocks, setup); !opened)
        return tl::unexpected(opened.error());
    if (auto opened = open_notice(options.notice, clocks, setup); !opened)
        return tl::unexpected(opened.error());
    if (auto opened = open_phc(options.phc, clocks, setup); !opened)
        return tl::unexpected(opened.error());
    setup.kvmclock = clocks.find_kvmclock();
    setup.cpus = Sampler::allowed_cpus();
    setup.rate_hz = wanted->rate_hz;
    setup.window = wanted->settings.window;
    setup.hole = wanted->settings.hole;
    wanted->settings.cpus = static_cast<std::uint32_t>(setup.cpus.size());

    LiveLines live{10'000};
    Analyst analyst{wanted->settings, live};
    Sampler sampler{clocks, setup.cpus, static_cast<std::int64_t>(1'000'000'000 / wanted->rate_hz)};
    catch_signals();
    if (const int error = sampler.start(); error != 0)
        return fail(ErrorCode::kKernel, "pthread_setaffinity_np",
                    "a thread could not be bound to its CPU", "Check the CPUs of its cpuset",
                    error);
    watch(*wanted, sampler, analyst, live);
    const Json document = watch_json(setup, analyst.report());
    if (!options.html.empty())
        if (auto written = write_page(options.html, ReportPage::kWatch, document); !written)
            return tl::unexpected(written.error());
    return options.json ? print_json(document) : print_text(watch_text(setup, analyst.report()));
}

}  // namespace

void add_watch(CLI::App& program, Invocation& invocation) {
    const auto options = std::make_shared<Options>();
    CLI::App* command = add_command(program, invocation, "watch",
                                    "Watch this machine's clocks on every CPU, and measure what "
                                    "happens to them",
                                    kExample, options, &run);
    command->add_option("--for", options->length, "How long (else until a signal)")
        ->type_name("DURATION");
    command->add_option("--rate", options->rate, "Passes a second on each CPU (else 200)")
        ->type_name("HZ");
    command
        ->add_option("--window", options->window,
                     "Readings before and after an event that its lines are made of (else 1s)")
        ->type_name("DURATION");
    command
        ->add_option("--hole", options->hole,
                     "A stop is no reading on any CPU for so long, at least 3 passes (else 100ms)")
        ->type_name("DURATION");
    command
        ->add_option("--vmclock", options->vmclock,
                     "The vmclock page (else /dev/vmclock0 where it is), or none")
        ->type_name("FILE[@OFFSET]");
    command
        ->add_option("--notice", options->notice,
                     "The notice page (else the one that ACPI names, where it does), or none")
        ->type_name("FILE[@OFFSET]");
    command
        ->add_option("--phc", options->phc,
                     "A PTP clock of the host (else KVM's where it is), or none")
        ->type_name("FILE");
    command->add_option("--html", options->html, "Also write one page with charts, self-contained")
        ->type_name("FILE");
    command
        ->add_option("--from", options->from,
                     "Watch nothing: make the page of what --json wrote elsewhere")
        ->type_name("FILE");
    add_json_flag(*command, options->json);
}

}  // namespace continuo::cli
