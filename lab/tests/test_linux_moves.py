"""What lab/crosshost/linux-moves makes of what two hosts wrote: no host is needed here."""

import copy
import json
import sys
import unittest
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "lab" / "crosshost"), str(_ROOT / "lab"), str(_ROOT / "tests" / "cli")]

import linux_moves  # noqa: E402  (the path above must come first)
from judge import Unusable  # noqa: E402

_KHZ = 2_000_000
_AHEAD = 5_000  # b's counter less a's


def _record(counter, guest):
    line = {"tsc_timestamp": guest, "system_time": 1_000_000, "mul": 1 << 31, "shift": 0, "origin": "page"}
    return {
        "host_hz": _KHZ * 1000,
        "anchor": {"counter": counter},
        "vcpus": [{"counter": guest, "tsc_offset": (guest - counter) % (1 << 64)}] * 2,
        "kvmclock": line,
    }


def _clock(clock, vcpu, total):
    return {"clock": clock, "vcpu": vcpu, "seam": 0, "seam_bound": 0, "bound": {"total": total}}


def _pair():
    """One move from a to b under `advance`, 3 ms at 2 GHz, without any error; the pairing knows the counters' difference
    to 100 ticks."""
    stopped, guest, resume_at = 10_000_000, 7_000_000, 16_000_000 + _AHEAD
    there = _record(resume_at, guest + 6_000_000)
    there["kvmclock"] = {**_record(0, guest)["kvmclock"]}
    certificate = {
        "policy": "advance", "elapsed_by": "tai", "holds": True, "resume_at": resume_at,
        "gap": {"ns": 3_000_000, "bound_ns": 500},
        "clocks": [_clock("tsc", 0, 200), _clock("tsc", 1, 200), _clock("kvmclock", None, 200)],
    }  # fmt: skip
    migration = {"rounds": 2, "pages_sent": 9, "downtime_ns": 3_000_000}
    move = {"move": 1, "policy": "advance"}
    pairing = {"event": "pairing", "difference_least": _AHEAD - 50, "difference_most": _AHEAD + 50}

    def said(number, loops, forward):
        clocks = {"loops": loops, "backward": 0, "forward_ns": forward, "monotonic_ns": loops * 1000}
        return {"event": "guest", "host": "a", "move": number, "policy": "none", "clocks": clocks}

    return {
        "a": [said(0, 1000, 5),
              {"event": "left", "host": "a", **move,
               "sent": {"outcome": "moved", "migration": migration, "record": _record(stopped, guest)}}],
        "b": [pairing,
              {"event": "arrived", "host": "b", **move, "received": {"certificate": certificate}},
              {"event": "captured", "host": "b", **move, "record": there},
              pairing, said(1, 2000, 3_000_000)],
    }  # fmt: skip


def _report(events, exit_code=0):
    hosts = {name: {"stdout": "\n".join(json.dumps(event) for event in lines)} for name, lines in events.items()}
    return linux_moves.report_on({"exit_code": exit_code, "hosts": hosts}, ["advance"])


class LinuxMoves(unittest.TestCase):
    def setUp(self):
        self.events = copy.deepcopy(_pair())

    def event(self, kind):
        return next(event for lines in self.events.values() for event in lines if event["event"] == kind)

    def complaints(self):
        report = _report(self.events)
        self.assertEqual(report["holds"], not report["complaints"])
        return " / ".join(report["complaints"])

    def test_a_move_without_error_holds(self):
        report = _report(self.events)
        self.assertTrue(report["holds"], report["complaints"])
        self.assertEqual([row["clock"] for row in report["rows"]], ["tsc 0", "tsc 1", "kvmclock", "gap"])
        self.assertTrue(all(row["verdict"] == "inside" for row in report["rows"]))
        self.assertIn("0 steps back", linux_moves.text_of(report))

    def test_clocks_outside_their_bounds_are_told(self):
        vcpu = self.event("captured")["record"]["vcpus"][1]
        self.event("captured")["record"]["vcpus"][1] = {**vcpu, "tsc_offset": vcpu["tsc_offset"] + 1000}
        self.assertIn("tsc 1", self.complaints())
        self.event("captured")["record"]["kvmclock"]["system_time"] += 1000
        self.assertIn("kvmclock: the true error is", self.complaints())
        self.event("arrived")["received"]["certificate"]["gap"]["ns"] += 1000
        self.assertIn("gap: the true error", self.complaints())

    def test_seams_and_certificates_are_looked_at(self):
        certificate = self.event("arrived")["received"]["certificate"]
        certificate["clocks"][0]["seam"] = 1
        self.assertIn("the seam of vCPU 0's TSC is 1 ticks", self.complaints())
        certificate["holds"] = False
        self.assertIn("does not hold", self.complaints())
        certificate["policy"] = "freeze"
        self.assertIn("its policy is freeze", self.complaints())

    def test_the_guest_is_heard(self):
        last = self.events["b"][-1]["clocks"]
        last["backward"] = 1
        self.assertIn("1 steps back", self.complaints())
        last["forward_ns"] = 2_000_000
        self.assertIn("no step of the guest's clock", self.complaints())
        last["loops"] = 1000
        self.assertIn("did not go on after move 1", self.complaints())
        last["monotonic_ns"] = 1
        self.assertIn("set back by move 1", self.complaints())
        self.events["b"].pop()
        self.assertIn("spoke 1 times", self.complaints())

    def test_what_cannot_be_judged_is_no_success(self):
        self.event("captured")["record"]["kvmclock"]["origin"] = "kernel"
        with self.assertRaises(Unusable):
            _report(self.events)
        self.events = _pair()
        self.events["b"].remove(self.event("captured"))
        with self.assertRaises(Unusable):
            _report(self.events)
        with self.assertRaises(Unusable):
            _report(_pair(), exit_code=93)
        self.events = {"a": [], "b": []}
        self.assertIn("0 moves, not 1", self.complaints())


if __name__ == "__main__":
    unittest.main()
