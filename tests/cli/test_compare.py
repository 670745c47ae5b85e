"""continuo compare."""

import json
import pathlib
import re
import tempfile
import unittest

from continuo_program import DONE, KERNEL, ROOT, USAGE, error_of, json_of, run

SCENARIOS = ROOT / "tests/scenarios"
FEW = [SCENARIOS / "same-frequency-move.toml", SCENARIOS / "same-host-pause.toml"]


class Document(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.answer = json_of("compare", "--scenarios", *FEW, "--seeds", 100, timeout=300)

    def test_every_strategy_in_every_scenario(self):
        answer = self.answer
        listed = json_of("sim", "list")
        self.assertEqual([s["name"] for s in answer["strategies"]], [s["name"] for s in listed["strategies"]])
        pairs = [(cell["strategy"], cell["scenario"]) for cell in answer["cells"]]
        self.assertEqual(pairs, [(s["name"], c["name"]) for s in answer["strategies"] for c in answer["scenarios"]])
        self.assertEqual({cell["runs"] for cell in answer["cells"]}, {100})
        self.assertEqual(answer["runs"], 100 * len(pairs))

    def test_totals_are_the_sums_of_the_cells(self):
        for total in self.answer["totals"]:
            cells = [cell for cell in self.answer["cells"] if cell["strategy"] == total["strategy"]]
            for key in ("runs", "moved", "refused", "failed", "limit"):
                self.assertEqual(total[key], sum(cell[key] for cell in cells))
            self.assertEqual(total["runs"], total["moved"] + total["refused"] + total["failed"] + total["limit"])
            for name, tally in total["invariants"].items():
                parts = [cell["invariants"][name] for cell in cells]
                for key in ("checked", "broken"):
                    self.assertEqual(tally[key], sum(part[key] for part in parts))
                self.assertEqual(tally["worst_ns"], max(part["worst_ns"] for part in parts))
            for name, spread in total["quantities"].items():
                self.assertEqual(spread["count"], total["moved"])
                self.assertEqual(sum(count for _, count in spread["buckets"]), spread["count"])
                self.assertLessEqual(spread["min_ns"], spread["median_ns"])
                self.assertLessEqual(spread["median_ns"], spread["p99_ns"])
                self.assertLessEqual(spread["p99_ns"], spread["max_ns"])

    def test_the_seed_shows_it(self):
        """Each worst run, run alone, is as bad as the table says."""
        shown = 0
        for cell in self.answer["cells"]:
            file = next(path for path in FEW if path.stem == cell["scenario"])
            for name, tally in cell["invariants"].items():
                if not tally["broken"] or shown >= 12:
                    continue
                seed = tally["seed"]
                alone = json_of("sim", "run", file, "--strategy", cell["strategy"], "--seeds", f"{seed}..{seed}")
                verdict = alone["runs"][0]["verdicts"][name]
                self.assertEqual((verdict["outcome"], verdict["by_ns"]), ("broken", tally["worst_ns"]))
                shown += 1
        self.assertGreater(shown, 0)

    def test_the_quantities_are_those_of_the_runs(self):
        cell = next(cell for cell in self.answer["cells"] if cell["strategy"] == "by-value")
        runs = json_of("sim", "run", FEW[0], "--strategy", "by-value", "--seeds", 100)["runs"]
        for name, spread in cell["quantities"].items():
            values = sorted(entry["quantities"][name + "_ns"] for entry in runs)
            self.assertEqual((spread["min_ns"], spread["max_ns"]), (values[0], values[-1]))
            # a bucket is an eighth of an octave
            self.assertGreaterEqual(spread["median_ns"], values[49])
            self.assertLessEqual(spread["median_ns"], values[49] * 9 / 8 + 1)
            self.assertIn(spread["seed"], [e["seed"] for e in runs if e["quantities"][name + "_ns"] == values[-1]])

    def test_every_claim_has_a_verdict_with_its_figures(self):
        threads = {claim["thread"].split(".")[0] for claim in self.answer["claims"]}
        self.assertEqual(threads, {"S0", "S1", "S2", "S3", "S4"})
        self.assertGreaterEqual(len(self.answer["claims"]), 50)
        names = [claim["name"] for claim in self.answer["claims"]]
        self.assertEqual(len(names), len(set(names)))
        for claim in self.answer["claims"]:
            self.assertIn(claim["verdict"], {"reproduced", "not_reproduced", "undecided"})
            for key in ("who", "claim", "decided_by"):
                self.assertTrue(claim[key])
            if claim["verdict"] != "undecided":
                self.assertRegex(claim["figures"], r"[0-9]|masterclock|stale", claim["name"])
            if claim["verdict"] != "reproduced":
                self.assertTrue(claim["why"], claim["name"])

    def test_threads_and_order_of_files_do_not_show(self):
        one = json_of("compare", "--scenarios", *FEW, "--seeds", 100, "--jobs", 1, timeout=300)
        self.assertEqual(one, self.answer)


class AllScenarios(unittest.TestCase):
    def test_every_probe_is_reached(self):
        """A situation that no run reaches is a scenario that is missing."""
        answer = json_of("compare", "--seeds", 60, timeout=600)
        self.assertEqual(len(answer["scenarios"]), len(list(SCENARIOS.glob("*.toml"))))
        reached = {probe for total in answer["totals"] for probe in total["probes"]}
        self.assertEqual(set(json_of("sim", "list")["probes"]) - reached, set())
        self.assertEqual(sum(total["limit"] for total in answer["totals"]), 0)
        # json_of() has seen status 0: nothing that a scenario says must be kept was broken


class Page(unittest.TestCase):
    def test_it_is_one_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "report.html"
            done = run("compare", "--scenarios", *FEW, "--seeds", 20, "--html", path, "--json", timeout=300)
            self.assertEqual(done.returncode, DONE)
            page = path.read_text(encoding="utf-8")
        data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL).group(1)
        self.assertEqual(json.loads(data), json.loads(done.stdout))
        self.assertIn("Chart.js", page)
        # nothing is fetched from anywhere
        self.assertEqual(re.findall(r"""<(?:script|link|img|iframe)[^>]*\b(?:src|href)\s*=""", page), [])
        self.assertNotIn("@import", page)
        self.assertEqual([mark for mark in re.findall(r"@[A-Z_]+@", page)], [])

    def test_a_scenario_cannot_end_the_script(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "x.toml"
            file.write_text('name = "x"\nabout = "</script><b>&"\n[[host]]\n[[host]]\n[[move]]\n', encoding="utf-8")
            path = pathlib.Path(folder) / "report.html"
            run("compare", "--scenarios", file, "--seeds", 1, "--html", path, timeout=300)
            page = path.read_text(encoding="utf-8")
        self.assertNotIn("</script><b>", page)
        self.assertIn("\\u003c/script>\\u003cb>", page.replace("\\u003e", ">"))

    def test_where_it_cannot_be_written(self):
        error = error_of("compare", "--scenarios", *FEW, "--seeds", 1, "--html", "/no/such/folder/x.html",
                         code=KERNEL, timeout=300)
        self.assertEqual(error["where"], "/no/such/folder/x.html")


class Text(unittest.TestCase):
    def test_table(self):
        done = run("compare", "--scenarios", *FEW, "--seeds", 20, timeout=300)
        self.assertEqual((done.returncode, done.stderr), (DONE, b""))
        text = done.stdout.decode()
        for strategy in json_of("sim", "list")["strategies"]:
            self.assertIn(strategy["name"], text)
        self.assertEqual([line for line in text.splitlines() if len(line) > 132], [])

    def test_what_is_no_question(self):
        for words in [["--seeds", "0"], ["--jobs", "0"], ["--seeds", "2..1"], ["--seeds", str(2**40 + 1)]]:
            with self.subTest(words=words):
                error_of("compare", *words, code=USAGE)


if __name__ == "__main__":
    unittest.main()
