// Every right variant is clean to the last state, every planted wrong one is caught, and both
// with and without partial-order reduction.
#include "continuo/explore/protocol.h"

#include <gtest/gtest.h>

#include "kvm_vm_pool.h"

namespace continuo::explore {
namespace {

struct Case {
    const Protocol* protocol;
    const Variant* variant;
};

std::vector<Case> cases() {
    std::vector<Case> out;
    for (const Protocol& protocol : protocols())
        for (const Variant& variant : protocol.variants)
            out.push_back({&protocol, &variant});
    return out;
}

class EveryVariant : public testing::TestWithParam<Case> {};

void hold(const Variant& variant, bool reduction) {
    const auto system = variant.make();
    SearchOptions options;
    options.reduction = reduction;
    options.progress = variant.progress;
    const auto outcome = search(*system, options);
    ASSERT_TRUE(outcome) << outcome.error().message();
    if (!variant.wrong) {
        EXPECT_FALSE(outcome->violation);
        EXPECT_TRUE(outcome->complete);
        return;
    }
    ASSERT_TRUE(outcome->violation);
    EXPECT_EQ(outcome->violation->kind, *variant.wrong);
    EXPECT_FALSE(outcome->violation->path.empty());
}

TEST_P(EveryVariant, IsJudgedRightWithReduction) {
    hold(*GetParam().variant, true);
}

TEST_P(EveryVariant, IsJudgedRightWithoutReduction) {
    hold(*GetParam().variant, false);
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
    std::string out = info.param.protocol->name + "_" + info.param.variant->name;
    for (char& c : out)
        if (c == '-') c = '_';
    return out;
}

// KvmVmPool::words() names every field of a vCPU and of a VM. Where this fails one was added or
// taken away there: give it to words() where later steps can depend on it, then its size here.
TEST(KvmVmPool, KnowsEveryField) {
    EXPECT_EQ(sizeof(model::KvmVcpu), 240U);
    EXPECT_EQ(sizeof(model::KvmArch), 192U);
}

INSTANTIATE_TEST_SUITE_P(Protocols, EveryVariant, testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace continuo::explore
