// Scenario files: what is in the tree is read, and what is wrong is refused by line and key.
#include "continuo/sim/scenario.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

namespace continuo::sim {
namespace {

std::vector<std::filesystem::path> scenario_files() {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator{CONTINUO_SCENARIOS})
        if (entry.path().extension() == ".toml") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
}

TEST(Scenario, EveryFileOfTheTreeIsReadAndNamedAsItsFile) {
    const auto files = scenario_files();
    ASSERT_GE(files.size(), 12U);
    for (const auto& path : files) {
        const auto scenario = load_scenario(path.string());
        ASSERT_TRUE(scenario) << scenario.error().message();
        EXPECT_EQ(scenario->name, path.stem().string());
        EXPECT_FALSE(scenario->about.empty()) << path;
    }
}

constexpr std::string_view kWhole = R"(name = "whole"
epoch_tai_sec = 18_446_744_073
observe_ns = 5
[[host]]
name = "a"
kernel = "6.1"
tsc_khz = [1_000_000, 2_000_000]
scaling = "svm"
[[host]]
name = "b"
clocksource = "hpet"
rate_bound_ppb = 7
[guest]
vcpus = 8
clocksource = "kvm-clock"
[vmm]
cost_ns = 10
preempt_ppm = 3
[vmm.site.set_clock]
preempt_ppm = 4
[channel]
rounds = 2
[[move]]
to = "b"
blackout_ns = { up_to = 9 }
[[event]]
kind = "leap_second"
host = "b"
phase = "after"
size = -1
[fault]
wire_flip = 1_000_000
)";

TEST(Scenario, EveryKindOfKeyIsTaken) {
    const auto scenario = parse_scenario(kWhole, "whole.toml");
    ASSERT_TRUE(scenario) << scenario.error().message();
    EXPECT_EQ(scenario->epoch_tai_ns, 18'446'744'073'000'000'000U);
    ASSERT_EQ(scenario->hosts.size(), 2U);
    EXPECT_EQ(scenario->hosts[0].kernel_minor, 1U);
    EXPECT_EQ(scenario->hosts[0].tsc_khz, (Draw{1'000'000, 2'000'000, false}));
    EXPECT_EQ(scenario->hosts[0].scaling_bits, 32);
    EXPECT_FALSE(scenario->hosts[1].tsc_clocksource);
    EXPECT_EQ(scenario->guest.clocksource, Clocksource::kKvmclock);
    EXPECT_EQ(scenario->site(Site::kSetClock).preempt, Ppm{4});
    EXPECT_EQ(scenario->site(Site::kGetClock).preempt, Ppm{3});
    EXPECT_EQ(scenario->moves[0].blackout_ns, (Draw{0, 9, true}));
    EXPECT_EQ(scenario->events[0].kind, EventKind::kLeapSecond);
    EXPECT_EQ(scenario->events[0].phase, Phase::kAfter);
    EXPECT_EQ(scenario->fault(Fault::kWireFlip), Ppm{1'000'000});
}

struct Bad {
    std::string_view what;
    std::string_view text;  ///< after a beginning of two lines: name and a host
    std::string_view where;
    std::string_view says;
};

// The first line of `text` is line 3.
const Bad kBad[] = {
    {"an unknown key of a host", "drift = 3\n[[move]]\nin_place = true\n", "s.toml:3:1: host.drift",
     "unknown key"},
    {"an unknown key at the top", "[[move]]\nin_place = true\n[gust]\nvcpus = 1\n",
     "s.toml:5:", "unknown key"},
    {"a frequency of 0", "tsc_khz = 0\n[[move]]\nin_place = true\n", "s.toml:3:11: host.tsc_khz",
     "from 1 to 16000000"},
    {"a frequency beyond what true time resolves", "tsc_khz = [1, 16_000_001]\n", "host.tsc_khz",
     "from 1 to 16000000"},
    {"a negative probability", "[[move]]\nin_place = true\n[fault]\nwire_flip = -1\n",
     "s.toml:6:13: fault.wire_flip", "from 0 to 1000000"},
    {"a probability over 1",
     "[[move]]\nin_place = true\n[vmm.site.plan]\npreempt_ppm = 1_000_001\n",
     "s.toml:6:15: vmm.site.plan.preempt_ppm", "from 0 to 1000000"},
    {"a floating-point length", "[[move]]\nin_place = true\nblackout_ns = 1.5\n",
     "s.toml:5:15: move.blackout_ns", "a floating-point number"},
    {"a range the wrong way round", "[[move]]\nin_place = true\nblackout_ns = [9, 2]\n",
     "s.toml:5:15: move.blackout_ns", "lower end first"},
    {"a range of three", "[[move]]\nin_place = true\nblackout_ns = [1, 2, 3]\n", "move.blackout_ns",
     "two ends"},
    {"a negative length", "[[move]]\nin_place = true\nblackout_ns = -1\n", "move.blackout_ns",
     "from 0 to"},
    {"no move", "", "move", "Expected 1 to 8 of [[move]]"},
    {"a move to nowhere", "[[move]]\nto = \"b\"\n", "s.toml:4:6: move.to", "no host is named"},
    {"a move of the only host", "[[move]]\n", "move.to", "one host"},
    {"a site that does not exist", "[[move]]\nin_place = true\n[vmm.site.nowhere]\n",
     "vmm.site.nowhere", "unknown key"},
    {"a host that states less than it is off", "drift_ppb = 900\nrate_bound_ppb = 899\n",
     "s.toml:4:18: host.rate_bound_ppb", "900 ppb off"},
    {"a clock that admits less than it is off", "tai_bound_ns = 4\ntai_error_ns = [-5, 0]\n",
     "host.tai_error_ns", "5 ns off"},
    {"a release that is none", "kernel = \"six\"\n", "s.toml:3:10: host.kernel",
     "release of Linux"},
    {"an event of no kind", "[[move]]\nin_place = true\n[[event]]\nhost = \"a\"\n", "event.kind",
     "none"},
    {"an event of a move that is not there",
     "[[move]]\nin_place = true\n[[event]]\nkind = \"suspend\"\nmove = 1\n", "event.move",
     "from 0 to 0"},
    {"events out of order",
     "[[move]]\nin_place = true\n[[event]]\nkind = \"suspend\"\n"
     "[[event]]\nkind = \"suspend\"\nat_ppm = 499_999\n",
     "s.toml:9:10: event.at_ppm", "in their order"},
    {"a story longer than true time",
     "[[move]]\nin_place = true\nrun_ns = 504_576_000_000_000_000\nblackout_ns = 1\n", "move",
     "Expected at most"},
    {"too many vCPUs", "[[move]]\nin_place = true\n[guest]\nvcpus = 9\n", "guest.vcpus",
     "from 1 to 8"},
    {"what is no TOML", "[[move\n", "s.toml:3:", "Expected TOML"},
    {"a limit of nothing", "[[move]]\nin_place = true\n[limits]\nsteps = 0\n", "limits.steps",
     "from 1"},
};

TEST(Scenario, BadInputIsRefusedWithLineKeyAndWhatWasExpected) {
    for (const Bad& bad : kBad) {
        // One line: a table in a string, so that what follows begins on line 3.
        const std::string text = "name = \"s\"\n[[host]]\n" + std::string{bad.text};
        const auto scenario = parse_scenario(text, "s.toml");
        ASSERT_FALSE(scenario) << bad.what;
        const std::string message = scenario.error().message();
        EXPECT_NE(scenario.error().where.find(bad.where), std::string::npos)
            << bad.what << ": " << message;
        EXPECT_NE(message.find(bad.says), std::string::npos) << bad.what << ": " << message;
    }
}

TEST(Scenario, AFileThatIsNotThereIsAnError) {
    const auto scenario = load_scenario("/nowhere/at-all.toml");
    ASSERT_FALSE(scenario);
    EXPECT_EQ(scenario.error().code, state::ErrorCode::kIo);
}

TEST(Scenario, NamesAreDistinct) {
    std::set<std::string_view> seen;
    for (std::size_t i = 0; i < kSites; ++i)
        EXPECT_TRUE(seen.insert(name(static_cast<Site>(i))).second);
    for (std::size_t i = 0; i < kFaults; ++i)
        EXPECT_TRUE(seen.insert(name(static_cast<Fault>(i))).second);
    EXPECT_EQ(site_from_name("set_clock"), Site::kSetClock);
    EXPECT_EQ(fault_from_name("vcpu_moves"), Fault::kVcpuMoves);
    EXPECT_FALSE(site_from_name("nowhere"));
}

}  // namespace
}  // namespace continuo::sim
