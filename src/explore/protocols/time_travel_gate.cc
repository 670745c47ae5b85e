// The time-travel gate (S1.3), as docs/formats/time-travel.md has it: a host that raises notices
// while no vCPU runs, an agent that repairs REALTIME and answers, and readers of REALTIME in the
// kernel and through the vDSO that wait while a notice stands.
#include <fmt/format.h>

#include "continuo/explore/interleaving.h"
#include "continuo/explore/protocol.h"

namespace continuo::explore {

namespace {

struct Gate {
    int migrations = 2;
    bool agent_may_die = false;        ///< once, between any two steps; another one starts
    bool agent_may_stay_dead = false;  ///< and none starts
    bool notes_intent = true;          ///< what the agent is about to do outlives it
    bool host_releases = true;         ///< surely after the last notice, perhaps after the others
    bool overtakes_by_two = true;      ///< false: one is added to the sequence, odd or even
    bool sums_deltas = true;           ///< false: the last delta takes the place of the others
    bool answers_by_exchange = true;   ///< false: the sequence is raised by one, whatever it is
    bool repairs_first = true;         ///< false: the answer comes before the repair
    bool vdso_in_time = true;          ///< false: the vDSO's copy is written after the answer
    bool looks_again = true;           ///< the reader looks at the sequence after reading
    bool release_answers = false;      ///< the host's time-out makes the sequence even
};

struct Notice {
    Loc sequence;
    Loc travelled;  ///< sum of all deltas
    Loc released;   ///< the sequence for which readers do not wait
    Loc accounted;
    Loc intent;
    Loc intent_offset;
    Loc realtime;  ///< what the kernel's REALTIME holds of the deltas
    Loc vdso;      ///< the same in the vDSO's copy
    Loc interrupt;
    Loc truth;   ///< a ghost: what REALTIME should hold
    Loc deaths;  ///< a ghost

    explicit Notice(Program& program)
        : sequence{program.shared("sequence")},
          travelled{program.shared("time_travelled")},
          released{program.shared("released")},
          accounted{program.shared("accounted")},
          intent{program.shared("intent")},
          intent_offset{program.shared("intent_offset")},
          realtime{program.shared("realtime")},
          vdso{program.shared("vdso_realtime")},
          interrupt{program.direct("interrupt")},
          truth{program.direct("truth")},
          deaths{program.direct("deaths")} {}
};

// The vCPUs are stopped: one step of everybody else's. The k-th migration takes 2^k, so that no two
// sums are alike.
void migrate(Thread& host, const Notice& page, const Gate& how, Reg own, Reg a, int number) {
    host.step(fmt::format("migration {}: all vCPUs stopped", number + 1));
    host.get(a, page.truth).compute(a, Op::kAdd, a, 1 << number).put(page.truth, a);
    host.get(a, page.travelled);
    if (!how.sums_deltas) host.get(a, page.accounted);
    host.compute(a, Op::kAdd, a, 1 << number).put(page.travelled, a);
    host.get(own, page.sequence).compute(a, Op::kAnd, own, 1);
    if (!how.overtakes_by_two) host.move(a, 0);
    host.compute(own, Op::kAdd, own, 1).compute(own, Op::kAdd, own, a);
    host.put(page.released, 0).put(page.sequence, own).put(page.interrupt, 1);
}

void add_host(Program& program, const Notice& page, const Gate& how) {
    Thread& host = program.thread("host");
    const Reg own = host.reg("own");
    const Reg a = host.reg("a");
    for (int number = 0; number < how.migrations; ++number) {
        migrate(host, page, how, own, a, number);
        if (!how.host_releases) continue;
        const Label no_release = host.label();
        if (number + 1 < how.migrations) host.choose(a, 2).jump_if_zero(a, no_release);
        host.load(a, page.sequence).compute(a, Op::kEqual, a, own).jump_if_zero(a, no_release);
        if (how.release_answers)
            host.compute(own, Op::kAdd, own, 1).store(page.sequence, own);
        else
            host.store(page.released, own);
        host.bind(no_release);
    }
}

/// Lets the agent die here, at most once in all.
void may_die(Thread& agent, const Notice& page, const Gate& how, Reg r, Label restart) {
    if (!how.agent_may_die && !how.agent_may_stay_dead) return;
    const Label lives = agent.label();
    agent.choose(r, 2).jump_if_zero(r, lives);
    agent.get(r, page.deaths).jump_unless_zero(r, lives);
    agent.put(page.deaths, 1).jump(restart).bind(lives);
}

void repair(Thread& agent, const Notice& page, Reg delta, Reg r) {
    agent.step("REALTIME += delta").get(r, page.realtime);
    agent.compute(r, Op::kAdd, r, delta).put(page.realtime, r);
}

void add_agent(Program& program, const Notice& page, const Gate& how) {
    Thread& agent = program.thread("agent");
    const Reg sequence = agent.reg("sequence");
    const Reg total = agent.reg("total");
    const Reg delta = agent.reg("delta");
    const Reg r = agent.reg("r");
    const Label start = agent.label();
    const Label sleep = agent.label();
    const Label look = agent.label();
    const Label dead = agent.label();
    const Label after_death = how.agent_may_stay_dead ? dead : start;
    // Whoever starts finds out whether a step of REALTIME that was intended has been made.
    agent.bind(start).load(r, page.intent);
    agent.load(total, page.accounted).compute(total, Op::kEqual, total, r);
    agent.jump_unless_zero(total, look);
    agent.load(total, page.intent_offset);
    agent.load(delta, page.realtime).compute(delta, Op::kEqual, delta, total);
    agent.jump_unless_zero(delta, look);
    agent.store(page.accounted, r).jump(look);

    agent.bind(sleep).await(page.interrupt, Op::kEqual, 1).put(page.interrupt, 0);
    agent.bind(look).load(sequence, page.sequence).compute(r, Op::kAnd, sequence, 1);
    agent.jump_if_zero(r, sleep);
    agent.load(total, page.travelled);
    agent.load(delta, page.accounted).compute(delta, Op::kSubtract, total, delta);
    if (!how.repairs_first) {
        agent.compute(r, Op::kAdd, sequence, 1);
        agent.cas(r, page.sequence, sequence, r);
    }
    if (how.notes_intent) {
        agent.load(r, page.realtime).store(page.intent_offset, r);
        may_die(agent, page, how, r, after_death);
        agent.store(page.intent, total);
    }
    may_die(agent, page, how, r, after_death);
    repair(agent, page, delta, r);
    if (how.vdso_in_time) agent.store(page.vdso, r);
    may_die(agent, page, how, r, after_death);
    agent.store(page.accounted, total);
    may_die(agent, page, how, r, after_death);
    agent.compute(total, Op::kAdd, sequence, 1);
    if (how.answers_by_exchange)
        agent.cas(r, page.sequence, sequence, total);
    else
        agent.step("sequence += 1")
            .get(r, page.sequence)
            .compute(r, Op::kAdd, r, 1)
            .put(page.sequence, r);
    if (!how.vdso_in_time) agent.load(r, page.realtime).store(page.vdso, r);
    agent.jump(look).bind(dead).halt();
    agent.serves();
}

/// A value that is read under an even sequence is what REALTIME should be at the moment of the last
/// look; what is read under a released one says so, and nothing is claimed of it.
void add_reader(Program& program, const Notice& page, const Gate& how, const char* name,
                Loc clock) {
    Thread& reader = program.thread(name);
    const Reg gate = reader.reg("gate");
    const Reg value = reader.reg("value");
    const Reg r = reader.reg("r");
    const Label again = reader.label();
    const Label open = reader.label();
    const Label released = reader.label();
    reader.bind(again).load(gate, page.sequence).compute(r, Op::kAnd, gate, 1);
    reader.jump_if_zero(r, open);
    reader.load(r, page.released).compute(r, Op::kEqual, r, gate).jump_if_zero(r, again);
    reader.bind(open).load(value, clock);
    if (how.looks_again) {
        reader.load(r, page.sequence).compute(r, Op::kEqual, r, gate).jump_if_zero(r, again);
    }
    reader.compute(r, Op::kAnd, gate, 1).jump_unless_zero(r, released);
    reader.get(r, page.truth).compute(r, Op::kEqual, r, value);
    reader.check(r, "no stale REALTIME is returned while a notice stands, or after it");
    reader.bind(released);
}

std::unique_ptr<System> make(const Gate& how) {
    Program program{"time-travel-gate"};
    const Notice page{program};
    add_host(program, page, how);
    add_agent(program, page, how);
    add_reader(program, page, how, "kernel", page.realtime);
    add_reader(program, page, how, "vdso", page.vdso);
    return std::make_unique<Interleaving>(std::move(program.complete()), MemoryModel::kSc);
}

Variant variant(std::string name, std::string summary, const Gate& how,
                std::optional<Violation::Kind> wrong = {}) {
    const bool progress = !wrong || wrong == Violation::Kind::kNoProgress;
    return {std::move(name), std::move(summary), wrong, progress, [how] { return make(how); }};
}

// -- the same page under weak memory: one notice stands, and is answered while readers look --

struct WeakGate {
    MemoryModel model = MemoryModel::kArm64;
    bool acquires = true;   ///< by the reader: the first look, and the fence before the second
    bool releases = true;   ///< by the agent: the store of what it accounted for
    bool exchanges = true;  ///< false: the agent answers by a plain store
};

std::unique_ptr<System> make(const WeakGate& how) {
    Program program{"time-travel-gate"};
    const Loc sequence = program.shared("sequence", 1);
    const Loc accounted = program.shared("accounted");
    const Loc realtime = program.shared("realtime");
    Thread& agent = program.thread("agent");
    const Reg done = agent.reg("done");
    agent.store(realtime, 1);
    agent.store(accounted, 1, how.releases ? Order::kRelease : Order::kPlain);
    if (how.exchanges)
        agent.cas(done, sequence, 1, 2);
    else
        agent.store(sequence, 2);
    for (int i = 0; i < 2; ++i) {
        Thread& reader = program.thread(fmt::format("reader{}", i));
        const Reg gate = reader.reg("gate");
        const Reg value = reader.reg("value");
        const Reg r = reader.reg("r");
        const Label again = reader.label();
        reader.bind(again).load(gate, sequence, how.acquires ? Order::kAcquire : Order::kPlain);
        reader.compute(r, Op::kAnd, gate, 1).jump_unless_zero(r, again);
        reader.load(value, realtime);
        if (how.acquires) reader.fence(Fence::kLoad);
        reader.load(r, sequence).compute(r, Op::kEqual, r, gate).jump_if_zero(r, again);
        reader.check(value, "whoever sees the answer sees the repair");
    }
    return std::make_unique<Interleaving>(std::move(program.complete()), how.model);
}

Variant weak_variant(std::string name, std::string summary, const WeakGate& how, bool wrong) {
    return {std::move(name), std::move(summary),
            wrong ? std::optional{Violation::Kind::kAssertion} : std::nullopt, !wrong,
            [how] { return make(how); }};
}

}  // namespace

Protocol time_travel_gate() {
    constexpr auto assertion = Violation::Kind::kAssertion;
    constexpr auto stuck = Violation::Kind::kNoProgress;
    Protocol out{"time-travel-gate",
                 "the host's notice, the agent's answer, and readers that wait (S1.3)",
                 {}};
    out.variants = {
        variant("two-migrations", "the second one at any moment, a release at any moment", Gate{}),
        variant("three-migrations", "the same with three", Gate{.migrations = 3}),
        variant("agent-dies", "the agent dies between any two steps, and another one starts",
                Gate{.agent_may_die = true}),
        variant("agent-stays-dead", "it dies and none starts: the host releases the readers",
                Gate{.agent_may_stay_dead = true}),
        weak_variant("arm64", "one answer against 2 readers, arm64", WeakGate{}, false),
        weak_variant("x86", "the same, x86-TSO", WeakGate{.model = MemoryModel::kTso}, false),
        variant("plain-increment", "the agent adds one to the sequence, whatever it is",
                Gate{.answers_by_exchange = false}, assertion),
        variant("delta-overwritten", "a second delta takes the place of the first",
                Gate{.sums_deltas = false}, assertion),
        variant("odd-becomes-even", "the host adds one to a sequence that is odd",
                Gate{.overtakes_by_two = false}, assertion),
        variant("answers-before-repair", "the sequence is even before REALTIME is right",
                Gate{.repairs_first = false}, assertion),
        variant("vdso-too-late", "the vDSO's copy is written after the answer",
                Gate{.vdso_in_time = false}, assertion),
        variant("looks-before-only", "the reader does not look at the sequence again",
                Gate{.looks_again = false}, assertion),
        variant("agent-dies-without-intent", "the next agent adds the same delta again",
                Gate{.agent_may_die = true, .notes_intent = false}, assertion),
        variant("release-answers", "the host's time-out makes the sequence even",
                Gate{.release_answers = true}, assertion),
        variant("nobody-releases", "the agent is dead, and readers wait for ever",
                Gate{.agent_may_stay_dead = true, .host_releases = false}, stuck),
        weak_variant("arm64-no-acquire", "the reader's loads are plain",
                     WeakGate{.acquires = false}, true),
        weak_variant("arm64-plain-answer", "the agent answers by a plain store",
                     WeakGate{.releases = false, .exchanges = false}, true),
    };
    return out;
}

}  // namespace continuo::explore
