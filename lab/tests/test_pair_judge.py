"""The judge of moves between hosts: it finds the error that was made, and a bound that is wrong."""

import copy
import json
import random
import sys
import unittest
from pathlib import Path

_LAB = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_LAB / "crosshost"), str(_LAB)]

import judge  # noqa: E402
import report  # noqa: E402
import scenarios  # noqa: E402
from judge import INSIDE, OUTSIDE, UNDECIDED, Interval  # noqa: E402

_KHZ = 2_500_000
# 2 ticks a ns
_PAGE = {"tsc_timestamp": 1_000, "system_time": 5_000, "mul": 0x80000000, "shift": 0}


def made_move(
    *, source="a", advances=True, difference=7_000, width=100, error=0, kvm_error=0, gap_error=0,
    stopped=10**12, recorded=4 * 10**9, away=250_000_000, bound=50_000, step="s", number=0,
):  # fmt: skip
    """A move of which the truth is known: b's counter is `difference` ahead of a's, the guest was
    away for `away` ticks, and then `error` ticks (`kvm_error`, `gap_error` ns) off."""
    ahead = difference if source == "a" else -difference
    resume_at = (stopped + away + ahead) % 2**64
    at_resume = recorded + (away if advances else 0) + error
    kvmclock = judge.page_ns(_PAGE, recorded + (away if advances else 0)) + kvm_error
    page = {**_PAGE, "tsc_timestamp": at_resume % 2**64, "system_time": kvmclock}
    vcpus = [
        {
            "tsc_offset": (at_resume - resume_at) % 2**64,
            "page": page,
            "before": {"tsc": (recorded - 10) % 2**64, "kvmclock_ns": 0},
            "after": {"tsc": (at_resume + 8) % 2**64, "kvmclock_ns": kvmclock + 4},
            "backward_steps": 0,
        }
        for _ in range(2)
    ]

    def clock(name, vcpu, size):
        return {"clock": name, "vcpu": vcpu, "bound": {"total": size}}

    bounds = [bound, bound, bound] if advances else [0, 0, 2]
    certificate = {
        "policy": "advance" if advances else "freeze",
        "holds": True,
        "elapsed_by": "tai",
        "rate": "equal",
        "notes": [],
        "resume_at": resume_at,
        "gap": {"ns": away * 10**6 // _KHZ + gap_error, "bound_ns": 20_000},
        "clocks": [clock("tsc", 0, bounds[0]), clock("tsc", 1, bounds[1]),
                   clock("kvmclock", None, bounds[2])],
    }  # fmt: skip
    record = {
        "anchor": {"counter": stopped % 2**64},
        "vcpus": [{"counter": recorded % 2**64}] * 2,
        "kvmclock": _PAGE,
    }
    other = "b" if source == "a" else "a"
    left = {"event": "left", "host": source, "move": number, "step": step, "outcome": "moved",
            "record": record, "migration": {"downtime_ns": 5}, "runs_on": True}  # fmt: skip
    arrived = {"event": "arrived", "host": other, "move": number, "step": step, "outcome": "runs",
               "certificate": certificate, "vcpus": vcpus}  # fmt: skip
    around = Interval(difference - width // 2, difference + width // 2)
    return judge.Move(number, step, source, left, arrived, around)


def judged(move):
    return {each.clock: each for each in judge.judge(move, _KHZ)}


class TheErrorThatWasMade(unittest.TestCase):
    def check(self, **made):
        found = judged(made_move(**made))
        width = made.get("width", 100)
        for clock in ("tsc 0", "tsc 1"):
            error = found[clock].error
            self.assertLessEqual(error.least, made.get("error", 0), made)
            self.assertGreaterEqual(error.most, made.get("error", 0), made)
            self.assertLessEqual(error.most - error.least, width, made)
        for clock, key, slack in (("kvmclock", "kvm_error", width // 2 + 2),
                                  ("gap", "gap_error", width + 4)):  # fmt: skip
            error = found[clock].error
            self.assertLessEqual(error.least, made.get(key, 0), (clock, made))
            self.assertGreaterEqual(error.most, made.get(key, 0), (clock, made))
            self.assertLessEqual(error.most - error.least, slack, (clock, made))

    def test_either_way_and_under_either_policy(self):
        for source in ("a", "b"):
            self.check(source=source)
            self.check(source=source, error=12_345, kvm_error=-987, gap_error=-15_000)
            self.check(source=source, difference=-(10**15), error=-1)
            self.check(source=source, advances=False, width=0, error=0, kvm_error=1)

    def test_counters_that_wrap(self):
        for stopped in (2**64 - 1, 2**64 - 10**8, 2**63 - 5, 0):
            for recorded in (2**64 - 10, 2**63 - 1):
                self.check(stopped=stopped, recorded=recorded, source="b")

    def test_anything(self):
        dice = random.Random(1)
        for _ in range(2_000):
            advances = dice.random() < 0.7
            self.check(
                source=dice.choice("ab"), advances=advances,
                difference=dice.randrange(-(2**62), 2**62),
                width=2 * dice.randrange(2_000) if advances else 0,
                error=dice.randrange(-(10**12), 10**12),
                kvm_error=dice.randrange(-(10**12), 10**12),
                gap_error=dice.randrange(-(10**12), 10**12), stopped=dice.randrange(2**64),
                recorded=dice.randrange(2**64), away=dice.randrange(10**12),
            )  # fmt: skip


class Verdicts(unittest.TestCase):
    def test_the_bound_itself_is_inside(self):
        for error, bound, wanted in (
            (Interval(-5, 5), 5, INSIDE), (Interval(-5, 6), 5, UNDECIDED),
            (Interval(6, 9), 5, OUTSIDE), (Interval(-9, -6), 5, OUTSIDE),
            (Interval(-9, -5), 5, UNDECIDED), (Interval(0, 0), 0, INSIDE),
            (Interval(1, 1), 0, OUTSIDE),
        ):  # fmt: skip
            self.assertEqual(judge.verdict(error, bound), wanted, (error, bound))

    def test_a_frozen_counter_may_not_be_off_by_one_tick(self):
        self.assertEqual(judged(made_move(advances=False))["tsc 0"].verdict(), INSIDE)
        self.assertEqual(judged(made_move(advances=False, error=1))["tsc 0"].verdict(), OUTSIDE)

    def test_a_bound_that_is_too_small_is_caught(self):
        for error in (60_000, -60_000):
            found = judged(made_move(error=error, kvm_error=error, gap_error=error))
            self.assertEqual({each.verdict() for each in found.values()}, {OUTSIDE})

    def test_what_the_guest_read_is_held_against_its_page(self):
        move = made_move()
        self.assertEqual(judge.odd_readings(move), [])
        for change in (
            {"after": {"tsc": 10**15, "kvmclock_ns": 1}},
            {"before": {"tsc": 10**15, "kvmclock_ns": 1}},
            {"backward_steps": 1},
        ):
            bad = copy.deepcopy(move)
            bad.arrived["vcpus"][1].update(change)
            self.assertEqual(len(judge.odd_readings(bad)), 1, change)


def events_of(move, before=(0, 0), after=(0, 0)):
    """(lines of a, lines of b), as the hosts would write them."""

    def pairing(at, limits):
        return {"event": "pairing", "host": "b", "a": at, "difference_least": limits[0],
                "difference_most": limits[1]}  # fmt: skip

    hosts = [{"event": "host", "host": name, "kernel": "k", "tsc_khz": _KHZ} for name in "ab"]
    own = {move.left["host"]: move.left, move.arrived["host"]: move.arrived}
    end = {"event": "end", "host": "a", "backward_steps": 0}
    of_b = [hosts[1], pairing(10**9, before), own["b"], pairing(2 * 10**9, after)]
    return [hosts[0], own["a"], end], of_b


class Runs(unittest.TestCase):
    def test_a_move_has_the_hull_of_the_pairings_around_it(self):
        run = judge.read_run(*events_of(made_move(), (6_950, 7_050), (6_800, 6_900)))
        self.assertEqual(run.moves[0].difference, Interval(6_800, 7_050))
        self.assertLess(run.common_difference.most, run.common_difference.least)
        self.assertAlmostEqual(run.rate_ppb, 250)

    def test_what_does_not_fit_together_is_not_judged(self):
        for spoil in (
            lambda a, b: a.pop(0), lambda a, b: a.pop(1), lambda a, b: a.pop(2),
            lambda a, b: b.pop(0), lambda a, b: b.pop(1), lambda a, b: b.pop(2),
            lambda a, b: b.pop(3),
        ):  # fmt: skip
            a, b = events_of(made_move())
            spoil(a, b)
            with self.assertRaises(judge.Unusable):
                judge.read_run(a, b)


class Reports(unittest.TestCase):
    """The whole way from what the hosts wrote to complaints."""

    def complaints(self, move, **scenario):
        boot = scenarios.Boot("boot", (scenarios.Scenario("s", 1, **scenario),))
        at = (move.difference.least, move.difference.most)
        a, b = events_of(move, at, at)
        found = {"exit_code": 0, "hosts": {
            name: {"stdout": "".join(json.dumps(line) + "\n" for line in lines)}
            for name, lines in (("a", a), ("b", b))}}  # fmt: skip
        made = report.report_on(boot, found, 1.0)
        report.text_of(made)  # must not fail on it
        json.dumps(made.as_json())
        return made.complaints

    def test_a_good_move_has_none(self):
        self.assertEqual(self.complaints(made_move()), [])

    def test_a_planted_wrong_bound_is_caught(self):
        found = self.complaints(made_move(error=60_000))
        self.assertEqual(len(found), 2)
        self.assertIn("outside", found[0])

    def test_a_planted_error_that_is_not_seen_is_a_complaint(self):
        lie = {"expect": scenarios.CAUGHT}
        big = made_move(error=60_000, kvm_error=60_000, gap_error=60_000)
        self.assertEqual(self.complaints(big, **lie), [])
        self.assertEqual(len(self.complaints(made_move(error=60_000), **lie)), 2)

    def test_a_pairing_that_is_too_wide_proves_nothing(self):
        self.assertIn("undecided", self.complaints(made_move(width=10**6))[0])

    def test_other_than_expected(self):
        self.assertIn("elapsed_by is tai", self.complaints(made_move(), elapsed_by="exchange")[0])
        self.assertIn("rate is equal", self.complaints(made_move(), rate_on_b="tolerated")[0])
        self.assertEqual(self.complaints(made_move(source="b"), rate_on_b="tolerated"), [])
        self.assertIn("STA_UNSYNC", self.complaints(made_move(), told=("STA_UNSYNC",))[0])
        self.assertIn("below", self.complaints(made_move(), bound_at_least_ns=10**9)[0])
        self.assertIn("refused", self.complaints(made_move(), expect=scenarios.REFUSED)[0])

    def test_a_refusal(self):
        move = made_move()
        move.left.update(outcome="kept")
        error = {"code": "refused", "what": "it cannot scale"}
        move.arrived.update(outcome="discarded", error=error)
        refused = {"expect": scenarios.REFUSED, "told": ("cannot scale",)}
        self.assertEqual(self.complaints(move, **refused), [])
        self.assertIn("it was refused", self.complaints(move)[0])
        move.left["runs_on"] = False
        self.assertIn("does not go on", self.complaints(move, **refused)[0])
        move.left["runs_on"] = True
        error["code"] = "peer"
        self.assertIn("of kind peer", self.complaints(move, **refused)[0])

    def test_the_full_part_moves_at_least_50_times_and_the_fast_one_about_10(self):
        def moves(boots):
            return sum(scenario.moves for boot in boots for scenario in boot.scenarios
                       if scenario.expect == scenarios.MOVED)  # fmt: skip

        self.assertGreaterEqual(moves(scenarios.FULL), 50)
        self.assertTrue(8 <= moves(scenarios.FAST) <= 12)
        for boot in (*scenarios.FULL, *scenarios.FAST):
            names = [scenario.name for scenario in boot.scenarios]
            self.assertEqual(len(names), len(set(names)))


if __name__ == "__main__":
    unittest.main()
