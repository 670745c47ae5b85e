// continuo-agent on a real Linux kernel whose clocks belong to the test, beside a real chronyd and
// a real systemd-timesyncd. The test is the host: it owns the notice page, a file that the agent
// has mapped, and makes REALTIME lag as a frozen gap does. Runs inside an emulated host
// (lab/agent/run): nothing here is for a machine whose clock somebody needs.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "continuo/abi/time_travel_host.h"
#include "continuo/guest/gated_realtime.h"

namespace continuo::guest {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr std::int64_t kSecondNs = 1'000'000'000;
constexpr char kFolder[] = "/run/agent";
constexpr char kPagePath[] = "/run/agent/notice";
constexpr char kWakePath[] = "/run/agent/wake";
constexpr char kMetrics[] = "/run/agent/agent.prom";
constexpr char kChronySocket[] = "/run/chrony/chronyd.sock";

std::int64_t clock_ns(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return std::int64_t{now.tv_sec} * kSecondNs + now.tv_nsec;
}

/// REALTIME - BOOTTIME, to within what a reading takes: NTP moves both, only steps move this.
std::int64_t offset_ns() {
    std::int64_t best = 0, narrowest = INT64_MAX;
    for (int i = 0; i < 20; ++i) {
        const std::int64_t before = clock_ns(CLOCK_BOOTTIME);
        const std::int64_t real = clock_ns(CLOCK_REALTIME);
        const std::int64_t width = clock_ns(CLOCK_BOOTTIME) - before;
        if (width >= narrowest) continue;
        narrowest = width;
        best = real - before - width / 2;
    }
    return best;
}

void step_realtime(std::int64_t ns) {
    timex request{};
    const std::int64_t rest = (ns % kSecondNs + kSecondNs) % kSecondNs;
    request.modes = ADJ_SETOFFSET | ADJ_NANO;
    request.time.tv_sec = (ns - rest) / kSecondNs;
    request.time.tv_usec = rest;
    ASSERT_GE(adjtimex(&request), 0) << strerror(errno);
}

timex ntp_state() {
    timex state{};
    adjtimex(&state);
    return state;
}

bool within(std::chrono::milliseconds limit, const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(1ms);
    }
    return true;
}

std::string read_file(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
}

/// A program that runs until the test ends it; what it says goes to a file.
class Process {
  public:
    Process(std::vector<std::string> arguments, const std::string& output,
            const std::vector<std::string>& environment = {}) {
        pid_ = fork();
        if (pid_ != 0) return;
        const int out = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
        dup2(out, 1);
        dup2(out, 2);
        for (const std::string& variable : environment)
            putenv(const_cast<char*>(variable.c_str()));
        std::vector<char*> argv;
        for (std::string& argument : arguments)
            argv.push_back(argument.data());
        argv.push_back(nullptr);
        execv(argv[0], argv.data());
        _exit(127);
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() {
        if (pid_ <= 0) return;
        kill(pid_, SIGCONT);
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    pid_t pid() const { return pid_; }
    bool alive() const { return waitpid(pid_, nullptr, WNOHANG) == 0; }

  private:
    pid_t pid_ = -1;
};

std::string output_of(const std::string& command) {
    std::string text;
    FILE* pipe = popen(command.c_str(), "r");
    char buffer[4096];
    for (std::size_t n = 0; pipe != nullptr && (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;)
        text.append(buffer, n);
    if (pipe != nullptr) pclose(pipe);
    return text;
}

/// The number in a line "Name:   123 kB" of /proc/PID/status.
long status_of(pid_t pid, const std::string& name) {
    std::istringstream lines(read_file("/proc/" + std::to_string(pid) + "/status"));
    for (std::string line; std::getline(lines, line);)
        if (line.rfind(name + ":", 0) == 0) return std::stol(line.substr(name.size() + 1));
    return -1;
}

void loopback_up() {
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    ifreq request{};
    std::strcpy(request.ifr_name, "lo");
    ioctl(fd, SIOCGIFFLAGS, &request);
    request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
    ASSERT_EQ(ioctl(fd, SIOCSIFFLAGS, &request), 0) << strerror(errno);
    close(fd);
}

void write_file(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
}

/// The host's side: a notice page in a file, and a FIFO for its interrupt.
class Host {
  public:
    Host() {
        mkdir(kFolder, 0755);
        write_file(kPagePath, std::string(4096, '\0'));
        const int fd = open(kPagePath, O_RDWR);
        page_ = static_cast<abi::time_travel_page*>(
            mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        close(fd);
        mkfifo(kWakePath, 0600);
        wake_ = open(kWakePath, O_RDWR | O_NONBLOCK);
        carry_out(machine.reset());
    }
    Host(const Host&) = delete;
    Host& operator=(const Host&) = delete;
    ~Host() {
        munmap(page_, 4096);
        close(wake_);
    }

    void carry_out(const abi::TimeTravelStores& stores) {
        for (const abi::TimeTravelStore& store : stores.list())
            __atomic_store_n(
                reinterpret_cast<std::uint64_t*>(reinterpret_cast<char*>(page_) + store.offset),
                store.value, __ATOMIC_RELEASE);
    }
    std::uint64_t sequence() const {
        return __atomic_load_n(&page_->migration_sequence, __ATOMIC_ACQUIRE);
    }
    /// REALTIME lags by `delta` already.
    void raise(std::int64_t delta) {
        carry_out(
            machine.raise({delta, static_cast<std::uint64_t>(delta), 1'000}, sequence(), now()));
    }
    void interrupt() const { ASSERT_EQ(write(wake_, "!", 1), 1); }
    abi::TimeTravelHost::Seen look() {
        const abi::TimeTravelHost::Look look = machine.look(sequence(), now());
        carry_out(look.stores);
        return look.seen;
    }
    bool answered() {
        look();
        return !machine.open();
    }
    const continuo_time_travel_page* gate() const {
        return reinterpret_cast<const continuo_time_travel_page*>(page_);
    }

    abi::TimeTravelHost machine{3 * kSecondNs};

  private:
    static std::uint64_t now() { return static_cast<std::uint64_t>(clock_ns(CLOCK_MONOTONIC)); }
    abi::time_travel_page* page_ = nullptr;
    int wake_ = -1;
};

std::vector<std::string> agent_with(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{
        std::getenv("CONTINUO_AGENT"), std::string("--notice=") + kPagePath,
        std::string("--wake=") + kWakePath, std::string("--metrics=") + kMetrics, "--vmclock=none"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
}

struct AgentLab : ::testing::Test {
    std::string log = std::string(kFolder) + "/agent.log";
    std::unique_ptr<Host> host;

    void SetUp() override {
        if (std::getenv("CONTINUO_LAB_HOST") == nullptr)
            GTEST_SKIP() << "sets the clock: only inside an emulated host (lab/agent/run)";
        ASSERT_NE(std::getenv("CONTINUO_AGENT"), nullptr);
        host = std::make_unique<Host>();
    }
    void TearDown() override {
        if (HasFailure()) std::cout << "the agent's journal:\n" << read_file(log);
    }
    /// Until the agent sleeps: it has settled, and written its counters.
    void settled() {
        ASSERT_TRUE(within(10s, [] { return !read_file(kMetrics).empty(); }));
        std::this_thread::sleep_for(300ms);
    }
    /// REALTIME falls behind as if the guest had been frozen, and the agent takes note of it.
    void freeze(std::int64_t ns) {
        step_realtime(-ns);
        std::this_thread::sleep_for(300ms);
    }
};

/// A timer that somebody else waits on, as cron or systemd do.
struct CancelledTimer {
    int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    CancelledTimer() {
        itimerspec far{};
        far.it_value.tv_sec = std::int64_t{1} << 33;
        EXPECT_EQ(timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, nullptr),
                  0);
    }
    CancelledTimer(const CancelledTimer&) = delete;
    CancelledTimer& operator=(const CancelledTimer&) = delete;
    ~CancelledTimer() { close(fd); }
    bool cancelled() const {
        std::uint64_t count = 0;
        return read(fd, &count, sizeof(count)) < 0 && errno == ECANCELED;
    }
};

TEST_F(AgentLab, RepairsRealtimeToTheNanosecondAndTellsEverybody) {
    const Process agent(agent_with({"--daemon=none"}), log);
    settled();
    const std::int64_t right = offset_ns();
    constexpr std::int64_t kGap = 7 * kSecondNs + 123'456'789;
    freeze(kGap);
    ASSERT_NEAR(static_cast<double>(offset_ns() - right), -static_cast<double>(kGap), 1e5);
    const CancelledTimer timer;
    ASSERT_FALSE(timer.cancelled());

    host->raise(kGap);
    const std::int64_t resumed = clock_ns(CLOCK_MONOTONIC);
    host->interrupt();
    ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    const std::int64_t took = clock_ns(CLOCK_MONOTONIC) - resumed;
    const std::int64_t wrong = offset_ns() - right;
    RecordProperty("answered_us", std::to_string(took / 1000));
    RecordProperty("realtime_wrong_ns", std::to_string(wrong));
    std::cout << "answered after " << took / 1000 << " us; REALTIME is wrong by " << wrong
              << " ns\n";
    EXPECT_LT(std::abs(wrong), 100'000) << "two readings of two clocks, on an emulator";
    EXPECT_TRUE(timer.cancelled());
    const timex ntp = ntp_state();
    EXPECT_NE(ntp.status & STA_UNSYNC, 0);
    EXPECT_EQ(ntp.maxerror, 16'000'000);
    EXPECT_EQ(ntp.esterror, 16'000'000);
    ASSERT_TRUE(within(5s, [&] {
        return read_file(kMetrics).find("continuo_agent_answers_total 1\n") != std::string::npos;
    }));
    EXPECT_THAT(read_file(kMetrics), HasSubstr("continuo_agent_last_step_seconds +7.123456789\n"));
    EXPECT_THAT(read_file(log), HasSubstr("notice 1: REALTIME stepped by +7.123456789 s"));
}

TEST_F(AgentLab, AGatedReaderWaitsAndReadsNoStaleTime) {
    const Process agent(agent_with({"--daemon=none"}), log);
    settled();
    const std::int64_t right = offset_ns();
    for (int i = 0; i < 5; ++i) {
        freeze(4 * kSecondNs);
        host->raise(4 * kSecondNs);
        timespec now{};
        continuo_gate_state state{};
        // Before the thread is made: it may have slept some of its 20 ms when this one runs on.
        const std::int64_t before = clock_ns(CLOCK_BOOTTIME);
        std::thread resume([&] {
            std::this_thread::sleep_for(20ms);
            host->interrupt();
        });
        ASSERT_EQ(continuo_gated_realtime(host->gate(), &now, &state), 0);
        const std::int64_t after = clock_ns(CLOCK_BOOTTIME);
        const std::int64_t read = now.tv_sec * kSecondNs + now.tv_nsec;
        EXPECT_EQ(state, CONTINUO_GATE_OPEN);
        EXPECT_GE(read, right + before + 20'000'000 - 100'000) << "it was held";
        EXPECT_LE(read, right + after + 100'000);
        resume.join();
        ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    }
}

TEST_F(AgentLab, ASecondMigrationBeforeTheFirstIsHandledLosesNothing) {
    const Process agent(agent_with({"--daemon=none"}), log);
    settled();
    const std::int64_t right = offset_ns();
    for (int i = 0; i < 10; ++i) {
        freeze(2 * kSecondNs);
        host->raise(2 * kSecondNs);
        host->interrupt();
        // As good as anywhere in the agent's pass; a stopped process stands where a vCPU would.
        std::this_thread::sleep_for(std::chrono::microseconds(i * 40));
        kill(agent.pid(), SIGSTOP);
        ASSERT_TRUE(within(5s, [&] {
            return read_file("/proc/" + std::to_string(agent.pid()) + "/stat").find(") T ") !=
                   std::string::npos;
        }));
        step_realtime(-3 * kSecondNs);
        host->raise(3 * kSecondNs);
        kill(agent.pid(), SIGCONT);
        host->interrupt();
        ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
        ASSERT_LT(std::abs(offset_ns() - right), 100'000) << "round " << i;
    }
    const abi::TimeTravelCounts& counts = host->machine.counts();
    EXPECT_EQ(counts.raised, 20u);
    EXPECT_EQ(counts.answered + counts.overtaken, 20u);
    std::cout << counts.overtaken << " of 20 notices were overtaken\n";
}

TEST_F(AgentLab, AnAgentThatIsLostHoldsReadersForTheStatedTimeAndComesBack) {
    const Process agent(agent_with({"--daemon=none"}), log);
    settled();
    const std::int64_t right = offset_ns();
    freeze(9 * kSecondNs);
    kill(agent.pid(), SIGSTOP);
    host->raise(9 * kSecondNs);
    host->interrupt();
    EXPECT_EQ(continuo_gate_look(host->gate()).state, CONTINUO_GATE_HELD);
    ASSERT_TRUE(within(6s, [&] { return host->look() == abi::TimeTravelHost::Seen::kReleased; }));
    timespec now{};
    continuo_gate_state state{};
    ASSERT_EQ(continuo_gated_realtime(host->gate(), &now, &state), 0);
    EXPECT_EQ(state, CONTINUO_GATE_RELEASED) << "read, and told that it is stale";
    EXPECT_EQ(host->machine.counts().released, 1u) << "the host knows";
    kill(agent.pid(), SIGCONT);
    ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    EXPECT_LT(std::abs(offset_ns() - right), 100'000) << "nobody had set it meanwhile";
}

TEST_F(AgentLab, AnAgentThatWasKilledIsFollowedByOneThatRepairs) {
    const std::int64_t right = offset_ns();
    {
        const Process agent(agent_with({"--daemon=none"}), log);
        settled();
    }
    step_realtime(-5 * kSecondNs);
    host->raise(5 * kSecondNs);
    const Process next(agent_with({"--daemon=none"}), log);
    ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    EXPECT_LT(std::abs(offset_ns() - right), 100'000);
}

TEST_F(AgentLab, SleepsAndIsSmall) {
    const Process agent(agent_with({"--daemon=none"}), log);
    settled();
    const long switches = status_of(agent.pid(), "voluntary_ctxt_switches");
    std::this_thread::sleep_for(5s);
    EXPECT_EQ(status_of(agent.pid(), "voluntary_ctxt_switches"), switches) << "something woke it";
    // Of the page tables: the counter behind VmRSS is only right to some pages for each CPU.
    const std::string pages = read_file("/proc/" + std::to_string(agent.pid()) + "/smaps_rollup");
    const std::size_t at = pages.find("Rss:");
    ASSERT_NE(at, std::string::npos);
    const long resident = std::atol(pages.c_str() + at + 4);
    std::cout << "resident: " << resident << " kB\n";
    EXPECT_GT(resident, 0);
    EXPECT_LT(resident, 1024);
    EXPECT_EQ(status_of(agent.pid(), "Threads"), 1);
}

TEST_F(AgentLab, WhatItCannotUseItNames) {
    write_file("/run/agent/short", "no page");
    {
        const Process agent({std::getenv("CONTINUO_AGENT"), "--notice=/run/agent/short",
                             std::string("--wake=") + kWakePath},
                            log);
        ASSERT_TRUE(within(5s, [&] { return !agent.alive(); }));
        EXPECT_THAT(read_file(log), HasSubstr("notice page /run/agent/short: errno 6"));
    }
    const Process agent({std::getenv("CONTINUO_AGENT"), "--vmclock=/dev/none"}, log);
    ASSERT_TRUE(within(5s, [&] { return !agent.alive(); }));
    EXPECT_THAT(read_file(log), HasSubstr("vmclock /dev/none: errno 2"));
}

TEST_F(AgentLab, NtpdIsRestarted) {
    mkdir("/usr", 0755);
    mkdir("/usr/bin", 0755);
    unlink("/usr/bin/systemctl");
    const Process agent(agent_with({"--daemon=ntpd"}), log);
    settled();
    host->raise(0);
    host->interrupt();
    ASSERT_TRUE(within(5s, [&] {
        return read_file(log).find("ntpd: restart failed: -2") != std::string::npos;
    })) << "there is no systemctl";
    write_file("/usr/bin/systemctl", "#!/.lab/bin/sh\necho \"$@\" >/run/agent/systemctl.log\n");
    ASSERT_EQ(chmod("/usr/bin/systemctl", 0755), 0);
    host->raise(0);
    host->interrupt();
    ASSERT_TRUE(within(
        5s, [&] { return read_file(log).find("ntpd: restart asked for") != std::string::npos; }));
    EXPECT_EQ(read_file("/run/agent/systemctl.log"),
              "--no-block try-restart ntpsec.service ntp.service\n");
}

/// One chronyd that serves this machine's own clock, and one that follows it, as _chrony, as Debian
/// runs it.
struct ChronydLab : AgentLab {
    std::unique_ptr<Process> server, client;

    void SetUp() override {
        AgentLab::SetUp();
        if (IsSkipped() || HasFatalFailure()) return;
        if (std::getenv("CHRONYD") == nullptr) GTEST_SKIP() << "no chronyd was brought along";
        loopback_up();
        mkdir("/etc", 0755);
        write_file("/etc/passwd", "root:x:0:0::/:/bin/sh\n_chrony:x:101:101::/:/bin/false\n");
        write_file("/etc/group", "root:x:0:\n_chrony:x:101:\n");
        mkdir("/run/chrony", 0750);
        ASSERT_EQ(chown("/run/chrony", 101, 101), 0);
        write_file("/run/agent/server.conf",
                   "local stratum 5\nport 11123\nallow 127.0.0.1\ncmdport 0\nuser root\n"
                   "bindcmdaddress /\npidfile /run/agent/server.pid\n");
        write_file(
            "/run/agent/client.conf",
            "server 127.0.0.1 port 11123 iburst minpoll 0 maxpoll 0 maxdelay 3\n"
            "cmdport 0\nuser _chrony\nrtcsync\npidfile /run/chrony/chronyd.pid\nmaxdistance 3\n");
        server = start("/run/agent/server.conf", {"-x"}, "server");
        client = start("/run/agent/client.conf", {}, "client");
    }
    void TearDown() override {
        AgentLab::TearDown();
        if (HasFailure())
            std::cout << "chronyd:\n"
                      << read_file("/run/agent/client.log") << chronyc("tracking")
                      << chronyc("sources") << chronyc("sourcestats");
    }
    std::unique_ptr<Process> start(const std::string& configuration, std::vector<std::string> more,
                                   const std::string& name) {
        std::vector<std::string> arguments{std::getenv("CHRONYD"), "-d", "-f", configuration};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return std::make_unique<Process>(arguments, "/run/agent/" + name + ".log");
    }
    static std::string chronyc(const std::string& command) {
        return output_of(std::string(std::getenv("CHRONYC")) + " -n -c -h " + kChronySocket + " " +
                         command + " 2>&1");
    }
    /// Field `index` of the first line.
    static std::string field(const std::string& line, int index) {
        std::istringstream fields(line.substr(0, line.find('\n')));
        std::string value;
        for (int i = 0; i <= index; ++i)
            std::getline(fields, value, ',');
        return value;
    }
    static long samples() {
        const std::string number = field(chronyc("sourcestats"), 1);
        return number.empty() ? -1 : std::atol(number.c_str());
    }
    static bool synchronised() { return (ntp_state().status & STA_UNSYNC) == 0; }
};

TEST_F(ChronydLab, ChronydForgetsWhatItMeasuredAndMeasuresAnew) {
    ASSERT_TRUE(within(90s, [] { return samples() >= 4 && synchronised(); }));
    const Process agent(agent_with({"--daemon=chrony"}), log);
    settled();
    const std::int64_t right = offset_ns();
    constexpr std::int64_t kGap = 6 * kSecondNs + 5;
    freeze(kGap);
    const long before = samples();
    EXPECT_GE(before, 4);
    // The step that made REALTIME lag has voided the kernel's NTP state; a real gap does not.
    ASSERT_TRUE(within(30s, synchronised));
    const CancelledTimer timer;
    host->raise(kGap);
    const std::int64_t resumed = clock_ns(CLOCK_MONOTONIC);
    host->interrupt();
    ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    const std::int64_t took = clock_ns(CLOCK_MONOTONIC) - resumed;
    const timex between = ntp_state();
    const long after = samples();
    const std::int64_t wrong = offset_ns() - right;
    std::cout << "answered after " << took / 1000 << " us; REALTIME is wrong by " << wrong
              << " ns; chronyd's samples: " << before << " before, " << after << " after; maxerror "
              << between.maxerror << " us\n";
    EXPECT_LT(took, 10'000'000) << "right again within 10 ms";
    EXPECT_LT(std::abs(wrong), 10'000'000);
    EXPECT_TRUE(timer.cancelled());
    EXPECT_NE(between.status & STA_UNSYNC, 0);
    EXPECT_EQ(between.maxerror, 16'000'000);
    EXPECT_LT(after, before) << "it still has its samples";
    ASSERT_TRUE(within(5s, [&] {
        return read_file(log).find("chronyd: reset sources done, burst done") != std::string::npos;
    }));
    EXPECT_TRUE(within(60s, synchronised)) << "chronyd follows its source again";
    const std::int64_t resynchronised = clock_ns(CLOCK_MONOTONIC) - resumed;
    std::cout << "synchronised again after " << resynchronised / 1'000'000 << " ms\n";
    EXPECT_THAT(read_file(kMetrics), HasSubstr("continuo_agent_resyncs_total 1\n"));
    EXPECT_THAT(output_of("ls /run/chrony"), ::testing::Not(HasSubstr("continuo-agent")));
}

TEST_F(ChronydLab, AChronydThatIsStoppedHoldsNobodyUp) {
    ASSERT_TRUE(within(90s, [] { return samples() >= 3; }));
    const Process agent(agent_with(), log);
    settled();
    kill(client->pid(), SIGSTOP);
    freeze(2 * kSecondNs);
    host->raise(2 * kSecondNs);
    const std::int64_t resumed = clock_ns(CLOCK_MONOTONIC);
    host->interrupt();
    ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    EXPECT_LT(clock_ns(CLOCK_MONOTONIC) - resumed, 500'000'000);
    ASSERT_TRUE(within(10s, [&] {
        return read_file(log).find("reset sources failed: -110") != std::string::npos;
    }));
    kill(client->pid(), SIGCONT);
}

TEST_F(AgentLab, TimesyncdSeesTheStepByItself) {
    if (std::getenv("TIMESYNCD") == nullptr)
        GTEST_SKIP() << "no systemd-timesyncd was brought along";
    if (std::getenv("CHRONYD") == nullptr)
        GTEST_SKIP() << "no chronyd to serve it was brought along";
    loopback_up();
    write_file("/etc/passwd", "root:x:0:0::/:/bin/sh\nsystemd-timesync:x:102:102::/:/bin/false\n");
    write_file("/etc/group", "root:x:0:\nsystemd-timesync:x:102:\n");
    mkdir("/etc/systemd", 0755);
    write_file("/etc/systemd/timesyncd.conf", "[Time]\nNTP=127.0.0.1\nPollIntervalMinSec=16\n");
    write_file("/run/agent/server.conf",
               "local stratum 5\nallow 127.0.0.1\ncmdport 0\nuser root\nbindcmdaddress /\n"
               "pidfile /run/agent/server.pid\n");
    const Process server({std::getenv("CHRONYD"), "-d", "-x", "-f", "/run/agent/server.conf"},
                         "/run/agent/server.log");
    mkdir("/run/systemd", 0755);
    mkdir("/run/systemd/timesync", 0755);
    ASSERT_EQ(chown("/run/systemd/timesync", 102, 102), 0);
    const std::string out = "/run/agent/timesyncd.log";
    const Process timesyncd({std::getenv("TIMESYNCD")}, out,
                            {"SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console"});
    const auto replies = [&] {
        const std::string text = read_file(out);
        std::size_t count = 0;
        for (std::size_t at = 0; (at = text.find("NTP response:", at)) != std::string::npos; ++at)
            ++count;
        return count;
    };
    if (!within(40s, [&] { return replies() >= 1; }))
        FAIL() << "timesyncd got no time from its server:\n" << read_file(out);
    const Process agent(agent_with(), log);
    settled();
    const std::size_t before = replies();
    const bool quiet = read_file(out).find("System time changed") == std::string::npos;
    EXPECT_TRUE(quiet);
    freeze(2 * kSecondNs);
    std::this_thread::sleep_for(1s);
    const std::size_t between = replies();
    host->raise(2 * kSecondNs);
    host->interrupt();
    ASSERT_TRUE(within(5s, [&] { return host->answered(); }));
    EXPECT_TRUE(within(10s, [&] { return replies() > between; })) << read_file(out);
    EXPECT_THAT(read_file(out), HasSubstr("System time changed. Resyncing."));
    EXPECT_THAT(read_file(log), HasSubstr("timesyncd sees the step itself"));
    std::cout << "timesyncd asked its server " << before << " times before, " << replies()
              << " times after\n";
}

}  // namespace
}  // namespace continuo::guest
