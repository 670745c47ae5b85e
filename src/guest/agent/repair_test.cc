// The agent's repair: exactly once, whatever falls between its steps: a migration, its own death,
// or a call that fails.
#include "repair.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "continuo/abi/time_travel_host.h"
#include "fake_system.h"

namespace continuo::guest {
namespace {

using test::Death;
using test::FakeSystem;
using ::testing::HasSubstr;

constexpr std::int64_t kFirst = 1'500'000'000;
constexpr std::int64_t kSecond = 200'000'000;
constexpr std::uint64_t kBoundNs = 3'000;
constexpr char kChrony[] = "/run/chrony/chronyd.sock";

/// A VM with a notice page, whose REALTIME stays behind with each migration.
struct Vm {
    abi::TimeTravelHost host{5'000'000'000};
    continuo_time_travel_page page{};
    FakeSystem system;
    std::int64_t lag_ns = 0;
    std::int64_t right_offset_ns = 0;  ///< what REALTIME - BOOTTIME should be

    Vm() {
        carry_out(host.reset());
        right_offset_ns = system.realtime_offset_ns;
        system.files[kChrony];
    }
    void carry_out(const abi::TimeTravelStores& stores) {
        for (const abi::TimeTravelStore& store : stores.list())
            std::memcpy(reinterpret_cast<char*>(&page) + store.offset, &store.value, 8);
    }
    /// All clocks of the guest stand still meanwhile, so REALTIME must be moved on.
    void migrate(std::int64_t delta) {
        right_offset_ns += delta;
        carry_out(host.raise({delta, static_cast<std::uint64_t>(delta), kBoundNs},
                             page.migration_sequence, 0));
    }
    abi::TimeTravelHost::Seen look(std::uint64_t now) {
        const abi::TimeTravelHost::Look look = host.look(page.migration_sequence, now);
        carry_out(look.stores);
        return look.seen;
    }
    std::int64_t lag() const { return right_offset_ns - system.realtime_offset_ns; }
};

struct RepairTest : ::testing::Test {
    Vm vm;
    Policy policy;
    Counters counters;

    bool repair() {
        Repair repair{vm.system, policy, counters};
        repair.resume(vm.page);
        repair.begin();
        return repair.notices(vm.page);
    }
    ~RepairTest() override { test::on_access = nullptr; }
};

TEST_F(RepairTest, StepsByTheExactDeltaAndAnswers) {
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.lag(), 0);
    EXPECT_EQ(vm.look(0), abi::TimeTravelHost::Seen::kAnswered);
    EXPECT_EQ(vm.system.status, STA_PLL | STA_UNSYNC);
    EXPECT_EQ(vm.system.maxerror_us, 16'000'000);
    EXPECT_EQ(vm.system.esterror_us, 16'000'000);
    EXPECT_EQ(vm.system.clock_sets, 1u);
    EXPECT_EQ(vm.system.chrony_commands, (std::vector<std::uint16_t>{66, 3}));
    EXPECT_FALSE(vm.system.files.contains("/run/chrony/continuo-agent.77.sock")) << "left behind";
    EXPECT_THAT(vm.system.journal(), HasSubstr("notice 1: REALTIME stepped by +1.500000000 s"));
    EXPECT_THAT(vm.system.journal(), HasSubstr("reset sources done, burst done"));
    EXPECT_EQ(counters.answers, 1u);
    EXPECT_EQ(counters.steps, 1u);
    EXPECT_EQ(counters.resynchronised, 1u);
    EXPECT_EQ(counters.failures, 0u);
    EXPECT_TRUE(repair()) << "nothing to do";
    EXPECT_EQ(vm.lag(), 0);
    EXPECT_EQ(counters.notices, 1u);
}

TEST_F(RepairTest, StepsBackwardsToo) {
    vm.migrate(-kFirst - 1);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.lag(), 0);
}

TEST_F(RepairTest, WhereNothingLagsEverybodyIsToldAllTheSame) {
    vm.migrate(0);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.lag(), -1) << "one ns, so that TFD_TIMER_CANCEL_ON_SET fires";
    EXPECT_EQ(vm.system.clock_sets, 1u);
    EXPECT_EQ(vm.system.maxerror_us, 16'000'000);
    EXPECT_EQ(counters.steps, 0u);
    EXPECT_EQ(vm.look(0), abi::TimeTravelHost::Seen::kAnswered);
}

TEST_F(RepairTest, KeepsNtpsStateWhereThePolicySaysSo) {
    policy.void_ntp = false;
    vm.migrate(0);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.system.clock_sets, 0u);
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.lag(), 0);
    EXPECT_EQ(vm.system.status, STA_PLL);
    // 1000 us, and twice the bound of 3 us rounded up
    EXPECT_EQ(vm.system.maxerror_us, 1'000 + 4 + 4 + 3);
    vm.system.maxerror_us = 15'999'999;
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.system.maxerror_us, 16'000'000);
}

TEST_F(RepairTest, ANanosecondKernelStaysOne) {
    vm.system.status |= STA_NANO;
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_NE(vm.system.status & STA_NANO, 0);
    vm.system.status &= ~STA_NANO;
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.system.status & STA_NANO, 0);
}

/// How many accesses and calls a run of the agent makes.
std::size_t events_of_a_run() {
    Vm vm;
    std::size_t events = 0;
    vm.system.before_call = test::on_access = [&] { ++events; };
    vm.migrate(kFirst);
    const Policy policy;
    Counters counters;
    Repair repair{vm.system, policy, counters};
    repair.resume(vm.page);
    repair.notices(vm.page);
    test::on_access = nullptr;
    return events;
}

TEST(RepairProtocol, ExactlyOnceWhereverAMigrationAndTwoDeathsFall) {
    const std::size_t events = events_of_a_run();
    ASSERT_GT(events, 25u);
    const Policy policy;
    std::size_t runs = 0, deaths = 0, overtaken = 0;
    // A second migration before event m, the agent's death before event d, and again e events
    // later.
    for (std::size_t m = 0; m < events; ++m)
        for (std::size_t d = 0; d <= events; ++d)
            for (std::size_t e = 1; e <= events + 1; e += 2) {
                Vm vm;
                Counters counters;
                std::size_t event = 0;
                const auto step = [&] {
                    const std::size_t now = event++;
                    if (now == m) vm.migrate(kSecond);
                    if (now == d || now == d + e) throw Death{};
                };
                vm.migrate(kFirst);
                vm.system.before_call = test::on_access = step;
                for (bool alive = false; !alive;) {
                    try {
                        Repair repair{vm.system, policy, counters};
                        repair.resume(vm.page);
                        alive = repair.notices(vm.page);
                    } catch (const Death&) {
                        ++deaths;
                    }
                }
                test::on_access = nullptr;
                vm.system.before_call = nullptr;
                if (event <= m) vm.migrate(kSecond);
                Repair interrupted{vm.system, policy, counters};
                interrupted.notices(vm.page);
                // After a death over a step that was done there is nothing left to step by, and
                // those who watch the clock are told by one ns.
                ASSERT_TRUE(vm.lag() <= 0 && vm.lag() >= -2)
                    << "migration at " << m << ", deaths at " << d << " and " << d + e << "\n"
                    << vm.system.journal();
                vm.look(0);
                ASSERT_FALSE(vm.host.open());
                ASSERT_EQ(vm.system.maxerror_us, 16'000'000);
                overtaken += counters.overtaken;
                ++runs;
            }
    test::on_access = nullptr;
    EXPECT_GT(runs, 5'000u);
    EXPECT_GT(deaths, runs);
    EXPECT_GT(overtaken, runs / 10);
}

TEST(RepairProtocol, TheTestSeesAnAgentThatKeepsNoJournal) {
    const Policy policy;
    std::size_t twice = 0;
    for (std::size_t d = 0; d < events_of_a_run(); ++d) {
        Vm vm;
        Counters counters;
        std::size_t event = 0;
        vm.migrate(kFirst);
        vm.system.before_call = test::on_access = [&] {
            if (event++ == d) throw Death{};
        };
        for (bool alive = false; !alive;) {
            try {
                Repair repair{vm.system, policy, counters};
                alive = repair.notices(vm.page);  // and no resume()
            } catch (const Death&) {
            }
        }
        test::on_access = nullptr;
        twice += vm.lag() < -kFirst / 2 ? 1u : 0u;
    }
    EXPECT_GT(twice, 0u);
}

TEST(RepairProtocol, AFaultOfAnyCallLosesNothingAndIsNamed) {
    const Policy policy;
    std::size_t open_after = 0, n = 0;
    for (;; ++n) {
        Vm vm;
        Counters counters;
        vm.migrate(kFirst);
        Repair repair{vm.system, policy, counters};
        repair.resume(vm.page);
        vm.system.fail_at = n;
        const bool whole = repair.notices(vm.page);
        if (vm.system.failed.empty()) break;
        const bool harmless = vm.system.failed == "unlink" || vm.system.failed == "close" ||
                              vm.system.failed == "clock_gettime";
        if (!harmless) {
            EXPECT_GE(counters.failures, 1u) << vm.system.failed;
            EXPECT_THAT(vm.system.journal(), HasSubstr("failed")) << vm.system.failed;
        }
        const continuo_gate gate = continuo_gate_look(&vm.page);
        EXPECT_TRUE(vm.lag() == 0 || gate.state == CONTINUO_GATE_HELD) << vm.system.failed;
        if (!whole) {
            ++open_after;
            EXPECT_EQ(vm.system.failed, "adjtimex");
            EXPECT_EQ(vm.lag(), kFirst);
            EXPECT_TRUE(repair.notices(vm.page)) << "the next time";
        }
        EXPECT_EQ(vm.lag(), 0) << vm.system.failed;
        EXPECT_EQ(vm.look(0), abi::TimeTravelHost::Seen::kAnswered) << vm.system.failed;
    }
    EXPECT_GT(n, 15u);
    EXPECT_EQ(open_after, 1u) << "only a step that failed leaves a notice open";
}

TEST_F(RepairTest, WithoutPermissionTheNoticeStandsAndTheJournalSaysWhy) {
    vm.migrate(kFirst);
    vm.system.may_step = false;
    EXPECT_FALSE(repair());
    EXPECT_THAT(vm.system.journal(), HasSubstr("adjtimex (ADJ_SETOFFSET) failed: errno 1"));
    EXPECT_EQ(continuo_gate_look(&vm.page).state, CONTINUO_GATE_HELD);
    EXPECT_EQ(vm.look(5'000'000'000), abi::TimeTravelHost::Seen::kReleased);
}

TEST_F(RepairTest, ALateNoticeIsLeftToNtpByWhoeverDoesNotKnowWhatHappenedSince) {
    vm.migrate(kFirst);
    vm.look(5'000'000'000);  // released
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.lag(), kFirst);
    EXPECT_EQ(counters.late, 1u);
    EXPECT_EQ(vm.system.maxerror_us, 16'000'000);
    EXPECT_EQ(vm.look(6'000'000'000), abi::TimeTravelHost::Seen::kAnswered);
    EXPECT_THAT(vm.system.journal(), HasSubstr("left to NTP"));
}

TEST_F(RepairTest, ALateNoticeIsSteppedByWhoeverHasWatchedRealtime) {
    Repair repair{vm.system, policy, counters};
    repair.settle();
    vm.migrate(kFirst);
    vm.look(5'000'000'000);
    EXPECT_TRUE(repair.notices(vm.page));
    EXPECT_EQ(vm.lag(), 0);
    vm.migrate(kSecond);
    vm.look(50'000'000'000);
    vm.system.realtime_offset_ns += kSecond;  // NTP was faster
    EXPECT_TRUE(repair.notices(vm.page));
    EXPECT_EQ(vm.lag(), 0);
    EXPECT_EQ(counters.late, 1u);
}

TEST_F(RepairTest, ALateNoticeIsSteppedWhereThePolicySaysSo) {
    policy.step_late = true;
    vm.migrate(kFirst);
    vm.look(5'000'000'000);
    EXPECT_TRUE(repair());
    EXPECT_EQ(vm.lag(), 0);
}

TEST_F(RepairTest, AStepThatNobodyCanMeanIsNotBelieved) {
    vm.migrate(kFirst);
    vm.page.accounted_ns = std::uint64_t{1} << 62;  // garbage, by somebody in the guest
    EXPECT_FALSE(repair());
    EXPECT_EQ(vm.lag(), kFirst);
    EXPECT_THAT(vm.system.journal(), HasSubstr("the page is damaged"));
    EXPECT_EQ(vm.look(5'000'000'000), abi::TimeTravelHost::Seen::kReleased);
    vm.page.time_travelled_ns = vm.page.accounted_ns + (std::uint64_t{1} << 63);
    EXPECT_FALSE(repair()) << "the smallest of all";
}

TEST_F(RepairTest, ADamagedPageIsMendedByWhatTheAgentRemembers) {
    Repair repair{vm.system, policy, counters};
    vm.migrate(kFirst);
    ASSERT_TRUE(repair.notices(vm.page));
    std::memset(&vm.page, 0xa5, sizeof(vm.page));
    vm.migrate(kSecond);
    EXPECT_TRUE(repair.notices(vm.page));
    EXPECT_EQ(vm.lag(), 0);
    EXPECT_EQ(vm.page.accounted_ns, vm.page.time_travelled_ns);
    EXPECT_EQ(vm.look(0), abi::TimeTravelHost::Seen::kAnswered);
    EXPECT_THAT(vm.system.journal(), HasSubstr("notice 3: accounted_ns in the page was damaged"));
}

TEST_F(RepairTest, SeesWhatOthersDoToRealtime) {
    Repair repair{vm.system, policy, counters};
    EXPECT_EQ(repair.settle(), 0) << "the first look";
    EXPECT_EQ(repair.settle(), 0);
    vm.system.realtime_offset_ns -= 3'000'000'000;
    EXPECT_EQ(repair.settle(), -3'000'000'000);
    EXPECT_EQ(repair.settle(), 0);
}

TEST_F(RepairTest, AChronydThatSaysNothingOrNoIsAFailureAndTheNoticeIsAnsweredAllTheSame) {
    for (const auto& [answers, status, text] :
         {std::tuple{false, std::uint16_t{0}, "reset sources failed: -110"},
          std::tuple{true, std::uint16_t{2}, "reset sources failed: 2, burst failed: 2"}}) {
        vm.system.chrony_answers = answers;
        vm.system.chrony_status = status;
        vm.system.lines.clear();
        counters = {};
        vm.migrate(kFirst);
        EXPECT_TRUE(repair());
        EXPECT_THAT(vm.system.journal(), HasSubstr(text));
        EXPECT_EQ(counters.failures, 1u);
        EXPECT_EQ(vm.look(0), abi::TimeTravelHost::Seen::kAnswered);
    }
}

TEST_F(RepairTest, AsksWhicheverDaemonIsThere) {
    vm.system.files.erase(kChrony);
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_THAT(vm.system.journal(), HasSubstr("no NTP daemon"));
    vm.system.files["/run/ntpd.pid"];
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    ASSERT_EQ(vm.system.programs.size(), 1u);
    EXPECT_THAT(vm.system.programs[0], ::testing::Contains("try-restart"));
    vm.system.program_status = 5;
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_THAT(vm.system.journal(), HasSubstr("ntpd: restart failed: 5"));
    vm.system.files["/run/systemd/timesync"];
    vm.migrate(kFirst);
    EXPECT_TRUE(repair());
    EXPECT_THAT(vm.system.journal(), HasSubstr("timesyncd sees the step itself"));
    policy.daemon = Daemon::kNone;
    EXPECT_EQ(vm.lag(), 0);
}

TEST(Chrony, SaysWhatChronydUnderstands) {
    const chrony::Request reset = chrony::request(chrony::Command::kResetSources, 0x01020304);
    const std::string expected{"\x06\x01\0\0\0\x42\0\0\x01\x02\x03\x04", 12};
    EXPECT_EQ(reset.size, 28u);
    EXPECT_EQ((std::string{reinterpret_cast<const char*>(reset.bytes), 12}), expected);
    const chrony::Request burst = chrony::request(chrony::Command::kBurst, 7);
    EXPECT_EQ(burst.size, 68u);
    EXPECT_EQ(burst.bytes[5], 3);
    EXPECT_EQ(burst.bytes[63], 4);
    EXPECT_EQ(burst.bytes[67], 8);
}

TEST(Chrony, BelievesOnlyTheReplyToItsRequest) {
    std::uint8_t bytes[28] = {6, 2, 0, 0, 0, 66, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9};
    const auto judge = [&](std::size_t size = 28) {
        return chrony::judge(chrony::Command::kResetSources, 9, bytes, size).reply;
    };
    EXPECT_EQ(judge(), chrony::Reply::kDone);
    EXPECT_EQ(judge(27), chrony::Reply::kOther);
    EXPECT_EQ(judge(0), chrony::Reply::kOther);
    for (const std::size_t i : {0u, 1u, 4u, 5u, 16u, 17u, 18u, 19u}) {
        bytes[i] ^= 1;
        EXPECT_EQ(judge(), chrony::Reply::kOther) << "byte " << i;
        bytes[i] ^= 1;
    }
    bytes[9] = 2;
    const chrony::Judged refused =
        chrony::judge(chrony::Command::kResetSources, 9, bytes, sizeof(bytes));
    EXPECT_EQ(refused.reply, chrony::Reply::kRefused);
    EXPECT_EQ(refused.status, 2);
}

}  // namespace
}  // namespace continuo::guest
