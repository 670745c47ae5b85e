// The quirk table as data: that its rows can be told apart and judged, and that
// docs/kernel-facts.md has them as they are.
#include "continuo/kvm/quirk_table.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

namespace continuo::kvm {
namespace {

using state::Architecture;

TEST(QuirkTable, RowsAreWholeAndTheirIdsAreTheirOwn) {
    std::set<std::string_view> ids;
    for (const QuirkRow& row : quirk_table()) {
        EXPECT_TRUE(ids.insert(row.id).second) << row.id;
        for (const std::string_view sentence : {row.what, row.instead})
            EXPECT_EQ(sentence.back(), '.') << row.id;
        EXPECT_FALSE(row.seen_by.empty() || row.source.empty()) << row.id;
        EXPECT_LE(row.kernels.from, row.kernels.until) << row.id;
        EXPECT_EQ(find_quirk(row.id), &row);
        if (row.check_state) {
            EXPECT_FALSE(row.check.empty()) << row.id;
        }
    }
    EXPECT_EQ(find_quirk("no_such_quirk"), nullptr);
}

TEST(QuirkTable, EveryQuirkThatThePlannerKnowsHasARow) {
    for (const state::Quirk quirk : state::kAllQuirks)
        EXPECT_NE(find_quirk(state::name(quirk)), nullptr) << state::name(quirk);
}

TEST(QuirkTable, AReleaseIsReadFromWhatUnameSays) {
    EXPECT_EQ(kernel_release("Linux 6.12.117+deb12-cloud-amd64 x86_64"), (KernelRelease{6, 12}));
    EXPECT_EQ(kernel_release("6.1.0-30-amd64"), (KernelRelease{6, 1}));
    EXPECT_EQ(kernel_release("7.2"), (KernelRelease{7, 2}));
    EXPECT_EQ(kernel_release("5.16-rc1"), (KernelRelease{5, 16}));
    for (const std::string_view bad :
         {"", "Linux ", "unknown kernel", "6", "6.", "6.x", ".1", "6,1", "99999999999.1"})
        EXPECT_EQ(kernel_release(bad), std::nullopt) << bad;
}

TEST(QuirkTable, ARangeEndsBeforeItsSecondRelease) {
    const KernelRange range{{5, 16}, {6, 7}};
    EXPECT_FALSE(range.contains({5, 15}));
    EXPECT_TRUE(range.contains({5, 16}));
    EXPECT_TRUE(range.contains({6, 6}));
    EXPECT_FALSE(range.contains({6, 7}));
    // 6.12 is after 6.7, and 10.0 after 9.9.
    EXPECT_FALSE(range.contains({6, 12}));
    EXPECT_TRUE(KernelRange{}.contains({10, 0}));
    EXPECT_EQ(text(range), "5.16 to before 6.7");
    EXPECT_EQ(text(KernelRange{}), "all");
    EXPECT_EQ(text(KernelRange{{0, 0}, {6, 7}}), "before 6.7");
    EXPECT_EQ(text(KernelRange{{5, 16}, KernelRange{}.until}), "from 5.16");
    EXPECT_EQ(text(KernelRange{{0, 0}, {0, 0}}), "no release");
}

QuirkFinding judged(std::string_view id, std::string_view kernel, std::optional<bool> seen) {
    const QuirkEffect effect{id, seen, "as told", {}, {}};
    for (const QuirkFinding& finding :
         judge_quirks(find_quirk(id)->architecture, kernel, {{effect}}))
        if (finding.row->id == id) return finding;
    ADD_FAILURE() << id;
    return {};
}

TEST(QuirkTable, WhatWasSeenWinsOverTheRelease) {
    struct Case {
        std::string_view kernel;
        std::optional<bool> seen;
        bool in_force;
        bool disagrees;
    };
    for (const Case& one : {
             Case{"Linux 6.1.0 x86_64", true, true, false},
             Case{"Linux 6.1.0 x86_64", false, false, true},  // a distribution's back-port
             Case{"Linux 6.1.0 x86_64", {}, true, false},
             Case{"Linux 6.12.0 x86_64", true, true, true},
             Case{"Linux 6.12.0 x86_64", {}, false, false},
             Case{"unknown kernel", true, true, false},
             Case{"unknown kernel", {}, false, false},
         }) {
        const QuirkFinding finding = judged("tsc_sync_on_first_write", one.kernel, one.seen);
        EXPECT_EQ(finding.in_force(), one.in_force) << one.kernel;
        EXPECT_EQ(finding.disagrees(), one.disagrees) << one.kernel;
    }
}

TEST(QuirkTable, OfAQuirkOfNoReleaseTheReleaseSaysNothing) {
    EXPECT_FALSE(judged("tsc_offset_ignored", "Linux 6.12.0 x86_64", true).disagrees());
    EXPECT_FALSE(judged("tsc_offset_ignored", "Linux 6.12.0 x86_64", {}).in_force());
}

TEST(QuirkTable, WhatAHostCanAddIsNoDisagreementThere) {
    const auto disagrees = [](std::string_view kernel, bool seen) {
        return judged("physical_counter_fixed", kernel, seen).disagrees();
    };
    EXPECT_FALSE(disagrees("Linux 6.12.0 aarch64", true));  // a protected KVM
    EXPECT_FALSE(disagrees("Linux 6.1.0 aarch64", true));
    EXPECT_TRUE(disagrees("Linux 6.1.0 aarch64", false));
}

TEST(QuirkTable, AHostIsJudgedByTheRowsOfItsArchitecture) {
    for (const Architecture architecture : {Architecture::kX86_64, Architecture::kArm64})
        for (const QuirkFinding& finding : judge_quirks(architecture, "Linux 6.12.0", {}))
            EXPECT_EQ(finding.row->architecture, architecture);
}

TEST(QuirkTable, TheDocumentHasEveryRowAsItIs) {
    std::ifstream file{CONTINUO_SOURCE_DIR "/docs/kernel-facts.md"};
    ASSERT_TRUE(file) << "docs/kernel-facts.md cannot be read";
    std::ostringstream text_of;
    text_of << file.rdbuf();
    const std::string document = text_of.str();
    const std::size_t begin = document.find("\n## The quirk table\n");
    ASSERT_NE(begin, std::string::npos);
    const std::string section = document.substr(begin, document.find("\n## ", begin + 1) - begin);
    std::string wanted;
    for (const QuirkRow& row : quirk_table()) {
        const std::string line = markdown(row) + "\n";
        if (section.find("\n" + line) == std::string::npos) wanted += line;
    }
    EXPECT_EQ(wanted, "") << "put these lines into the table of docs/kernel-facts.md";
    std::size_t rows = 0;
    for (std::size_t at = 0; (at = section.find("\n| `", at)) != std::string::npos; ++at)
        ++rows;
    EXPECT_EQ(rows, quirk_table().size()) << "the document has a row that the table has not";
}

}  // namespace
}  // namespace continuo::kvm
