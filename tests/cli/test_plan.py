"""continuo plan: files in, verdicts out. What a plan says is state/'s to test; here it is the sums of the example."""

import json
import pathlib
import tempfile
import unittest

from continuo_program import (BAD_INPUT, KERNEL, REFUSED, ROOT, USAGE, document, error_of, json_of, run)

RECORD = ROOT / "docs/formats/record.example.json"
DESTINATION = ROOT / "docs/formats/destination.example.json"


def plan(*options, record=RECORD, destination=DESTINATION, stdin=b"", code=0):
    return json_of("plan", "--record", record, "--destination", destination, *options, stdin=stdin, code=code)


def tsc_rows(answer):
    return [row for row in answer["clocks"] if row["clock"] == "tsc"]


class Plan(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.record = json.loads(RECORD.read_text())
        self.destination = json.loads(DESTINATION.read_text())

    def file(self, name, content):
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path

    def changed(self, record=None, destination=None, options=(), code=0):
        return plan(*options, record=self.file("r.json", {**self.record, **(record or {})}),
                    destination=self.file("d.json", {**self.destination, **(destination or {})}), code=code)

    def test_advance_is_the_default_and_counts_the_gap(self):
        answer = plan()
        self.assertEqual((answer["verdict"], answer["policy"]), ("accepted", "advance"))
        self.assertEqual(answer["gap"]["ns"],
                         self.destination["anchor"]["tai_ns"] - self.record["anchor"]["tai_ns"])
        # 12 s at 2.5 GHz
        self.assertEqual([row["prescribed_at_anchor"] for row in tsc_rows(answer)],
                         [vcpu["counter"] + 12 * 2_500_000_000 for vcpu in self.record["vcpus"]])

    def test_freeze_goes_on_from_the_stop(self):
        answer = plan("--policy", "freeze")
        self.assertEqual([row["prescribed_at_resume"] for row in tsc_rows(answer)],
                         [vcpu["counter"] for vcpu in self.record["vcpus"]])
        self.assertEqual([row["advanced"] for row in answer["clocks"]], [0] * len(answer["clocks"]))

    def test_the_offset_makes_the_prescribed_value(self):
        for row in tsc_rows(plan()):
            anchor = self.destination["anchor"]["counter"]
            scaled = anchor * row["ratio"] >> row["frac_bits"]
            self.assertEqual((scaled + row["offset"]) % 2**64, row["prescribed_at_anchor"])

    def test_bounds_are_the_sum_of_their_terms(self):
        for row in plan()["clocks"]:
            self.assertEqual(row["bound"]["total"], sum(term["size"] for term in row["bound"]["terms"]))
            self.assertGreater(len(row["bound"]["terms"]), 0)

    def test_the_notifying_policies_carry_a_notice(self):
        answer = plan("--policy", "freeze-and-notify")
        self.assertEqual(answer["notice"]["gap_ns"], answer["gap"]["ns"])
        self.assertEqual(answer["notice"]["sequence"] % 2, 1)
        self.assertEqual(answer["writes"][-1]["kind"], "notice")

    def test_resume_at(self):
        later = self.destination["anchor"]["counter"] + 3_000_000  # 1 ms of the destination's 3 GHz
        answer = plan("--resume-at", later)
        self.assertEqual(answer["resume_at"], later)
        self.assertEqual(answer["gap"]["ns"], 12_001_000_000)
        row = tsc_rows(answer)[0]
        self.assertAlmostEqual(row["prescribed_at_resume"] - row["prescribed_at_anchor"], 2_500_000, delta=1)

    def test_wire_format_and_stdin(self):
        golden = ROOT / "tests/golden/record-v1-two-vcpus.bin"
        by_file = plan(record=golden)
        self.assertEqual(plan(record="-", stdin=golden.read_bytes()), by_file)
        self.assertEqual(plan(record=golden.with_suffix(".json")), by_file)
        self.assertEqual(plan(destination="-", stdin=DESTINATION.read_bytes()), plan())

    def test_what_inspect_prints_can_be_planned_with(self):
        printed = run("inspect", "record", RECORD, "--json").stdout
        self.assertEqual(plan(record="-", stdin=printed), plan())

    def test_same_boot_goes_by_the_counter(self):
        host = self.record["boot_id"]
        counter = self.record["anchor"]["counter"] + 2_500_000_000  # 1 s later
        suspended = self.record["anchor"]["suspended_ns"]
        anchor = {**self.destination["anchor"], "counter": counter, "suspended_ns": suspended}
        boot = {"same_boot": True, "boot_id": host, "host_hz": 2_500_000_000}
        slept = self.changed(destination={**boot, "anchor": {**anchor, "suspended_ns": suspended + 10**9}})
        self.assertEqual((slept["elapsed_by"], slept["gap"]["ns"]), ("tai", 12 * 10**9))
        self.assertIn("suspended", slept["notes"][0])
        answer = self.changed(destination={**boot, "anchor": anchor})
        self.assertEqual((answer["elapsed_by"], answer["gap"]["ns"]), ("host_counter", 10**9))
        # On one boot the line simply goes on, with the offset that it had.
        self.assertEqual([row["offset"] for row in tsc_rows(answer)],
                         [vcpu["tsc_offset"] for vcpu in self.record["vcpus"]])

    def test_refusals(self):
        back = {**self.destination["anchor"], "tai_ns": self.record["anchor"]["tai_ns"] - 10**9}
        far = {**self.destination["anchor"], "tai_ns": self.record["anchor"]["tai_ns"] + 31 * 86_400 * 10**9}
        # It held the question for 1 s, it says, and the answer was here after 60 us.
        contradiction = dict(self.destination["exchange"][0])
        contradiction["answered"] += 2_500_000_000
        for change, reason in [({"vcpus": 1}, "vcpus"), ({"scaling_frac_bits": None}, "frequency"),
                               ({"masterclock": False}, "no_masterclock"),
                               ({"anchor": back, "exchange": []}, "negative_gap"),
                               ({"anchor": far, "exchange": []}, "absurd_gap"),
                               ({"exchange": [contradiction]}, "exchange"),
                               ({"quirks": ["tsc_offset_ignored", "tsc_write_ignored"]}, "tsc_uncontrolled")]:
            with self.subTest(reason=reason):
                answer = self.changed(destination=change, code=REFUSED)
                self.assertEqual(answer["verdict"], "refused")
                self.assertIn(reason, [refusal["reason"] for refusal in answer["refusals"]])
                for refusal in answer["refusals"]:
                    self.assertTrue(refusal["message"] and refusal["advice"] and refusal["clock"])
                done = run("plan", "--record", self.folder / "r.json", "--destination", self.folder / "d.json")
                self.assertEqual(done.returncode, REFUSED)
                self.assertIn(b"refused", done.stdout)
                self.assertIn(b"do next", done.stdout)

    def test_by_exchange_and_by_tai(self):
        both = plan()
        gap = both["gap"]
        # 12 s since the stop, at 27 and 31 ppm: the exchange has drifted, and TAI knows better.
        self.assertEqual(both["elapsed_by"], "tai")
        self.assertGreater(gap["by_exchange"]["bound_ns"], gap["by_tai"]["bound_ns"])
        self.assertEqual(gap["by_exchange"]["rounds"], len(self.destination["exchange"]))
        self.assertEqual(gap["clock_offset"]["ns"], gap["by_tai"]["ns"] - gap["by_exchange"]["ns"])
        # A clock that says STA_UNSYNC is known to 16 s only.
        unsynchronised = self.changed(destination={"anchor": {**self.destination["anchor"], "synchronised": False}})
        self.assertEqual(unsynchronised["elapsed_by"], "exchange")
        self.assertGreaterEqual(unsynchronised["gap"]["by_tai"]["bound_ns"], 16 * 10**9)
        self.assertIn("STA_UNSYNC", unsynchronised["notes"][0])
        # One that is an hour off is told by how much at least, and is not gone by.
        hour = 3600 * 10**9
        anchor = {**self.destination["anchor"], "tai_ns": self.destination["anchor"]["tai_ns"] + hour}
        wrong = self.changed(destination={"anchor": anchor})
        self.assertEqual(wrong["elapsed_by"], "exchange")
        self.assertEqual(wrong["gap"]["ns"], gap["by_exchange"]["ns"])
        self.assertEqual(wrong["gap"]["clock_offset"]["ns"], gap["clock_offset"]["ns"] + hour)
        self.assertTrue([note for note in wrong["notes"] if "wrong by at least" in note])
        without = self.changed(destination={"exchange": []})
        self.assertIsNone(without["gap"]["by_exchange"])
        self.assertEqual(without["gap"]["ns"], gap["ns"])
        text = run("plan", "--record", RECORD, "--destination", DESTINATION).stdout.decode()
        for words in ["by exchange", "by TAI", "clock offset"]:
            self.assertIn(words, text)

    def test_an_exchange_that_cannot_be(self):
        first = self.destination["exchange"][0]
        for change, where in [({"heard": first["asked"] - 1}, "/exchange/0/heard"),
                              ({"answered": first["received"] - 1}, "/exchange/0/answered"),
                              ({"asked": -1}, "/exchange/0/asked"), ({"when": 0}, "/exchange/0/when")]:
            broken = self.file("d.json", {**self.destination, "exchange": [{**first, **change}]})
            error = error_of("plan", "--record", RECORD, "--destination", broken, code=BAD_INPUT)
            self.assertIn(where, error["where"])

    def test_gap_limit_and_clamp(self):
        self.assertEqual(plan("--gap-limit", "12001ms")["verdict"], "accepted")
        self.assertEqual(plan("--gap-limit", "11s", code=REFUSED)["refusals"][0]["reason"], "absurd_gap")
        answer = plan("--gap-limit", "11s", "--clamp-gap")
        self.assertEqual(answer["gap"], {**answer["gap"], "ns": 11 * 10**9, "clamped": True})
        for text in ["-1s", "1.5s", "1 s", "1w", "s", "", "99999999999d"]:
            error_of("plan", "--record", RECORD, "--destination", DESTINATION, f"--gap-limit={text}",
                     code=USAGE) if text else None

    def test_bad_input(self):
        done = run("plan", "--record", RECORD, "--destination", RECORD, "--json")
        self.assertEqual(done.returncode, BAD_INPUT)
        self.assertIn(str(RECORD), document(done)["error"]["where"])
        for stdin in [b"", b"{", b"[]", b"CONTINUO", b"\xff" * 100, b'{"schema": "continuo/record/2"}', b"{" * 100_000]:
            with self.subTest(stdin=stdin[:20]):
                error = error_of("plan", "--record", "-", "--destination", DESTINATION, stdin=stdin, code=BAD_INPUT)
                self.assertIn("stdin", error["where"])
        error = error_of("plan", "--record", "/no/such/file", "--destination", DESTINATION, code=KERNEL)
        self.assertEqual((error["code"], error["where"]), ("io", "/no/such/file"))

    def test_usage(self):
        error = error_of("plan", "--record", RECORD, "--destination", DESTINATION, "--policy", "warp", code=USAGE)
        self.assertIn("freeze-and-notify", error["advice"])
        error_of("plan", "--record", "-", "--destination", "-", code=USAGE)
        error_of("plan", "--record", RECORD, code=USAGE)

    def test_text(self):
        done = run("plan", "--record", RECORD, "--destination", DESTINATION)
        text = done.stdout.decode()
        for word in ["accepted", "MONOTONIC counts the gap", "source_tai", "kvmclock", "tsc_offset",
                     str(self.record["vcpus"][0]["counter"] + 30_000_000_000)]:
            self.assertIn(word, text)


if __name__ == "__main__":
    unittest.main()
