// The agent as a whole: what it opens, what wakes it, what it makes of vmclock and of its own eyes.
#include "agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "continuo/abi/time_travel_host.h"
#include "continuo/abi/vmclock.h"
#include "fake_system.h"

namespace continuo::guest {
namespace {

using test::FakeSystem;
using ::testing::HasSubstr;

constexpr char kNotice[] = "/run/notice";
constexpr char kWake[] = "/run/wake";
constexpr char kVmclock[] = "/dev/vmclock0";

/// A page that says TAI = counter ns (1 GHz) + lead.
continuo_vmclock_page tai_page() {
    continuo_vmclock_page page{};
    page.magic = abi::kVMCLOCK_MAGIC;
    page.size = 4096;
    page.version = 1;
    page.counter_id = CONTINUO_COUNTER_ID;
    page.time_type = abi::kVMCLOCK_TIME_TAI;
    page.flags = abi::kVMCLOCK_FLAG_PERIOD_MAXERROR_VALID | abi::kVMCLOCK_FLAG_TIME_MAXERROR_VALID;
    page.time_maxerror_nanosec = 20'000;
    page.disruption_marker = 1;
    return page;
}

struct AgentTest : ::testing::Test {
    FakeSystem system;
    Options options;
    abi::TimeTravelHost host{5'000'000'000};
    continuo_time_travel_page notice{};
    continuo_vmclock_page vmclock = tai_page();

    AgentTest() {
        carry_out(host.reset());
        options.vmclock_path = nullptr;
    }
    ~AgentTest() override { test::on_access = nullptr; }
    void carry_out(const abi::TimeTravelStores& stores) {
        for (const abi::TimeTravelStore& store : stores.list())
            std::memcpy(reinterpret_cast<char*>(&notice) + store.offset, &store.value, 8);
    }
    void with_notice() {
        system.pages[kNotice] = &notice;
        options.notice_path = kNotice;
        options.wake_path = kWake;
    }
    void with_vmclock() {
        system.pages[kVmclock] = &vmclock;
        options.vmclock_path = kVmclock;
        // TAI stands still in these tests; REALTIME is UTC, 37 s behind, and a little off.
        set_tai(system.realtime_ns() + 37'000'000'000 + 2'000'000);
    }
    void set_tai(std::int64_t ns) {
        vmclock.time_sec = static_cast<std::uint64_t>(ns / 1'000'000'000);
        const auto rest = static_cast<std::uint64_t>(ns % 1'000'000'000);
        vmclock.time_frac_sec =
            static_cast<std::uint64_t>((static_cast<continuo_u128>(rest) << 64) / 1'000'000'000);
    }
    bool wake(std::vector<short> events) {
        system.ready = std::move(events);
        return agent_->wait();
    }
    Agent& start() {
        agent_.emplace(system, options);
        EXPECT_TRUE(agent_->open()) << system.journal();
        EXPECT_TRUE(agent_->pass());
        return *agent_;
    }
    const Counters& counters() const { return agent_->counters(); }
    std::optional<Agent> agent_;
};

TEST_F(AgentTest, HandlesWhatStandsInThePageWhenItStartsAndWhatComes) {
    with_notice();
    carry_out(host.raise({7'000'000'000, 7'000'000'000, 1}, 0, 0));
    const std::int64_t before = system.realtime_offset_ns;
    start();
    EXPECT_EQ(system.realtime_offset_ns, before + 7'000'000'000);
    carry_out(host.raise({11, 11, 1}, notice.migration_sequence, 0));
    EXPECT_TRUE(wake({POLLIN, 0, POLLIN}));
    EXPECT_EQ(system.realtime_offset_ns, before + 7'000'000'011);
    EXPECT_EQ(counters().answers, 2u);
    EXPECT_EQ(counters().clock_sets, 0u) << "its own step is not somebody else's";
    EXPECT_EQ(counters().wakeups, 1u);
}

TEST_F(AgentTest, NamesWhatItCannotOpen) {
    options.notice_path = kNotice;  // which is not there
    options.wake_path = kWake;
    Agent missing{system, options};
    EXPECT_FALSE(missing.open());
    EXPECT_THAT(system.journal(), HasSubstr("notice page /run/notice: errno 19"));

    with_notice();
    notice.magic = 0;
    Agent zero{system, options};
    EXPECT_FALSE(zero.open());
    EXPECT_THAT(system.journal(), HasSubstr("/run/notice is no notice page: magic 0"));
}

TEST_F(AgentTest, RefusesToWaitForWhatNobodyTells) {
    with_notice();
    options.wake_path = nullptr;
    Agent deaf{system, options};
    EXPECT_FALSE(deaf.open());
    EXPECT_THAT(system.journal(), HasSubstr("nothing tells of notices"));
    options.check_every_s = 10;
    Agent polling{system, options};
    EXPECT_TRUE(polling.open());
}

TEST_F(AgentTest, AFaultOfAnyCallWhileItOpensIsNamed) {
    with_notice();
    with_vmclock();
    options.vmclock_named = true;
    std::size_t n = 0, refused = 0;
    for (;; ++n) {
        system.calls = 0;
        system.fail_at = n;
        system.failed.clear();
        system.lines.clear();
        Agent agent{system, options};
        const bool opened = agent.open();
        if (system.failed.empty()) break;
        if (opened) continue;  // a clock that could not be read, a close: nothing that it needs
        ++refused;
        EXPECT_FALSE(system.lines.empty()) << system.failed;
    }
    EXPECT_GE(refused, 6u);
}

TEST_F(AgentTest, VmclockAloneBringsRealtimeBackToUtc) {
    with_vmclock();
    start();
    // REALTIME stays 5 s behind; the guest was 2 ms off before, which NTP would have slewed.
    vmclock.disruption_marker = 2;
    set_tai(system.realtime_ns() + 37'000'000'000 + 5'000'000'000);
    const std::int64_t before = system.realtime_offset_ns;
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_NEAR(static_cast<double>(system.realtime_offset_ns - before), 5e9, 50'000);
    EXPECT_EQ(counters().disruptions, 1u);
    EXPECT_EQ(counters().steps, 1u);
    EXPECT_EQ(system.maxerror_us, 16'000'000);
    EXPECT_THAT(system.journal(),
                HasSubstr("vmclock tells of a disruption: REALTIME stepped by +"));
    EXPECT_TRUE(wake({0, POLLIN, 0})) << "told once";
    EXPECT_EQ(counters().disruptions, 1u);
}

TEST_F(AgentTest, VmclockOfAGuestThatIsNotOnUtcGivesTheDifference) {
    with_vmclock();
    set_tai(system.realtime_ns() + 12'345'678'901);  // no whole seconds
    start();
    vmclock.disruption_marker = 2;
    set_tai(system.realtime_ns() + 12'345'678'901 + 5'000'000'000);
    const std::int64_t before = system.realtime_offset_ns;
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_NEAR(static_cast<double>(system.realtime_offset_ns - before), 5e9, 50'000);
}

TEST_F(AgentTest, VmclockOfAnAdvancedGuestStepsNothingAndVoidsNtp) {
    with_vmclock();
    start();
    vmclock.disruption_marker = 2;
    set_tai(system.realtime_ns() + 37'000'000'000);
    const std::int64_t before = system.realtime_offset_ns;
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_EQ(system.realtime_offset_ns - before, 1) << "for TFD_TIMER_CANCEL_ON_SET";
    EXPECT_EQ(counters().steps, 0u);
    EXPECT_NE(system.status & STA_UNSYNC, 0);
}

TEST_F(AgentTest, VmclockWithoutTheTimeStillVoidsNtp) {
    with_vmclock();
    vmclock.clock_status = abi::kVMCLOCK_STATUS_UNRELIABLE;
    start();
    vmclock.disruption_marker = 2;
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_THAT(system.journal(), HasSubstr("but not the time"));
    EXPECT_EQ(system.maxerror_us, 16'000'000);
}

TEST_F(AgentTest, OneGapToldTwiceIsRepairedOnce) {
    with_notice();
    with_vmclock();
    start();
    const std::int64_t before = system.realtime_offset_ns;
    carry_out(host.raise({5'000'000'000, 5'000'000'000, 1}, notice.migration_sequence, 0));
    vmclock.disruption_marker = 2;
    set_tai(system.realtime_ns() + 42'000'000'000);
    EXPECT_TRUE(wake({POLLIN, 0, 0}));
    EXPECT_TRUE(wake({0, POLLIN, POLLIN}));
    EXPECT_EQ(system.realtime_offset_ns, before + 5'000'000'000) << "by the notice, to the ns";
    EXPECT_EQ(counters().disruptions, 0u);
}

TEST_F(AgentTest, EndsWhereWhatTellsOfNoticesIsGone) {
    with_notice();
    start();
    EXPECT_FALSE(wake({POLLHUP, 0, 0}));
    EXPECT_THAT(system.journal(), HasSubstr("wake: lost"));
    start();
    system.at_end = true;  // a file, a port that the host has closed: readable for ever
    EXPECT_FALSE(wake({POLLIN, 0, 0}));
}

TEST_F(AgentTest, GoesOnWithoutVmclocksNotification) {
    with_notice();
    with_vmclock();
    start();
    EXPECT_TRUE(wake({0, POLLHUP, 0}));
    EXPECT_THAT(system.journal(), HasSubstr("vmclock's notification: lost"));
    EXPECT_TRUE(wake({0, 0, POLLERR}));
    EXPECT_TRUE(wake({POLLIN, 0, 0}));
}

TEST_F(AgentTest, ArmsAUioDeviceAndOnlyThat) {
    with_notice();
    start();
    EXPECT_TRUE(wake({POLLIN, 0, 0}));
    EXPECT_TRUE(system.files[kWake].empty()) << "a FIFO would wake it again";
    options.wake_path = "/dev/uio0";
    start();
    EXPECT_EQ(system.files["/dev/uio0"].size(), 2u) << "the fake takes half of what is written";
    EXPECT_TRUE(wake({POLLIN, 0, 0}));
    EXPECT_EQ(system.files["/dev/uio0"].size(), 4u);
}

struct Discovery : AgentTest {
    static constexpr const char* kUid = "/sys/bus/acpi/devices/CTNO0001:00/uid";
    Discovery() { system.files[kUid] = "0xd0000\n"; }
    void with_page() { system.pages["/dev/mem"] = &notice; }
    void with_line(const std::string& way) {
        system.files["/sys/class/tty/ttyS0/device/../../firmware_node/../hid"] = "LNXSYBUS\n";
        system.files["/sys/class/tty/ttyS1" + way] = "CTNO0001\n";
    }
};

TEST_F(Discovery, FindsThePageAndTheLineThatWakesIt) {
    with_page();
    for (const char* way : {"/device/firmware_node/../hid", "/device/../../firmware_node/../hid"}) {
        with_line(way);
        start();
        EXPECT_EQ(system.mapped_offset, 0xd0000u);
        carry_out(host.raise({11, 11, 1}, notice.migration_sequence, 0));
        EXPECT_TRUE(wake({POLLIN, 0, 0}));
        EXPECT_EQ(counters().answers, 1u);
        EXPECT_FALSE(wake({POLLHUP, 0, 0})) << "it is what wakes it";
        system.files.erase("/sys/class/tty/ttyS1" + std::string{way});
    }
}

TEST_F(Discovery, IsDeafWhereThereIsNoLine) {
    with_page();
    Agent deaf{system, options};
    EXPECT_FALSE(deaf.open());
    EXPECT_THAT(system.journal(), HasSubstr("nothing tells of notices in /dev/mem"));
}

TEST_F(Discovery, TakesVmclocksNotificationWhereThereIsOne) {
    with_page();
    with_vmclock();
    start();
    carry_out(host.raise({11, 11, 1}, notice.migration_sequence, 0));
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_EQ(counters().answers, 1u);
    EXPECT_FALSE(wake({0, POLLHUP, 0})) << "it is what wakes it";
}

TEST_F(Discovery, PrefersTheLineWhichNothingButANoticeWakes) {
    with_page();
    with_vmclock();
    with_line("/device/firmware_node/../hid");
    start();
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_EQ(counters().wakeups, 1u);
    EXPECT_FALSE(wake({POLLHUP, 0, 0})) << "the line is what wakes it";
}

TEST_F(Discovery, AVmclockThatCannotBeWaitedForIsReadAndNotWaitedFor) {
    with_page();
    with_vmclock();
    with_line("/device/firmware_node/../hid");
    for (const short always : {short{POLLIN}, short{POLLHUP}}) {
        system.vmclock_poll = always;  // no poll(2); no notification
        start();
        EXPECT_FALSE(wake({POLLHUP, 0, 0})) << "the line is what wakes it";
    }
}

TEST_F(Discovery, GoesOnWithoutAPageThatIsClosedToIt) {
    with_vmclock();  // and /dev/mem is locked down
    start();
    EXPECT_THAT(system.journal(), HasSubstr("notice page /dev/mem: errno"));
    vmclock.disruption_marker = 2;
    EXPECT_TRUE(wake({0, POLLIN, 0}));
    EXPECT_EQ(counters().disruptions, 1u);
}

TEST_F(Discovery, NamesADeviceThatDoesNotSayWhereItsPageIs) {
    for (const char* text : {"", "\n", "7x", "0x", "0x1ffffffffffffffff"}) {
        system.files[kUid] = text;
        Agent lost{system, options};
        EXPECT_FALSE(lost.open()) << text;
        EXPECT_THAT(system.journal(), HasSubstr("does not say where its page is"));
    }
    options.discover = false;
    Agent told_not_to_look{system, options};
    EXPECT_TRUE(told_not_to_look.open());
}

TEST_F(AgentTest, SaysThatSomebodyElseHasSetRealtime) {
    start();
    system.realtime_offset_ns += 90'000'000'000;
    EXPECT_TRUE(wake({0, 0, POLLIN}));
    EXPECT_EQ(counters().clock_sets, 1u);
    EXPECT_THAT(system.journal(), HasSubstr("somebody else has set REALTIME, by +90.000000000 s"));
    EXPECT_EQ(system.maxerror_us, 1'000) << "that is theirs to tell";
}

TEST_F(AgentTest, SeesACounterThatRanOnWhileTheClockStoodStill) {
    options.check_every_s = 10;
    start();
    for (int i = 0; i < 3; ++i) {
        system.boot_ns += 10'000'000'000;
        EXPECT_TRUE(wake({}));
        EXPECT_EQ(counters().jumps, 0u);
    }
    system.boot_ns += 10'000'000'000;
    system.counter_lead_ns += 3'000'000'000;
    EXPECT_TRUE(wake({}));
    EXPECT_EQ(counters().jumps, 1u);
    EXPECT_THAT(system.journal(), HasSubstr("CLOCK_MONOTONIC_RAW has come -3.00000"));
    EXPECT_EQ(system.maxerror_us, 16'000'000);
    system.boot_ns += 10'000'000'000;
    EXPECT_TRUE(wake({}));
    EXPECT_EQ(counters().jumps, 1u);
}

TEST_F(AgentTest, WritesItsCountersWholeOrNotAtAll) {
    with_notice();
    options.metrics_path = "/var/metrics.prom";
    carry_out(host.raise({2'500'000'000, 2'500'000'000, 1}, 0, 0));
    start();
    const std::string text = system.files["/var/metrics.prom"];
    EXPECT_THAT(text, HasSubstr("# TYPE continuo_agent_answers_total counter\n"
                                "continuo_agent_answers_total 1\n"));
    EXPECT_THAT(text, HasSubstr("continuo_agent_last_step_seconds +2.500000000\n"));
    EXPECT_FALSE(system.files.contains("/var/metrics.prom.new"));
    for (const char* name : {"open", "write", "close", "rename"}) {
        FakeSystem broken;
        Counters counters;
        for (broken.fail_at = 0; broken.failed != name; ++broken.fail_at) {
            broken.calls = 0;
            EXPECT_LE(write_counters(broken, counters, "/x"), 0);
            ASSERT_LT(broken.fail_at, 40u) << name << " is never called";
        }
        EXPECT_FALSE(broken.files.contains("/x") && broken.files["/x"].empty());
    }
}

std::pair<Parsed, Options> parsed(std::vector<std::string> arguments) {
    static std::vector<std::string> kept;  // options point into it
    kept = std::move(arguments);
    kept.insert(kept.begin(), "continuo-agent");
    std::vector<char*> argv;
    for (std::string& argument : kept)
        argv.push_back(argument.data());
    Options options;
    const char* wrong = nullptr;
    const Parsed result = parse(static_cast<int>(argv.size()), argv.data(), options, wrong);
    EXPECT_EQ(result == Parsed::kWrong, wrong != nullptr);
    return {result, options};
}

TEST(AgentOptions, AreUnderstood) {
    const auto [result, options] =
        parsed({"--notice=/dev/mem@0xfeb00000", "--wake=/dev/vport0p1", "--vmclock=none",
                "--ntp=keep", "--daemon=timesyncd", "--late=step", "--metrics=/m",
                "--check-every=60", "--once", "--chrony-socket=/c"});
    ASSERT_EQ(result, Parsed::kRun);
    EXPECT_STREQ(options.notice_path, "/dev/mem");
    EXPECT_EQ(options.notice_offset, 0xfeb00000u);
    EXPECT_STREQ(options.wake_path, "/dev/vport0p1");
    EXPECT_EQ(options.vmclock_path, nullptr);
    EXPECT_FALSE(options.policy.void_ntp);
    EXPECT_TRUE(options.policy.step_late);
    EXPECT_EQ(options.policy.daemon, Daemon::kTimesyncd);
    EXPECT_EQ(options.check_every_s, 60u);
    EXPECT_TRUE(options.once);
    EXPECT_FALSE(options.discover);
    EXPECT_TRUE(parsed({"--vmclock=/dev/vmclock1"}).second.vmclock_named);
    EXPECT_TRUE(parsed({"--once"}).second.discover);
    EXPECT_FALSE(parsed({"--notice=none"}).second.discover);
    EXPECT_EQ(parsed({"--notice=none"}).second.notice_path, nullptr);
    EXPECT_EQ(parsed({"--help"}).first, Parsed::kHelp);
    EXPECT_EQ(parsed({"--version"}).first, Parsed::kVersion);
}

TEST(AgentOptions, AreRefusedWhereTheyMeanNothing) {
    for (const char* wrong :
         {"--notice=", "--notice=/dev/mem@", "--notice=/dev/mem@0x", "--notice=/dev/mem@12",
          "--notice=/dev/mem@99999999999999999999999", "--wake=", "--vmclock=", "--ntp=",
          "--ntp=no", "--daemon=openntpd", "--late=", "--check-every=-1", "--check-every=86401",
          "--check-every=", "--once=1", "notice", "", "--chrony-socket=", "--metrics="})
        EXPECT_EQ(parsed({wrong}).first, Parsed::kWrong) << wrong;
}

}  // namespace
}  // namespace continuo::guest
