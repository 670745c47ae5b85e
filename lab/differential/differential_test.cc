// The judge against itself, without a kernel: the model in the kernel's place, whose calls take
// random times. What agrees must agree, and what lies must be caught.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "campaign.h"
#include "continuo/abi/msr.h"
#include "model_subject.h"
#include "report.h"

namespace continuo::differential {
namespace {

constexpr std::uint32_t kKhz = 2'596'124;
constexpr std::uint32_t kQuick = 2'000;     ///< ticks a reading may take: under a microsecond
constexpr std::uint32_t kSlow = 8'000'000;  ///< 3 ms: an emulated host that is not let run

model::KernelRules rules_of(unsigned major, unsigned minor) {
    return model::KernelRules::linux(major, minor);
}

CampaignOptions options_for(const model::KernelRules& rules, std::uint64_t sequences) {
    CampaignOptions options;
    options.rules = rules;
    options.sequences = sequences;
    options.host.khz = kKhz;
    options.abilities.host_khz = kKhz;
    options.abilities.cpus = 2;
    options.abilities.moves_tsc = !rules.offset_stays_zero;
    return options;
}

Tally run_on(Subject& subject, const CampaignOptions& options) {
    auto tally = run_campaign(subject, options, [](const Tally&) {});
    EXPECT_TRUE(tally) << tally.error().message();
    return tally ? std::move(*tally) : Tally{};
}

void expect_agreement(const Tally& tally, std::uint64_t sequences) {
    EXPECT_EQ(tally.sequences, sequences);
    for (const Finding& finding : tally.findings)
        ADD_FAILURE() << text(finding);
}

class Kernel : public testing::TestWithParam<std::pair<unsigned, unsigned>> {
  protected:
    model::KernelRules rules() const { return rules_of(GetParam().first, GetParam().second); }
};

TEST_P(Kernel, TheModelAgreesWithItself) {
    const CampaignOptions options = options_for(rules(), 2000);
    ModelSubject subject{GetParam().second, kKhz, rules(), kQuick};
    const Tally tally = run_on(subject, options);
    expect_agreement(tally, 2000);
    EXPECT_GT(tally.comparisons, 500'000u);
    EXPECT_EQ(tally.by_kind.size(), kOpKinds) << "an operation was never drawn";
    // What cannot be decided is rare, and there is some: the edges of KVM's second are drawn.
    EXPECT_GT(tally.ambiguous, 0u);
    EXPECT_LT(tally.ambiguous, tally.ops / 100);
}

/// Calls of milliseconds: work items come between, brackets are wide, and still nothing differs.
TEST_P(Kernel, TheModelAgreesWithItselfOnASlowHost) {
    const CampaignOptions options = options_for(rules(), 500);
    ModelSubject subject{3, kKhz, rules(), kSlow};
    expect_agreement(run_on(subject, options), 500);
}

TEST_P(Kernel, AHostThatKeepsItsOffsetsAtZeroAgreesToo) {
    model::KernelRules rules = this->rules();
    rules.offset_stays_zero = true;
    const CampaignOptions options = options_for(rules, 500);
    ModelSubject subject{4, kKhz, rules, kQuick};
    expect_agreement(run_on(subject, options), 500);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Kernel,
                         testing::Values(std::pair{6U, 1U}, std::pair{6U, 12U}, std::pair{7U, 2U}),
                         [](const auto& one) {
                             return "Linux" + std::to_string(one.param.first) + "_" +
                                    std::to_string(one.param.second);
                         });

// ---- The oracle: what is not the model's kernel is found, and made small ----

struct Wrong {
    const char* name;
    unsigned major;
    unsigned minor;
    void (*spoil)(model::KernelRules&);
    std::size_t ops_at_most;  ///< of the smallest sequence
};

class WrongRules : public testing::TestWithParam<Wrong> {};

TEST_P(WrongRules, AreCaughtAndMadeSmall) {
    const Wrong& wrong = GetParam();
    model::KernelRules kernel = rules_of(wrong.major, wrong.minor);
    CampaignOptions options = options_for(kernel, 2000);
    options.mismatches_max = 1;
    wrong.spoil(options.rules);
    ModelSubject subject{5, kKhz, kernel, kQuick};
    const Tally tally = run_on(subject, options);
    ASSERT_EQ(tally.findings.size(), 1u);
    const Finding& found = tally.findings.front();
    EXPECT_TRUE(found.seen_again);
    EXPECT_LE(found.smallest.ops.size(), wrong.ops_at_most) << text(found);
    EXPECT_FALSE(found.mismatch.differences.empty());
    EXPECT_FALSE(found.story.empty());
}

constexpr Wrong kWrongs[] = {
    {"RulesOf6_12OnKernel6_1", 6, 1, [](model::KernelRules& r) { r = rules_of(6, 12); }, 5},
    {"RulesOf6_1OnKernel6_12", 6, 12, [](model::KernelRules& r) { r = rules_of(6, 1); }, 5},
    {"FirstWriteArmsNothing", 6, 12, [](model::KernelRules& r) { r.user_write_arms_sync = false; },
     4},
    {"EveryWriteAsksForAnUpdate", 6, 12,
     [](model::KernelRules& r) { r.same_offset_is_noop = false; }, 5},
    {"ToleranceOfOnePpmLess", 6, 12, [](model::KernelRules& r) { r.tolerance_ppm = 249; }, 4},
    {"NoOffsetAttribute", 6, 12, [](model::KernelRules& r) { r.has_offset_attribute = false; }, 2},
    {"NoTriple", 6, 12, [](model::KernelRules& r) { r.has_clock_triple = false; }, 3},
    {"HostWritesMeanWhatTheySay", 6, 12, [](model::KernelRules& r) { r.host_access_quirk = true; },
     4},
};

INSTANTIATE_TEST_SUITE_P(All, WrongRules, testing::ValuesIn(kWrongs),
                         [](const auto& one) { return std::string{one.param.name}; });

/// A kernel that is right but for one thing that it shows.
class LyingSubject final : public Subject {
  public:
    using Lie = void (*)(Step&);
    explicit LyingSubject(Lie lie) : truth_{6, kKhz, rules_of(6, 12), kQuick}, lie_{lie} {}

    Result<Bracket> create() override { return truth_.create(); }
    std::uint64_t now() override { return truth_.now(); }
    std::uint32_t host_khz() const override { return kKhz; }
    RealtimeAnchor realtime() override { return truth_.realtime(); }
    Result<View> look() override { return truth_.look(); }
    Result<Step> perform(const Act& act) override {
        auto step = truth_.perform(act);
        if (step) lie_(*step);
        return step;
    }

  private:
    ModelSubject truth_;
    Lie lie_;
};

struct NamedLie {
    const char* name;
    LyingSubject::Lie lie;
};

bool stable(const Step& step) {
    return (step.after.clock.flags & abi::kKVM_CLOCK_TSC_STABLE) != 0;
}

constexpr NamedLie kLies[] = {
    {"NoLie", nullptr},
    {"OffsetByOneTick",
     [](Step& step) {
         if (step.act.kind == OpKind::kSetOffset) ++step.after.vcpu[step.act.vcpu].offset;
     }},
    {"AWriteLandsAfterItsCall",
     [](Step& step) {
         if (step.act.kind == OpKind::kWriteTsc && step.act.value > 1)
             step.after.vcpu[step.act.vcpu].offset -= step.at.width() + 1;
     }},
    {"ARefusalIsNone", [](Step& step) { step.error = 0; }},
    {"GuestReadsATickLate",
     [](Step& step) {
         if (step.act.kind == OpKind::kGuestReadTsc) step.answer += step.at.width();
     }},
    {"VersionTooFar",
     [](Step& step) {
         if (step.act.kind == OpKind::kSettle) step.after.vcpu[0].pages[0].version += 2;
     }},
    {"StableBitStays",
     [](Step& step) { step.after.vcpu[0].pages[0].flags |= abi::kPVCLOCK_TSC_STABLE_BIT; }},
    {"StoppedIsForgotten",
     [](Step& step) {
         auto& flags = step.after.vcpu[0].pages[0].flags;
         flags = static_cast<std::uint8_t>(flags & ~abi::kPVCLOCK_GUEST_STOPPED);
     }},
    {"ClockJumps5ns",
     [](Step& step) {
         if (stable(step) && step.act.kind == OpKind::kWait) step.after.clock.clock += 5;
     }},
    {"PageJumps8ns",
     [](Step& step) {
         if (stable(step)) step.after.vcpu[0].pages[0].system_time += 8;
     }},
    {"RealtimeIsASecondOff",
     [](Step& step) {
         if (step.act.kind == OpKind::kWait && step.after.clock.realtime != 0)
             step.after.clock.realtime += 1'000'000;
     }},
    {"WallClockIsAMillisecondOff",
     [](Step& step) { step.after.wall.nsec ^= step.after.wall.version == 0 ? 0 : 1U << 20; }},
    {"AdjustIsNotKept", [](Step& step) { step.after.vcpu[0].adjust = 0; }},
    {"KhzIsTheHosts", [](Step& step) { step.after.vcpu[0].khz = kKhz; }},
    {"TheMsrReadsZero", [](Step& step) { step.after.vcpu[0].system_time = 0; }},
    {"MasterclockIsNeverLost", [](Step& step) { step.after.clock.flags = 0xe; }},
    {"PairingIsATickOff", [](Step& step) { step.pairing.tsc += step.at.width(); }},
};

class Lies : public testing::TestWithParam<NamedLie> {};

TEST_P(Lies, AreCaught) {
    if (GetParam().lie == nullptr) {
        LyingSubject honest{[](Step&) {}};
        expect_agreement(run_on(honest, options_for(rules_of(6, 12), 300)), 300);
        return;
    }
    LyingSubject liar{GetParam().lie};
    CampaignOptions options = options_for(rules_of(6, 12), 1000);
    options.mismatches_max = 1;
    const Tally tally = run_on(liar, options);
    ASSERT_EQ(tally.findings.size(), 1u) << "nobody noticed in " << tally.sequences << " sequences";
    EXPECT_LE(tally.findings[0].smallest.ops.size(), 5u) << text(tally.findings[0]);
}

INSTANTIATE_TEST_SUITE_P(All, Lies, testing::ValuesIn(kLies),
                         [](const auto& one) { return std::string{one.param.name}; });

// ---- Sequences ----

TEST(SequenceTest, TheSameSeedDrawsTheSame) {
    Abilities abilities;
    abilities.host_khz = kKhz;
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        const Sequence one = draw(seed, abilities, 24);
        const Sequence other = draw(seed, abilities, 24);
        EXPECT_EQ(one.vcpus, other.vcpus);
        EXPECT_EQ(one.ops, other.ops);
        EXPECT_LE(one.ops.size(), 24u + 4 * kVcpusMax);
    }
}

TEST(SequenceTest, WhatAHostLacksIsNotDrawn) {
    Abilities abilities;
    abilities.host_khz = kKhz;
    abilities.moves_tsc = false;
    abilities.hypercalls = false;
    for (std::uint64_t seed = 0; seed < 500; ++seed)
        for (const Op& op : draw(seed, abilities, 24).ops)
            EXPECT_TRUE(op.kind != OpKind::kSetOffset && op.kind != OpKind::kWriteTsc &&
                        op.kind != OpKind::kGuestWriteTsc && op.kind != OpKind::kClockPairing)
                << text(op);
}

TEST(SequenceTest, TheSameRunTwiceHasTheSameReport) {
    const CampaignOptions options = options_for(rules_of(6, 12), 50);
    std::string reports[2];
    for (std::string& report : reports) {
        ModelSubject subject{9, kKhz, options.rules, kQuick};
        report = json_report({"model", "6.12", 0}, options, run_on(subject, options));
    }
    EXPECT_EQ(reports[0], reports[1]);
}

TEST(ShrinkTest, LeavesWhatIsNeeded) {
    Sequence failing;
    failing.vcpus = 4;
    for (int i = 0; i < 40; ++i) {
        Op op;
        op.kind = static_cast<OpKind>(i % static_cast<int>(kOpKinds));
        op.vcpu = 3;
        op.amount = i;
        failing.ops.push_back(op);
    }
    // Fails where a kHz comes somewhere before a wait, on two vCPUs at least.
    const auto fails = [](const Sequence& sequence) {
        const auto khz = std::find_if(sequence.ops.begin(), sequence.ops.end(),
                                      [](const Op& op) { return op.kind == OpKind::kSetKhz; });
        return sequence.vcpus >= 2 && std::any_of(khz, sequence.ops.end(), [](const Op& op) {
                   return op.kind == OpKind::kWait;
               });
    };
    ASSERT_TRUE(fails(failing));
    const Sequence small = shrink(failing, fails);
    EXPECT_EQ(small.vcpus, 2u);
    ASSERT_EQ(small.ops.size(), 2u);
    EXPECT_EQ(small.ops[0].kind, OpKind::kSetKhz);
    EXPECT_EQ(small.ops[1].kind, OpKind::kWait);
    EXPECT_EQ(small.ops[0].amount, 0);
    EXPECT_EQ(small.ops[1].vcpu, 0);
}

TEST(ShrinkTest, GivesUpInTime) {
    Sequence failing;
    failing.ops.resize(1000);
    unsigned tries = 0;
    shrink(
        failing,
        [&](const Sequence&) {
            ++tries;
            return false;
        },
        50);
    EXPECT_EQ(tries, 50u);
}

}  // namespace
}  // namespace continuo::differential
