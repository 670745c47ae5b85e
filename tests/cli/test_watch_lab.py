"""`continuo watch` inside an unmodified Linux guest that moves live on an emulated host (`lab/linux-demo`): what it
measures of each move, by lines, is what the certificate says that the move did. Once with the clocksource kvm-clock,
once with tsc; chronyd runs, and continuo-agent repairs REALTIME."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from continuo_program import ROOT


def demo(append):
    """(what it printed, its figures, its page)"""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        done = subprocess.run(
            [str(ROOT / "lab/linux-demo"), "--json", str(folder / "figures.json"), "--html", str(folder / "page.html"),
             "--append", append, "--timeout", "500"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600)
        if done.returncode != 0:
            raise AssertionError(f"linux-demo ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
        return done.stdout, json.loads((folder / "figures.json").read_text()), (folder / "page.html").read_text()


class WatchInAGuest:
    """Figures of two moves, advance-and-notify and freeze-and-notify."""

    @classmethod
    def setUpClass(cls):
        cls.printed, cls.figures, cls.page = demo(cls.APPEND)

    def moves(self):
        for move in self.figures["moves"]:
            clocks = {row["clock"]: row for row in move["event"]["clocks"]}
            yield move["certificate"], clocks, move

    def test_the_guest_is_what_was_asked_for(self):
        setup = self.figures["watch"]["setup"]
        self.assertEqual(setup["clocksource"], self.CLOCKSOURCE)
        self.assertEqual(setup["phc"], "/dev/ptp0")
        self.assertTrue(setup["kvmclock_page"])
        self.assertEqual(setup["notice"], "/dev/mem@0xd0000")
        self.assertEqual([move["certificate"]["policy"] for move in self.figures["moves"]],
                         ["advance-and-notify", "freeze-and-notify"])

    def test_every_seam_is_zero_by_lines(self):
        for certificate, clocks, move in self.moves():
            with self.subTest(policy=certificate["policy"]):
                for name in ("CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW"):
                    self.assertLessEqual(abs(clocks[name]["seam_ns"]), clocks[name]["bound_ns"], move["event"])
                    # The shortest readings of a guest under an emulator, and their slopes over the gap.
                    self.assertLess(clocks[name]["bound_ns"], 20_000, move["event"])
                # The page is the line: what it says is the certificate's seam, to the rounding.
                self.assertLessEqual(abs(clocks["kvmclock"]["seam_ns"]), 2, move["event"])

    def test_what_the_guest_lost_is_nothing_or_the_whole_gap(self):
        for certificate, clocks, move in self.moves():
            gap = certificate["gap"]
            lost = gap["ns"] if certificate["policy"].startswith("freeze") else 0
            self.assertGreater(gap["ns"], 1_000_000)
            for name in ("CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_REALTIME", "counter"):
                with self.subTest(policy=certificate["policy"], clock=name):
                    row = clocks[name]
                    self.assertIsNotNone(row["lost_ns"], move["event"])
                    self.assertLessEqual(abs(row["lost_ns"] - lost), row["lost_bound_ns"] + gap["bound_ns"], move["event"])
                    # KVM's PTP clock is as sharp as its system call is short: far less than the gap.
                    self.assertLess(row["lost_bound_ns"], gap["ns"] // 10)

    def test_the_agent_steps_realtime_by_what_it_lacks(self):
        frozen = self.figures["moves"][1]
        lacks = frozen["certificate"]["notice"]["delta_realtime_ns"]
        step = next(row for row in frozen["repair"]["clocks"] if row["clock"] == "CLOCK_REALTIME")
        self.assertLessEqual(abs(step["seam_ns"] - lacks), step["bound_ns"])
        self.assertGreaterEqual(frozen["repair"]["since_stop_ns"], 0)

    def test_the_kernel_is_unsynchronised_after_each_move_and_chronyd_ends_that(self):
        changes = self.figures["watch"]["ntp_changes"]
        self.assertGreaterEqual(sum(change["after"]["unsync"] and not change["before"]["unsync"] for change in changes), 2)
        self.assertGreaterEqual(sum(change["before"]["unsync"] and not change["after"]["unsync"] for change in changes), 1)

    def test_nothing_goes_backwards(self):
        for row in self.figures["watch"]["clocks"]:
            if row["clock"] != "CLOCK_REALTIME":
                self.assertEqual((row["backward_within_cpu"], row["backward_across_cpus"]), (0, 0), row)

    def test_the_page_has_the_story(self):
        for part in ("Move 1: advance-and-notify", "Move 2: freeze-and-notify", "What the agent in the guest wrote"):
            self.assertIn(part, self.page)
        self.assertIn("REALTIME right again", self.printed)


class KvmClock(WatchInAGuest, unittest.TestCase):
    APPEND = ""
    CLOCKSOURCE = "kvm-clock"


class Tsc(WatchInAGuest, unittest.TestCase):
    APPEND = "clocksource=tsc tsc=reliable"
    CLOCKSOURCE = "tsc"


if __name__ == "__main__":
    unittest.main()
