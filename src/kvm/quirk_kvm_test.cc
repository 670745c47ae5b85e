// This kernel held against the quirk table: one that does something else than the table has fails
// here, and so a new kernel is noticed. Each row's figure is printed and recorded as a property.
#include <gtest/gtest.h>

#include <algorithm>

#include "continuo/kvm/quirk_table.h"
#include "kvm_test_host.h"

namespace continuo::kvm {
namespace {

class QuirkOnThisKernel : public testing::TestWithParam<std::string_view> {};

TEST_P(QuirkOnThisKernel, IsAsTheTableHasIt) {
    SKIP_WITHOUT_KVM();
    const QuirkRow& row = *find_quirk(GetParam());
    const QuirkEffect seen = see_quirk(*host().system, host().report, row);
    const auto findings = judge_quirks(row.architecture, host().kernel(), {{seen}});
    const auto finding = std::find_if(findings.begin(), findings.end(),
                                      [&](const auto& one) { return one.row == &row; });
    ASSERT_NE(finding, findings.end());
    const std::string_view outcome = !seen.seen   ? "could not be tried"
                                     : *seen.seen ? "the quirk is there"
                                                  : "the quirk is not there";
    figure(row.id, "{}; {} (table: {})", seen.evidence, outcome, text(row.kernels));
    if (seen.figure)
        RecordProperty(fmt::format("{}_{}", row.id, seen.unit), std::to_string(*seen.figure));
    if (!seen.seen) GTEST_SKIP() << seen.evidence;
    if (!finding->by_release) GTEST_SKIP() << "no release says anything about it";
    if (*seen.seen != *finding->by_release && !finding->disagrees())
        GTEST_SKIP() << "this host has it, whatever the release: " << seen.evidence;
    EXPECT_FALSE(finding->disagrees())
        << row.what << "\nThe table has it for: " << text(row.kernels)
        << ". Correct the row's releases, or explain this kernel in docs/kernel-facts.md.";
}

std::vector<std::string_view> rows_of_this_architecture() {
    std::vector<std::string_view> ids;
    for (const QuirkRow& row : quirk_table())
        if (row.architecture == quirk_architecture()) ids.push_back(row.id);
    return ids;
}

INSTANTIATE_TEST_SUITE_P(Kvm, QuirkOnThisKernel, testing::ValuesIn(rows_of_this_architecture()),
                         [](const auto& row) { return std::string{row.param}; });

}  // namespace
}  // namespace continuo::kvm
