// The memory models against litmus tests whose outcomes are known: x86-TSO after Owens, Sarkar and
// Sewell (2009), arm64 after the Arm ARM's and herd's "aarch64.cat". Every outcome is asked for by
// an observer that waits for all threads and fails where it sees it.
#include <gtest/gtest.h>

#include <functional>

#include "continuo/explore/interleaving.h"
#include "continuo/explore/search.h"

namespace continuo::explore {
namespace {

/// A litmus test: threads that leave what they read in r[0] to r[3].
struct Litmus {
    Program program{"litmus"};
    Loc x = program.shared("x");
    Loc y = program.shared("y");
    std::vector<Loc> r{program.direct("r0"), program.direct("r1"), program.direct("r2"),
                       program.direct("r3")};
    Loc done = program.direct("done");
    int threads = 0;

    Thread& thread() { return program.thread("P" + std::to_string(threads++)); }
    /// Loads into r[result], with what stands behind the load.
    void load(Thread& t, int result, Loc from, Order order = Order::kPlain) {
        const Reg v = t.reg("v" + std::to_string(result));
        t.load(v, from, order).put(r[static_cast<std::size_t>(result)], v);
    }
    void end(Thread& t) {
        const Reg n = t.reg("n");
        t.step("done").get(n, done).compute(n, Op::kAdd, n, 1).put(done, n);
    }
    /// Whether r[0], r[1], ... can end as `wanted`.
    bool allows(MemoryModel model, const std::vector<int>& wanted) {
        Thread& observer = program.thread("observer");
        const Reg v = observer.reg("v");
        const Reg all = observer.reg("all");
        observer.await(done, Op::kEqual, threads).move(all, 1);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            observer.get(v, r[i]).compute(v, Op::kEqual, v, wanted[i]);
            observer.compute(all, Op::kAnd, all, v);
        }
        observer.compute(all, Op::kEqual, all, 0).check(all, "not that outcome");
        const Interleaving system{std::move(program.complete()), model};
        SearchOptions full;
        full.reduction = false;
        const auto without = search(system, full);
        const auto with = search(system, {});
        EXPECT_TRUE(without && with);
        EXPECT_EQ(without->violation.has_value(), with->violation.has_value());
        return with->violation.has_value();
    }
};

enum class Between : std::uint8_t { kNothing, kFull, kStore, kLoad, kReleaseAcquire };

void barrier(Thread& t, Between what) {
    if (what == Between::kFull) t.fence(Fence::kFull);
    if (what == Between::kStore) t.fence(Fence::kStore);
    if (what == Between::kLoad) t.fence(Fence::kLoad);
}

/// MP: x := 1; y := 1 || r0 := y; r1 := x; asks for 1, 0.
bool message_passing(MemoryModel model, Between writer, Between reader) {
    Litmus litmus;
    Thread& p0 = litmus.thread();
    p0.store(litmus.x, 1);
    barrier(p0, writer);
    p0.store(litmus.y, 1, writer == Between::kReleaseAcquire ? Order::kRelease : Order::kPlain);
    litmus.end(p0);
    Thread& p1 = litmus.thread();
    litmus.load(p1, 0, litmus.y,
                reader == Between::kReleaseAcquire ? Order::kAcquire : Order::kPlain);
    barrier(p1, reader);
    litmus.load(p1, 1, litmus.x);
    litmus.end(p1);
    return litmus.allows(model, {1, 0});
}

TEST(Litmus, MessagePassing) {
    const auto tso = MemoryModel::kTso;
    const auto arm = MemoryModel::kArm64;
    const auto no = Between::kNothing;
    EXPECT_FALSE(message_passing(MemoryModel::kSc, no, no));
    EXPECT_FALSE(message_passing(tso, no, no));
    EXPECT_TRUE(message_passing(arm, no, no));
    EXPECT_TRUE(message_passing(arm, Between::kStore, no));
    EXPECT_TRUE(message_passing(arm, no, Between::kLoad));
    EXPECT_TRUE(message_passing(arm, Between::kLoad, Between::kLoad));
    EXPECT_TRUE(message_passing(arm, Between::kStore, Between::kStore));
    EXPECT_FALSE(message_passing(arm, Between::kStore, Between::kLoad));
    EXPECT_FALSE(message_passing(arm, Between::kFull, Between::kFull));
    EXPECT_FALSE(message_passing(arm, Between::kReleaseAcquire, Between::kReleaseAcquire));
    EXPECT_TRUE(message_passing(arm, Between::kReleaseAcquire, no));
    EXPECT_TRUE(message_passing(arm, no, Between::kReleaseAcquire));
}

/// SB: x := 1; r0 := y || y := 1; r1 := x; asks for 0, 0.
bool store_buffering(MemoryModel model, Between between) {
    Litmus litmus;
    for (int i = 0; i < 2; ++i) {
        Thread& p = litmus.thread();
        p.store(i == 0 ? litmus.x : litmus.y, 1);
        barrier(p, between);
        litmus.load(p, i, i == 0 ? litmus.y : litmus.x);
        litmus.end(p);
    }
    return litmus.allows(model, {0, 0});
}

TEST(Litmus, StoreBuffering) {
    EXPECT_FALSE(store_buffering(MemoryModel::kSc, Between::kNothing));
    for (const auto model : {MemoryModel::kTso, MemoryModel::kArm64}) {
        EXPECT_TRUE(store_buffering(model, Between::kNothing));
        EXPECT_TRUE(store_buffering(model, Between::kStore));
        EXPECT_TRUE(store_buffering(model, Between::kLoad));
        EXPECT_FALSE(store_buffering(model, Between::kFull));
    }
}

/// LB: r0 := x; y := 1 || r1 := y; x := 1; asks for 1, 1.
TEST(Litmus, LoadBufferingIsNotCovered) {
    for (const auto model : {MemoryModel::kSc, MemoryModel::kTso, MemoryModel::kArm64}) {
        Litmus litmus;
        for (int i = 0; i < 2; ++i) {
            Thread& p = litmus.thread();
            litmus.load(p, i, i == 0 ? litmus.x : litmus.y);
            p.store(i == 0 ? litmus.y : litmus.x, 1);
            litmus.end(p);
        }
        // Armv8 allows it; interleaving.h says that the model does not show it.
        EXPECT_FALSE(litmus.allows(model, {1, 1}));
    }
}

/// IRIW: x := 1 || y := 1 || r0 := x; r1 := y || r2 := y; r3 := x; asks for 1, 0, 1, 0.
bool independent_reads(MemoryModel model, Between between) {
    Litmus litmus;
    Thread& p0 = litmus.thread();
    p0.store(litmus.x, 1);
    litmus.end(p0);
    Thread& p1 = litmus.thread();
    p1.store(litmus.y, 1);
    litmus.end(p1);
    for (int i = 0; i < 2; ++i) {
        Thread& p = litmus.thread();
        const Order order = between == Between::kReleaseAcquire ? Order::kAcquire : Order::kPlain;
        litmus.load(p, 2 * i, i == 0 ? litmus.x : litmus.y, order);
        barrier(p, between);
        litmus.load(p, 2 * i + 1, i == 0 ? litmus.y : litmus.x, order);
        litmus.end(p);
    }
    return litmus.allows(model, {1, 0, 1, 0});
}

TEST(Litmus, IndependentReadsOfIndependentWrites) {
    EXPECT_FALSE(independent_reads(MemoryModel::kSc, Between::kNothing));
    EXPECT_FALSE(independent_reads(MemoryModel::kTso, Between::kNothing));
    EXPECT_TRUE(independent_reads(MemoryModel::kArm64, Between::kNothing));
    // Armv8 is other-multi-copy atomic: ordered loads are enough.
    EXPECT_FALSE(independent_reads(MemoryModel::kArm64, Between::kLoad));
    EXPECT_FALSE(independent_reads(MemoryModel::kArm64, Between::kFull));
    EXPECT_FALSE(independent_reads(MemoryModel::kArm64, Between::kReleaseAcquire));
}

/// CoRR: x := 1 || r0 := x; r1 := x; asks for 1, 0. CoRW and own stores alike: coherence.
TEST(Litmus, CoherenceOfOneLocation) {
    for (const auto model : {MemoryModel::kSc, MemoryModel::kTso, MemoryModel::kArm64}) {
        Litmus litmus;
        Thread& p0 = litmus.thread();
        p0.store(litmus.x, 1).store(litmus.x, 2);
        litmus.end(p0);
        Thread& p1 = litmus.thread();
        litmus.load(p1, 0, litmus.x);
        litmus.load(p1, 1, litmus.x);
        litmus.end(p1);
        EXPECT_FALSE(litmus.allows(model, {2, 1}));
        Litmus own;
        Thread& p = own.thread();
        p.store(own.x, 1);
        own.load(p, 0, own.x);
        own.end(p);
        EXPECT_FALSE(own.allows(model, {0}));
    }
}

/// 2+2W and S are seen through a third thread's coherent reads; WRC: x := 1 || r0 := x; y := 1 ||
/// r1 := y; r2 := x; asks for 1, 1, 0. The store depends on the load, as by a branch.
TEST(Litmus, WriteToReadCausality) {
    const auto allowed = [](MemoryModel model, Between reader) {
        Litmus litmus;
        Thread& p0 = litmus.thread();
        p0.store(litmus.x, 1);
        litmus.end(p0);
        Thread& p1 = litmus.thread();
        litmus.load(p1, 0, litmus.x);
        p1.store(litmus.y, 1);
        litmus.end(p1);
        Thread& p2 = litmus.thread();
        litmus.load(p2, 1, litmus.y);
        barrier(p2, reader);
        litmus.load(p2, 2, litmus.x);
        litmus.end(p2);
        return litmus.allows(model, {1, 1, 0});
    };
    EXPECT_FALSE(allowed(MemoryModel::kTso, Between::kNothing));
    EXPECT_TRUE(allowed(MemoryModel::kArm64, Between::kNothing));
    EXPECT_FALSE(allowed(MemoryModel::kArm64, Between::kLoad));
}

/// Peterson's lock: the flag and the turn, a full barrier, the other's flag and the turn. arm64
/// also needs the flag to be seen before the turn.
bool peterson_excludes(MemoryModel model, bool barrier, bool ordered = true) {
    Program program{"peterson"};
    const std::array<Loc, 2> flag{program.shared("flag0"), program.shared("flag1")};
    const Loc turn = program.shared("turn");
    const Loc inside = program.direct("inside");
    for (std::size_t i = 0; i < 2; ++i) {
        Thread& t = program.thread("P" + std::to_string(i));
        const Reg r = t.reg("r");
        const Label again = t.label();
        const Label enter = t.label();
        t.store(flag[i], 1);
        if (barrier && ordered) t.fence(Fence::kStore);
        t.store(turn, static_cast<int>(1 - i));
        if (barrier) t.fence(Fence::kFull);
        t.bind(again).load(r, flag[1 - i]).jump_if_zero(r, enter);
        t.load(r, turn).compute(r, Op::kEqual, r, static_cast<int>(i)).jump_if_zero(r, again);
        t.bind(enter).step("enter").get(r, inside).compute(r, Op::kAdd, r, 1).put(inside, r);
        t.compute(r, Op::kEqual, r, 1).check(r, "one is inside");
        t.step("leave").put(inside, 0).store(flag[i], 0);
    }
    const Interleaving system{std::move(program.complete()), model};
    SearchOptions options;
    options.progress = true;
    const auto outcome = search(system, options);
    EXPECT_TRUE(outcome);
    return !outcome->violation;
}

TEST(Litmus, PetersonsLockNeedsItsBarrier) {
    EXPECT_TRUE(peterson_excludes(MemoryModel::kSc, false));
    EXPECT_FALSE(peterson_excludes(MemoryModel::kTso, false));
    EXPECT_TRUE(peterson_excludes(MemoryModel::kTso, true));
    EXPECT_TRUE(peterson_excludes(MemoryModel::kTso, true, false));
    EXPECT_FALSE(peterson_excludes(MemoryModel::kArm64, false));
    EXPECT_FALSE(peterson_excludes(MemoryModel::kArm64, true, false));
    EXPECT_TRUE(peterson_excludes(MemoryModel::kArm64, true));
}

}  // namespace
}  // namespace continuo::explore
