// doctor on a real arm64 /dev/kvm: that the report agrees with itself and with a second look, and
// that the verdict follows from what the guest saw.
#include <gtest/gtest.h>

#include <cstdio>
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
        const std::string_view state = name(check.state);
        std::printf("%-26s %-8s %s\n", std::string{check.id}.c_str(), std::string{state}.c_str(),
                    check.evidence.c_str());
        EXPECT_TRUE(ids.insert(check.id).second) << check.id;
        EXPECT_EQ(check.requirement.substr(0, 1), "S");
        EXPECT_FALSE(check.evidence.empty()) << check.id;
        EXPECT_EQ(check.evidence.find('\n'), std::string::npos);
        const bool bad = check.state == CheckState::kAbsent || check.state == CheckState::kBroken;
        EXPECT_EQ(bad, !check.consequence.empty()) << check.id << ": " << check.evidence;
    }
    EXPECT_EQ(ids.size(), 16u);
}

TEST_F(DoctorOnKvm, TheVerdictFollowsFromWhatTheGuestSaw) {
    const bool set = works("counter_offset");
    const bool honoured = works("counter_offset_honoured");
    const bool write = works("counter_write");
    EXPECT_EQ(report_->verdict == Verdict::kExact, honoured);
    EXPECT_EQ(report_->verdict == Verdict::kByValue, !honoured && write);
    EXPECT_EQ(report_->verdict == Verdict::kFixedTsc, !honoured && !write);
    EXPECT_EQ(has(report_->quirks, Quirk::kNoTscOffset), !set);
    EXPECT_EQ(has(report_->quirks, Quirk::kTscOffsetIgnored), set && !honoured);
    EXPECT_EQ(has(report_->quirks, Quirk::kTscWriteIgnored), !write);
    EXPECT_EQ(has(report_->quirks, Quirk::kPhysicalCounterFixed),
              !works("physical_offset_honoured"));
}

TEST_F(DoctorOnKvm, WhatTheKernelOffersIsThere) {
    // Linux 6.4 and later: the call, and both counters by it. Before: by value.
    const CheckState state = find("counter_offset")->state;
    if (state == CheckState::kAbsent) {
        EXPECT_EQ(report_->verdict, Verdict::kByValue);
        EXPECT_TRUE(works("counter_write"));
        GTEST_SKIP() << find("counter_offset")->evidence;
    }
    EXPECT_EQ(report_->verdict, Verdict::kExact);
    EXPECT_TRUE(works("counter_restore")) << find("counter_restore")->evidence;
    EXPECT_TRUE(works("vtimer")) << find("vtimer")->evidence;
    EXPECT_TRUE(works("counter_write_dropped")) << find("counter_write_dropped")->evidence;
}

TEST_F(DoctorOnKvm, ASecondLookSaysTheSame) {
    auto system = System::open();
    ASSERT_TRUE(system);
    const auto again = examine(*system);
    ASSERT_TRUE(again) << again.error().message();
    EXPECT_EQ(again->verdict, report_->verdict);
    EXPECT_EQ(again->quirks, report_->quirks);
    ASSERT_TRUE(again->host && report_->host);
    EXPECT_EQ(again->host->frequency(), report_->host->frequency());
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
    for (const DoctorCheck& check : report->checks)
        EXPECT_EQ(check.state, CheckState::kNotRun) << check.id;
}

}  // namespace
}  // namespace continuo::kvm
