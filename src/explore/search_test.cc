// The search on systems whose state spaces are known by arithmetic, and partial-order reduction
// against none on random programs.
#include "continuo/explore/search.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <set>

#include "continuo/explore/interleaving.h"
#include "continuo/explore/state_store.h"
#include "continuo/model/random.h"

namespace continuo::explore {
namespace {

Outcome searched(const System& system, bool reduction, bool progress = false) {
    SearchOptions options;
    options.reduction = reduction;
    options.progress = progress;
    auto outcome = search(system, options);
    EXPECT_TRUE(outcome) << outcome.error().message();
    return *outcome;
}

/// Threads that each take so many steps on a location of their own.
Interleaving independent(std::vector<int> steps) {
    Program program{"independent"};
    for (std::size_t i = 0; i < steps.size(); ++i) {
        const Loc own = program.shared("own" + std::to_string(i));
        Thread& thread = program.thread("thread" + std::to_string(i));
        for (int step = 1; step <= steps[i]; ++step)
            thread.store(own, step);
    }
    return {std::move(program.complete()), MemoryModel::kSc};
}

TEST(Search, CountsInterleavingsOfIndependentThreads) {
    // 4 x 6 x 3 states; each has as many successors as threads that are not done:
    // 3*6*3 + 4*5*3 + 4*6*2 = 162 transitions; 3 + 5 + 2 = 10 steps
    const Outcome full = searched(independent({3, 5, 2}), false);
    EXPECT_EQ(full.states, 4U * 6 * 3);
    EXPECT_EQ(full.transitions, 162U);
    EXPECT_EQ(full.depth, 10U);
    EXPECT_EQ(full.ends, 1U);
    EXPECT_TRUE(full.complete);
    // one interleaving stands for all
    const Outcome reduced = searched(independent({3, 5, 2}), true);
    EXPECT_EQ(reduced.states, 11U);
    EXPECT_EQ(reduced.transitions, 10U);
    EXPECT_EQ(reduced.depth, 10U);
}

/// Philosophers who take the left fork, then the right one, then put both back, for ever.
Interleaving philosophers(int count, bool last_is_left_handed) {
    Program program{"philosophers"};
    std::vector<Loc> forks;
    for (int i = 0; i < count; ++i)
        forks.push_back(program.direct("fork" + std::to_string(i)));
    for (int i = 0; i < count; ++i) {
        const auto at = static_cast<std::size_t>(i);
        Loc first = forks[at];
        Loc second = forks[(at + 1) % forks.size()];
        if (last_is_left_handed && i + 1 == count) std::swap(first, second);
        Thread& thread = program.thread("philosopher" + std::to_string(i));
        const Label think = thread.label();
        thread.bind(think).await(first, Op::kEqual, 0).put(first, 1);
        thread.await(second, Op::kEqual, 0).put(second, 1);
        thread.step("eat, and put both back").put(first, 0).put(second, 0).jump(think);
    }
    return {std::move(program.complete()), MemoryModel::kSc};
}

/// trace(M^n) with M[a][b]: a philosopher who has a forks beside one who has b; his right-hand fork
/// is the other's left one, so 2 beside 1 or 2 cannot be.
std::uint64_t philosopher_states(int count) {
    using Matrix = std::array<std::array<std::uint64_t, 3>, 3>;
    constexpr Matrix m{{{1, 1, 1}, {1, 1, 1}, {1, 0, 0}}};
    Matrix power = m;
    for (int i = 1; i < count; ++i) {
        Matrix next{};
        for (std::size_t a = 0; a < 3; ++a)
            for (std::size_t b = 0; b < 3; ++b)
                for (std::size_t c = 0; c < 3; ++c)
                    next[a][b] += power[a][c] * m[c][b];
        power = next;
    }
    return power[0][0] + power[1][1] + power[2][2];
}

TEST(Search, FindsThePhilosophersDeadlock) {
    for (const int count : {2, 3, 5}) {
        const auto outcome = searched(philosophers(count, false), true);
        ASSERT_TRUE(outcome.violation);
        EXPECT_EQ(outcome.violation->kind, Violation::Kind::kDeadlock);
        EXPECT_EQ(outcome.violation->path.size(), static_cast<std::size_t>(count));
    }
    EXPECT_EQ(philosopher_states(2), 6U);
}

// The deadlock is the last state of its level and ends the search, so the count is taken of
// philosophers who may rest: then nothing is a violation.
TEST(Search, CountsThePhilosophersStates) {
    for (const int count : {2, 3, 4, 5, 6, 7}) {
        Program program{"philosophers"};
        std::vector<Loc> forks;
        for (int i = 0; i < count; ++i)
            forks.push_back(program.direct("fork" + std::to_string(i)));
        for (std::size_t i = 0; i < forks.size(); ++i) {
            const Loc right = forks[(i + 1) % forks.size()];
            Thread& thread = program.thread("philosopher" + std::to_string(i));
            const Label think = thread.label();
            thread.bind(think).await(forks[i], Op::kEqual, 0).put(forks[i], 1);
            thread.await(right, Op::kEqual, 0).put(right, 1);
            thread.step("eat").put(forks[i], 0).put(right, 0).jump(think).serves();
        }
        const Interleaving system{std::move(program.complete()), MemoryModel::kSc};
        EXPECT_EQ(searched(system, false).states, philosopher_states(count)) << count;
        EXPECT_EQ(searched(system, false).ends, 1U);
        EXPECT_EQ(searched(system, true).ends, 1U);
    }
}

TEST(Search, OneLeftHandedPhilosopherIsEnough) {
    for (const bool reduction : {false, true}) {
        const auto outcome = searched(philosophers(5, true), reduction);
        EXPECT_FALSE(outcome.violation);
        EXPECT_TRUE(outcome.complete);
    }
}

TEST(Search, StatesItsLimits) {
    SearchOptions options;
    options.reduction = false;
    options.states_max = 71;
    auto outcome = search(independent({3, 5, 2}), options);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, state::ErrorCode::kTooLarge);
    EXPECT_NE(outcome.error().what.find("71"), std::string::npos);
    options.states_max = 72;
    EXPECT_TRUE(search(independent({3, 5, 2}), options));
    options.bytes_max = 1;
    EXPECT_FALSE(search(independent({3, 5, 2}), options));
}

TEST(Search, FindsWhatCannotEnd) {
    // the waiter spins until the flag is set; the setter may decide not to
    for (const bool sets_always : {true, false}) {
        Program program{"spin"};
        const Loc flag = program.shared("flag");
        Thread& setter = program.thread("setter");
        const Reg r = setter.reg("r");
        const Label leave = setter.label();
        setter.choose(r, 2);
        if (!sets_always) setter.jump_if_zero(r, leave);
        setter.store(flag, 1).bind(leave);
        Thread& waiter = program.thread("waiter");
        const Reg found = waiter.reg("found");
        const Label again = waiter.label();
        waiter.bind(again).load(found, flag).jump_if_zero(found, again);
        const Interleaving system{std::move(program.complete()), MemoryModel::kSc};
        for (const bool reduction : {false, true}) {
            const auto outcome = searched(system, reduction, true);
            EXPECT_EQ(outcome.complete, sets_always);
            if (sets_always) continue;
            ASSERT_TRUE(outcome.violation);
            EXPECT_EQ(outcome.violation->kind, Violation::Kind::kNoProgress);
        }
    }
}

TEST(StateStore, KeepsWhatASetKeeps) {
    model::Random random{1};
    StateStore store{5};
    std::set<std::vector<std::uint8_t>> known;
    std::vector<std::vector<std::uint8_t>> order;
    for (int i = 0; i < 30'000; ++i) {
        std::vector<std::uint8_t> state(5);
        for (auto& byte : state)
            byte = static_cast<std::uint8_t>(random.next() % 9);
        const auto [number, is_new] = store.insert(state.data(), 7);
        EXPECT_EQ(is_new, known.insert(state).second);
        if (is_new) order.push_back(state);
        ASSERT_LT(number, order.size());
        EXPECT_EQ(order[number], state);
        EXPECT_EQ(store.find(state.data()), number);
    }
    EXPECT_EQ(store.size(), known.size());
    for (std::uint32_t i = 0; i < store.size(); ++i)
        EXPECT_EQ(std::memcmp(store.state(i), order[i].data(), 5), 0);
}

// -- reduction against none --

struct RandomProgram {
    bool asserts = false;  ///< else it may deadlock and hang
    MemoryModel model = MemoryModel::kSc;
};

class Generator {
  public:
    Generator(std::uint64_t seed, RandomProgram how)
        : random_{seed}, how_{how}, program_{"random"} {}

    Program make() {
        const int locations = pick(2, 3);
        for (int i = 0; i < locations; ++i)
            shared_.push_back(program_.shared("x" + std::to_string(i)));
        direct_.push_back(program_.direct("d0"));
        direct_.push_back(program_.direct("d1"));
        const int threads = pick(2, 3);
        for (int i = 0; i < threads; ++i)
            add_thread(i, threads == 2 ? 5 : 4);
        return std::move(program_.complete());
    }

  private:
    int pick(int lo, int hi) {
        return lo + static_cast<int>(random_.next() % static_cast<std::uint64_t>(hi - lo + 1));
    }
    Loc shared() {
        return shared_[static_cast<std::size_t>(pick(0, static_cast<int>(shared_.size()) - 1))];
    }
    Loc direct() { return direct_[static_cast<std::size_t>(pick(0, 1))]; }

    void add_thread(int number, int length) {
        Thread& t = program_.thread("t" + std::to_string(number));
        const Reg a = t.reg("a");
        const Reg b = t.reg("b");
        const Label begin = t.label();
        const Label end = t.label();
        t.bind(begin);
        bool stored = false;
        for (int i = 0; i < length; ++i) {
            switch (pick(0, 9)) {
                case 0:
                case 1:
                    t.load(pick(0, 1) == 0 ? a : b, shared(),
                           pick(0, 3) == 0 ? Order::kAcquire : Order::kPlain);
                    break;
                case 2:
                case 3:
                    t.store(shared(), pick(0, 2),
                            pick(0, 3) == 0 ? Order::kRelease : Order::kPlain);
                    stored = true;
                    break;
                case 4:
                    t.cas(a, shared(), pick(0, 2), pick(0, 2));
                    stored = true;
                    break;
                case 5:
                    t.fence(static_cast<Fence>(pick(0, 2)));
                    break;
                case 6:
                    t.step("note").put(direct(), pick(0, 2));
                    break;
                case 7:
                    if (!how_.asserts) {
                        t.await(direct(), Op::kNotEqual, pick(0, 2));
                        break;
                    }
                    t.step("get").get(b, direct());
                    break;
                case 8:
                    t.choose(b, 2);
                    break;
                default:
                    t.load(a, shared()).jump_unless_zero(a, end);
                    break;
            }
            if (how_.asserts && pick(0, 2) == 0)
                t.compute(b, Op::kAdd, a, b).compute(b, Op::kNotEqual, b, pick(2, 4)).check(b, "b");
        }
        // A loop: under the weak models only where nothing is stored in it, which would fill memory
        if (pick(0, 2) == 0 && !(stored && how_.model == MemoryModel::kArm64))
            t.load(a, shared()).jump_if_zero(a, begin);
        t.bind(end);
        if (how_.asserts) t.serves();
    }

    model::Random random_;
    RandomProgram how_;
    Program program_;
    std::vector<Loc> shared_;
    std::vector<Loc> direct_;
};

class Reduction : public testing::TestWithParam<std::tuple<MemoryModel, bool>> {};

// The same verdict; where nothing is wrong, also the same states at which everybody stands still.
TEST_P(Reduction, GivesTheSameVerdicts) {
    const auto [model, asserts] = GetParam();
    std::uint64_t full_states = 0;
    std::uint64_t reduced_states = 0;
    int wrong = 0;
    const int programs = model == MemoryModel::kSc ? 3000 : 1000;
    for (int seed = 0; seed < programs; ++seed) {
        const RandomProgram how{asserts, model};
        const Interleaving system{Generator{static_cast<std::uint64_t>(seed), how}.make(), model};
        const Outcome full = searched(system, false, !asserts);
        const Outcome reduced = searched(system, true, !asserts);
        ASSERT_EQ(full.violation.has_value(), reduced.violation.has_value()) << "seed " << seed;
        if (full.violation) {
            ++wrong;
            continue;
        }
        ASSERT_EQ(full.ends, reduced.ends) << "seed " << seed;
        ASSERT_LE(reduced.states, full.states) << "seed " << seed;
        full_states += full.states;
        reduced_states += reduced.states;
    }
    RecordProperty("states_reduced_percent", static_cast<int>(100 * reduced_states / full_states));
    EXPECT_LT(reduced_states, full_states);
    EXPECT_GT(wrong, programs / 20);
    EXPECT_LT(wrong, programs * 19 / 20);
}

INSTANTIATE_TEST_SUITE_P(Random, Reduction,
                         testing::Combine(testing::Values(MemoryModel::kSc, MemoryModel::kTso,
                                                          MemoryModel::kArm64),
                                          testing::Bool()),
                         [](const auto& instance) {
                             return std::string{name(std::get<0>(instance.param))} +
                                    (std::get<1>(instance.param) ? "_assertions" : "_standstills");
                         });

}  // namespace
}  // namespace continuo::explore
