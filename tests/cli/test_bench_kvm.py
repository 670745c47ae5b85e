"""continuo bench counter on this machine's KVM: its figures are those of its ticks, and of all of them."""

import fractions
import math
import re
import unittest

from continuo_program import DONE, HAS_KVM, NO_KVM, json_of, run

READS = 300


def nearest_ps(ticks, hz):
    return math.floor(fractions.Fraction(ticks) * 10**12 / hz + fractions.Fraction(1, 2))


@unittest.skipUnless(HAS_KVM, NO_KVM)
class Counter(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.answer = json_of("bench", "counter", "--reads", READS)

    def measured(self):
        return [series for series in self.answer["series"] if series["cost"]]

    def test_native_reads_were_measured(self):
        paths = {series["path"] for series in self.measured()}
        self.assertLessEqual({"nothing", "native"}, paths)

    def test_what_was_not_run_says_why(self):
        for series in self.answer["series"]:
            self.assertEqual(series["cost"] is None, series["no_cost"] is not None, series)
            if series["no_cost"]:
                self.assertTrue(series["no_cost"]["what"], series)

    def test_figures_are_those_of_the_ticks(self):
        hz = self.answer["counter_hz"]
        for series in self.measured():
            with self.subTest(series=series["id"]):
                cost, ticks = series["cost"], series["cost"]["sample_ticks"]
                self.assertEqual(ticks["count"], READS)
                self.assertEqual(cost["batch_ticks"]["count"], READS // self.answer["batch_reads"])
                self.assertEqual(cost["average_ps"], nearest_ps(fractions.Fraction(ticks["sum"], READS), hz))
                self.assertEqual(cost["p95_ps"], nearest_ps(ticks["p95"], hz))
                deviation = fractions.Fraction(ticks["milli_deviation"], 1000)
                self.assertEqual(cost["standard_deviation_ps"], nearest_ps(deviation, hz))
                order = [ticks[key] for key in ("min", "median", "p95", "max")]
                self.assertEqual(order, sorted(order))
                self.assertLessEqual(ticks["min"] * READS, ticks["sum"])
                self.assertLessEqual(ticks["sum"], ticks["max"] * READS)
                self.assertEqual(cost["backward"], 0)

    def test_back_to_back_is_the_loop_without_the_empty_one(self):
        series = {entry["id"]: entry for entry in self.answer["series"]}
        empty = {"ring 3": "nothing_user", "ring 0": "nothing_kernel"}
        checked = 0
        for entry in self.measured():
            if entry["path"] == "nothing":
                continue
            nothing = next((empty[level] for level in empty if level in entry["how"]), "nothing")
            ticks = entry["cost"]["batch_ticks"]["median"] - series[nothing]["cost"]["batch_ticks"]["median"]
            wanted = nearest_ps(fractions.Fraction(max(ticks, 0), 100), self.answer["counter_hz"])
            self.assertEqual(entry["cost"]["back_to_back_ps"], wanted, entry["id"])
            checked += 1
        self.assertGreater(checked, 0)

    def test_instructions_are_claimed_only_where_all_kinds_took_the_same(self):
        clock, hz = self.answer["instructions"], self.answer["counter_hz"]
        self.assertEqual(len(clock["runs"]), 3)
        each = [fractions.Fraction(row["ticks"] * 10**9, row["instructions"] * hz) for row in clock["runs"]]
        alike = max(each) - min(each) < max(each) / 100
        if clock["ns_each"] is not None:
            self.assertTrue(alike, each)
        for entry in self.measured():
            claimed = entry["cost"]["back_to_back_milli_instructions"] is not None
            self.assertEqual(claimed, clock["ns_each"] is not None and entry["path"] != "nothing")

    def test_table_is_the_threads(self):
        done = run("bench", "counter", "--reads", READS)
        self.assertEqual(done.returncode, DONE, done.stderr)
        text = done.stdout.decode()
        for row in [r"\| Average +\|", r"\| Standard Deviation \|", r"\| 95th Percentile +\|"]:
            self.assertRegex(text, row)
        # the published averages stand beside ours
        for average in re.findall(r"^\| Average .*$", text, re.MULTILINE):
            self.assertRegex(average, r"\| 54/148ns +\| 53/152ns +\|$")


if __name__ == "__main__":
    unittest.main()
