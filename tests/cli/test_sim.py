"""continuo sim run and continuo sim list."""

import json
import pathlib
import tempfile
import unittest

from continuo_program import BAD_INPUT, DOES_NOT_HOLD, DONE, KERNEL, ROOT, USAGE, error_of, json_of, run

SCENARIOS = ROOT / "tests/scenarios"
PLAIN = SCENARIOS / "same-frequency-move.toml"
SMALL = '''
name = "small"
[[host]]
[[host]]
[[move]]
'''


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def file(self, text, name="scenario.toml"):
        path = pathlib.Path(self.folder.name) / name
        path.write_text(text, encoding="utf-8")
        return path


class Run(Folder):
    def test_the_same_seed_twice_is_the_same_run(self):
        first = json_of("sim", "run", PLAIN, "--seeds", "3..9", "--jobs", 1)
        again = json_of("sim", "run", PLAIN, "--seeds", "3..9", "--jobs", 2)
        self.assertEqual(first, again)
        for strategy in {entry["strategy"] for entry in first["runs"]}:
            hashes = [entry["hash"] for entry in first["runs"] if entry["strategy"] == strategy]
            self.assertEqual(len(set(hashes)), 7, strategy)

    def test_each_run_has_seed_strategy_verdicts_and_hash(self):
        names = [strategy["name"] for strategy in json_of("sim", "list")["strategies"]]
        answer = json_of("sim", "run", PLAIN, "--seeds", "5..6")
        self.assertEqual([(entry["strategy"], entry["seed"]) for entry in answer["runs"]],
                         [(name, seed) for name in names for seed in (5, 6)])
        invariants = {entry["name"] for entry in json_of("sim", "list")["invariants"]}
        for entry in answer["runs"]:
            self.assertEqual(set(entry["verdicts"]), invariants)
            self.assertRegex(entry["hash"], "^0x[0-9a-f]{16}$")
            self.assertIn(entry["ending"], {"moved", "refused", "failed", "limit"})

    def test_a_number_of_seeds_begins_at_1(self):
        answer = json_of("sim", "run", PLAIN, "--seeds", 3, "--strategy", "by-value")
        self.assertEqual([entry["seed"] for entry in answer["runs"]], [1, 2, 3])

    def test_a_planted_bug_changes_the_run(self):
        words = ["sim", "run", PLAIN, "--seeds", 20, "--strategy", "continuo-advance"]
        clean = json_of(*words)
        planted = json_of(*words, "--bug", "offset_write_skips_vcpu", code=DOES_NOT_HOLD)
        self.assertEqual(planted["bug"], "offset_write_skips_vcpu")
        broken = [entry["verdicts"]["counter_across_vcpus"]["outcome"] == "broken" for entry in planted["runs"]]
        self.assertTrue(all(broken))
        self.assertNotEqual([entry["hash"] for entry in clean["runs"]], [entry["hash"] for entry in planted["runs"]])

    def test_text(self):
        done = run("sim", "run", PLAIN, "--strategy", "by-value", "--seeds", "7..7")
        self.assertEqual((done.returncode, done.stderr), (DONE, b""))
        entry = json_of("sim", "run", PLAIN, "--strategy", "by-value", "--seeds", "7..7")["runs"][0]
        self.assertIn(entry["hash"][2:].encode(), done.stdout)

    def test_what_must_be_kept(self):
        keep = '[[must_keep]]\nstrategies = ["%s"]\ninvariants = ["promise_kept"]\n'
        words = ["--strategy", "by-value", "--strategy", "continuo-freeze", "--seeds", 5, "--json"]
        broken = run("sim", "run", self.file(SMALL + keep % "by-value"), *words)
        self.assertEqual(broken.returncode, DOES_NOT_HOLD)
        lapses = json.loads(broken.stdout)["lapses"]
        self.assertEqual({(lapse["strategy"], lapse["invariant"]) for lapse in lapses}, {("by-value", "promise_kept")})
        kept = run("sim", "run", self.file(SMALL + keep % "continuo-freeze"), *words)
        self.assertEqual((kept.returncode, json.loads(kept.stdout)["lapses"]), (DONE, []))
        # with neither key, everything by everybody
        everything = run("sim", "run", self.file(SMALL + "[[must_keep]]\n"), *words)
        self.assertEqual(everything.returncode, DOES_NOT_HOLD)

    def test_a_run_that_would_not_end(self):
        answer = json_of("sim", "run", self.file(SMALL + "[limits]\nsteps = 3\n"), "--strategy", "continuo-advance")
        self.assertEqual(answer["runs"][0]["ending"], "limit")
        self.assertIn("limits.steps", answer["runs"][0]["reason"])
        self.assertEqual({verdict["outcome"] for verdict in answer["runs"][0]["verdicts"].values()}, {"not_promised"})

    def test_what_is_no_question(self):
        for words in [["--seeds", "0"], ["--seeds", "5..4"], ["--seeds", "x"], ["--seeds", "1.."], ["--jobs", "0"],
                      ["--jobs", "-1"], ["--strategy", "nobody"], ["--bug", "nothing"], ["--seeds", "100001"],
                      ["--seeds", "0..18446744073709551615"]]:
            with self.subTest(words=words):
                error_of("sim", "run", PLAIN, *words, code=USAGE)
        error_of("sim", "run", code=USAGE)
        error_of("sim", "run", "/no/such/file.toml", code=KERNEL)
        error_of("sim", "run", self.folder.name, code=USAGE)  # a folder without a scenario
        error_of("sim", "run", PLAIN, PLAIN, code=USAGE)  # one name twice


class BadScenario(Folder):
    """Each says the line and what was expected."""

    def check(self, text, line, *words):
        error = error_of("sim", "run", self.file(text), code=BAD_INPUT)
        self.assertEqual(error["code"], "malformed")
        self.assertIn(f"scenario.toml:{line}:", error["where"])
        for word in words:
            self.assertIn(word, error["where"] + error["what"] + error["advice"])

    def test_unknown_key(self):
        self.check('name = "x"\n[[host]]\ntsc_mhz = 2000\n[[host]]\n[[move]]\n', 3, "tsc_mhz")

    def test_impossible_frequency(self):
        self.check('name = "x"\n[[host]]\ntsc_khz = 0\n[[host]]\n[[move]]\n', 3, "tsc_khz", "1 to 16000000")
        self.check('name = "x"\n[[host]]\ntsc_khz = 16_000_001\n[[host]]\n[[move]]\n', 3, "tsc_khz")

    def test_negative_probability(self):
        self.check(SMALL + "[fault]\nwire_flip = -1\n", 7, "wire_flip", "0 to 1000000")
        self.check(SMALL + "[vmm]\npreempt_ppm = 1_000_001\n", 7, "preempt_ppm")

    def test_no_floating_point(self):
        self.check('name = "x"\n[[host]]\ndrift_ppb = 0.5\n[[host]]\n[[move]]\n', 3, "drift_ppb", "integer")

    def test_names_that_are_not_there(self):
        self.check(SMALL + '[[must_keep]]\nstrategies = ["nobody"]\ninvariants = ["promise_kept"]\n', 7, "nobody")
        self.check(SMALL + '[[must_keep]]\ninvariants = ["nothing"]\n', 7, "nothing")
        self.check(SMALL + '[[must_keep]]\ninvariants = "promise_kept"\n', 7, "array")
        self.check(SMALL + "[[must_keep]]\ninvariants = [1]\n", 7, "string")
        self.check('name = "x"\n[[host]]\n[[host]]\n[[move]]\nto = "c"\n', 5, '"c"')

    def test_no_toml(self):
        self.check("name = \n", 1)


class List(unittest.TestCase):
    def test_names_and_meanings(self):
        answer = json_of("sim", "list")
        for key in ("strategies", "invariants", "bugs", "quantities", "scenarios"):
            names = [entry["name"] for entry in answer[key]]
            self.assertEqual(len(names), len(set(names)), key)
            for entry in answer[key]:
                self.assertTrue(entry["about"], entry)
        self.assertEqual(len(answer["scenarios"]), len(list(SCENARIOS.glob("*.toml"))))
        done = run("sim", "list")
        for bug in answer["bugs"]:
            self.assertIn(bug["name"].encode(), done.stdout)


if __name__ == "__main__":
    unittest.main()
