// doctor on a real /dev/kvm. What a host can do differs; what must hold is that the report agrees
// with itself and with a second look, and that the verdict follows from what was seen.
#include <gtest/gtest.h>

#include <set>

#include "continuo/kvm/doctor.h"

namespace continuo::kvm {
namespace {

using state::has;
using state::Quirk;

class DoctorOnKvm : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        auto system = System::open();
        if (!system) return;
        auto report = examine(*system);
        ASSERT_TRUE(report) << report.error().message();
        report_ = new DoctorReport{std::move(*report)};
    }
    static void TearDownTestSuite() {
        delete report_;
        report_ = nullptr;
    }
    void SetUp() override {
        if (report_ == nullptr) GTEST_SKIP() << "no usable /dev/kvm";
    }
    static const DoctorCheck* find(std::string_view id) {
        for (const DoctorCheck& check : report_->checks)
            if (check.id == id) return &check;
        return nullptr;
    }
    static bool works(std::string_view id) { return find(id)->state == CheckState::kWorks; }

    static DoctorReport* report_;
};
DoctorReport* DoctorOnKvm::report_ = nullptr;

TEST_F(DoctorOnKvm, EveryCheckSaysWhatItSawAndWhatFollows) {
    std::set<std::string_view> ids;
    for (const DoctorCheck& check : report_->checks) {
        EXPECT_TRUE(ids.insert(check.id).second) << check.id;
        EXPECT_FALSE(check.title.empty());
        EXPECT_EQ(check.requirement.substr(0, 1), "S");
        EXPECT_FALSE(check.evidence.empty()) << check.id;
        EXPECT_EQ(check.evidence.find('\n'), std::string::npos);
        const bool bad = check.state == CheckState::kAbsent || check.state == CheckState::kBroken;
        EXPECT_EQ(bad, !check.consequence.empty()) << check.id << ": " << check.evidence;
    }
    EXPECT_EQ(ids.size(), 19u);
}

TEST_F(DoctorOnKvm, TheVerdictFollowsFromWhatTheGuestSaw) {
    const bool offset = works("tsc_offset_honoured");
    const bool write = works("tsc_write");
    EXPECT_EQ(report_->verdict == Verdict::kExact, offset);
    EXPECT_EQ(report_->verdict == Verdict::kByValue, !offset && write);
    EXPECT_EQ(report_->verdict == Verdict::kFixedTsc, !offset && !write);
    EXPECT_EQ(has(report_->quirks, Quirk::kTscOffsetIgnored),
              !offset && find("tsc_offset")->state != CheckState::kAbsent);
    EXPECT_EQ(has(report_->quirks, Quirk::kTscWriteIgnored), !write);
    EXPECT_EQ(has(report_->quirks, Quirk::kNoTscAdjust), !works("tsc_adjust"));
    EXPECT_EQ(has(report_->quirks, Quirk::kNoKvmclockCtrl), !works("kvmclock_ctrl"));
    EXPECT_EQ(has(report_->quirks, Quirk::kNoClockTriple), !works("clock_triple"));
}

TEST_F(DoctorOnKvm, AnOffsetThatIsHonouredAlsoReadsBack) {
    if (!works("tsc_offset_honoured")) GTEST_SKIP() << find("tsc_offset_honoured")->evidence;
    EXPECT_TRUE(works("tsc_offset"));
}

TEST_F(DoctorOnKvm, ASecondLookSaysTheSame) {
    auto system = System::open();
    ASSERT_TRUE(system);
    const auto again = examine(*system);
    ASSERT_TRUE(again) << again.error().message();
    EXPECT_EQ(again->verdict, report_->verdict);
    EXPECT_EQ(again->quirks, report_->quirks);
    ASSERT_TRUE(again->host && report_->host);
    EXPECT_EQ(again->host->tsc_khz(), report_->host->tsc_khz());
    EXPECT_EQ(again->host->identity, report_->host->identity);
}

TEST_F(DoctorOnKvm, WithoutTimeNothingIsClaimed) {
    auto system = System::open();
    ASSERT_TRUE(system);
    DoctorOptions options;
    options.time_limit_ms = 0;
    const auto report = examine(*system, options);
    ASSERT_TRUE(report);
    EXPECT_EQ(report->verdict, Verdict::kFixedTsc);
    EXPECT_TRUE(has(report->quirks, Quirk::kTscOffsetIgnored));
    EXPECT_TRUE(has(report->quirks, Quirk::kTscWriteIgnored));
    for (const DoctorCheck& check : report->checks)
        EXPECT_EQ(check.state, CheckState::kNotRun) << check.id;
}

TEST(DoctorWithoutKvm, SaysWhatIsMissing) {
    const auto system = System::open("/dev/no-such-kvm");
    ASSERT_FALSE(system);
    const DoctorReport report = no_kvm_report(system.error());
    EXPECT_EQ(report.verdict, Verdict::kNoKvm);
    EXPECT_FALSE(report.host);
    EXPECT_TRUE(report.checks.empty());
    EXPECT_NE(report.reason.find("/dev/no-such-kvm"), std::string::npos);
}

}  // namespace
}  // namespace continuo::kvm
