// Who may run a VM that is being moved (docs/formats/migration.md, "Never two, and one as long as a
// process that holds the whole VM lives"): source and destination from COMPLETE to DONE, while
// either may die and the connection may be lost between any two steps. A message that was sent
// before the connection was lost may still arrive, or not.
#include <fmt/format.h>

#include "continuo/explore/interleaving.h"
#include "continuo/explore/protocol.h"

namespace continuo::explore {

namespace {

struct Handover {
    bool destination_wants_proof = true;  ///< of the source's death, before it takes over
    bool source_asks = true;              ///< after COMMIT, before it runs again
    bool discards_for_good = true;        ///< a destination that said "discarded" ignores COMMIT
    bool keeps_until_running = true;      ///< false: the source lets its VM go at COMMIT
    bool source_may_wait_only = true;     ///< false: it resumes when RUNNING is late
};

// What the source finds of the destination, and the destination of itself.
constexpr int kReceiving = 0;
constexpr int kReady = 1;
constexpr int kStarting = 2;
constexpr int kRuns = 3;
constexpr int kDiscarded = 4;

struct Place {
    Loc connected;
    Loc complete;
    Loc ready;
    Loc commit;
    Loc running;
    Loc fail_to_source;
    Loc fail_to_destination;
    Loc status;  ///< the destination's, for whoever asks it on a new connection
    Loc source_alive;
    Loc destination_alive;
    Loc source_runs;
    Loc destination_runs;
    Loc source_has;       ///< the VM, whole
    Loc destination_has;  ///< likewise
    Loc undecided;        ///< the source found nobody to ask in its time: an operator has to
    Loc killed;           ///< a process died that had the VM whole
    Loc ended;            ///< sides that will do nothing more

    explicit Place(Program& program)
        : connected{program.direct("connected", 1)},
          complete{program.direct("COMPLETE")},
          ready{program.direct("READY")},
          commit{program.direct("COMMIT")},
          running{program.direct("RUNNING")},
          fail_to_source{program.direct("FAIL_to_source")},
          fail_to_destination{program.direct("FAIL_to_destination")},
          status{program.direct("status", kReceiving)},
          source_alive{program.direct("source_alive", 1)},
          destination_alive{program.direct("destination_alive", 1)},
          source_runs{program.direct("source_runs")},
          destination_runs{program.direct("destination_runs")},
          source_has{program.direct("source_has", 1)},
          destination_has{program.direct("destination_has")},
          undecided{program.direct("undecided")},
          killed{program.direct("killed")},
          ended{program.direct("ended")} {}
};

/// One side, with what both sides do in the same way.
class Side {
  public:
    Side(Program& program, const Place& place, const char* name, bool source)
        : thread{program.thread(name)},
          at{place},
          dies{thread.label()},
          alive{source ? place.source_alive : place.destination_alive},
          other_alive{source ? place.destination_alive : place.source_alive},
          runs{source ? place.source_runs : place.destination_runs},
          other_runs{source ? place.destination_runs : place.source_runs},
          has{source ? place.source_has : place.destination_has},
          r{thread.reg("r")} {}

    /// The process may be killed here.
    void may_die() { thread.choose(r, 2).jump_unless_zero(r, dies); }
    /// A message that is sent into a lost connection is lost.
    void send(Loc message, const char* name) {
        const Label lost = thread.label();
        thread.step(fmt::format("send {}", name)).get(r, at.connected).jump_if_zero(r, lost);
        thread.put(message, 1).bind(lost);
    }
    void run(const char* why) {
        thread.step(fmt::format("run the VM: {}", why)).get(r, other_runs);
        thread.compute(r, Op::kEqual, r, 0).check(r, "two VMs never run");
        thread.put(runs, 1);
    }
    void end() {
        thread.step("nothing more to do").get(r, at.ended).compute(r, Op::kAdd, r, 1);
        thread.put(at.ended, r).halt();
    }
    void add_death() {
        const Label had_none = thread.label();
        thread.bind(dies).step("the process dies").get(r, has).jump_if_zero(r, had_none);
        thread.put(at.killed, 1).bind(had_none).put(alive, 0).put(runs, 0).put(has, 0);
        thread.put(at.connected, 0).get(r, at.ended).compute(r, Op::kAdd, r, 1);
        thread.put(at.ended, r).halt();
    }

    Thread& thread;
    const Place& at;
    Label dies;
    Loc alive, other_alive, runs, other_runs, has;
    Reg r;
};

/// Jumps to `target` where the location is not 0; one step.
void when(Side& side, Loc loc, const char* what, Label target) {
    side.thread.step(what).get(side.r, loc).jump_unless_zero(side.r, target);
}

void when_not(Side& side, Loc loc, const char* what, Label target) {
    side.thread.step(what).get(side.r, loc).jump_if_zero(side.r, target);
}

// After COMMIT the source runs again only where the destination is dead, or said that it will not.
void ask(Side& source, Label resume, Label destroy) {
    Thread& t = source.thread;
    const Label again = t.label();
    const Label asks = t.label();
    t.bind(again);
    when_not(source, source.other_alive, "look whether the destination lives", resume);
    t.choose(source.r, 2).jump_if_zero(source.r, asks);
    t.step("time is up: undecided").put(source.at.undecided, 1);
    source.end();
    t.bind(asks).step("ask for the status").get(source.r, source.at.status);
    const Reg status = source.r;
    const Label not_running = t.label();
    const Reg found = t.reg("found");
    t.compute(found, Op::kEqual, status, kRuns).jump_if_zero(found, not_running).jump(destroy);
    t.bind(not_running).compute(found, Op::kEqual, status, kDiscarded);
    t.jump_if_zero(found, again).jump(resume);
}

void add_source(Program& program, const Place& place, const Handover& how) {
    Side source{program, place, "source", true};
    Thread& t = source.thread;
    const Label resume = t.label();
    const Label destroy = t.label();
    const Label commit = t.label();
    const Label wait_ready = t.label();
    const Label wait_running = t.label();
    const Label lost = t.label();
    source.may_die();
    source.send(place.complete, "COMPLETE");
    t.bind(wait_ready);
    source.may_die();
    when(source, place.ready, "look for READY", commit);
    when(source, place.fail_to_source, "look for FAIL", resume);
    when_not(source, place.connected, "look at the connection", resume);
    t.choose(source.r, 2).jump_if_zero(source.r, wait_ready);  // or the time is up
    source.send(place.fail_to_destination, "FAIL");
    t.jump(resume);

    t.bind(commit);
    source.may_die();
    source.send(place.commit, "COMMIT");
    if (!how.keeps_until_running) t.jump(destroy);
    t.bind(wait_running);
    source.may_die();
    when(source, place.running, "look for RUNNING", destroy);
    when(source, place.fail_to_source, "look for FAIL", resume);
    when_not(source, place.connected, "look at the connection", lost);
    if (!how.source_may_wait_only) t.choose(source.r, 2).jump_unless_zero(source.r, resume);
    t.jump(wait_running);

    t.bind(lost);
    if (!how.source_asks) t.jump(resume);
    ask(source, resume, destroy);

    t.bind(resume);
    source.may_die();
    source.run("it was not handed over");
    source.end();
    t.bind(destroy);
    source.may_die();
    t.step("destroy the VM").put(place.source_has, 0);
    source.end();
    source.add_death();
}

void add_destination(Program& program, const Place& place, const Handover& how) {
    Side destination{program, place, "destination", false};
    Thread& t = destination.thread;
    const Label discard = t.label();
    const Label whole = t.label();
    const Label start = t.label();
    const Label lost = t.label();
    const Label take_over = t.label();
    const Label wait_complete = t.label();
    const Label wait_commit = t.label();
    t.bind(wait_complete);
    destination.may_die();
    when(destination, place.complete, "look for COMPLETE", whole);
    when(destination, place.fail_to_destination, "look for FAIL", discard);
    when_not(destination, place.connected, "look at the connection", discard);
    t.jump(wait_complete);

    t.bind(whole).step("the VM is whole").put(place.destination_has, 1).put(place.status, kReady);
    destination.may_die();
    destination.send(place.ready, "READY");
    t.bind(wait_commit);
    destination.may_die();
    when(destination, place.commit, "look for COMMIT", start);
    when(destination, place.fail_to_destination, "look for FAIL", discard);
    when_not(destination, place.connected, "look at the connection", lost);
    t.choose(destination.r, 2).jump_if_zero(destination.r, wait_commit);  // or the time is up
    t.jump(discard);

    // The end of the stream: COMMIT may have come before it.
    t.bind(lost);
    when(destination, place.commit, "look for COMMIT once more", start);
    if (how.destination_wants_proof)
        when_not(destination, place.source_alive, "look whether the source is dead", take_over);
    else
        t.jump(take_over);

    t.bind(discard);
    destination.may_die();
    t.step("discard the VM, and say so").put(place.status, kDiscarded);
    if (how.discards_for_good) t.put(place.destination_has, 0);
    destination.send(place.fail_to_source, "FAIL");
    if (!how.discards_for_good)
        when(destination, place.commit, "look for COMMIT all the same", start);
    destination.end();

    t.bind(start).step("start").put(place.status, kStarting);
    destination.may_die();
    t.bind(take_over);
    destination.run("it was handed over, or its source is dead");
    t.put(place.status, kRuns);
    destination.send(place.running, "RUNNING");
    destination.may_die();
    destination.end();
    destination.add_death();
}

void add_network(Program& program, const Place& place) {
    Thread& network = program.thread("network");
    const Reg keep = network.reg("arrives");
    network.step("the connection is lost").put(place.connected, 0);
    for (const Loc message : {place.complete, place.ready, place.commit, place.running,
                              place.fail_to_source, place.fail_to_destination}) {
        const Label arrives = network.label();
        network.choose(keep, 2).jump_unless_zero(keep, arrives).put(message, 0).bind(arrives);
    }
    network.serves();
}

// When both sides have ended: one VM runs, unless a process that had it whole was killed and no
// living one has it, or the source could ask nobody and says so.
void add_judge(Program& program, const Place& place) {
    Thread& judge = program.thread("judge");
    const Reg runs = judge.reg("runs");
    const Reg r = judge.reg("r");
    const Label fine = judge.label();
    judge.await(place.ended, Op::kEqual, 2);
    judge.get(runs, place.source_runs).get(r, place.destination_runs);
    judge.compute(runs, Op::kAdd, runs, r).jump_unless_zero(runs, fine);
    judge.get(r, place.undecided).jump_unless_zero(r, fine);
    judge.get(runs, place.source_has).get(r, place.destination_has);
    judge.compute(runs, Op::kAdd, runs, r).compute(runs, Op::kEqual, runs, 0);
    judge.get(r, place.killed).compute(runs, Op::kAnd, runs, r);
    judge.check(runs, "a VM runs as long as a process that holds it whole lives");
    judge.bind(fine);
}

std::unique_ptr<System> make(const Handover& how) {
    Program program{"handover"};
    const Place place{program};
    add_source(program, place, how);
    add_destination(program, place, how);
    add_network(program, place);
    add_judge(program, place);
    return std::make_unique<Interleaving>(std::move(program.complete()), MemoryModel::kSc);
}

Variant variant(std::string name, std::string summary, const Handover& how, bool wrong) {
    return {std::move(name), std::move(summary),
            wrong ? std::optional{Violation::Kind::kAssertion} : std::nullopt, !wrong,
            [how] { return make(how); }};
}

}  // namespace

Protocol migration_handover() {
    Protocol out{
        "migration-handover", "READY, COMMIT, RUNNING, and who runs when somebody dies", {}};
    out.variants = {
        variant("rules", "either side may die and the connection be lost at any step", Handover{},
                false),
        variant("takes-over-unproven", "the destination takes a lost connection for a death",
                Handover{.destination_wants_proof = false}, true),
        variant("source-does-not-ask", "the source resumes where the connection is lost",
                Handover{.source_asks = false}, true),
        variant("takes-back-discarded", "the destination says discarded and obeys COMMIT after it",
                Handover{.discards_for_good = false}, true),
        variant("destroys-at-commit", "the source lets its VM go when it sends COMMIT",
                Handover{.keeps_until_running = false}, true),
        variant("source-is-impatient", "it resumes where RUNNING is late",
                Handover{.source_may_wait_only = false}, true),
    };
    return out;
}

}  // namespace continuo::explore
