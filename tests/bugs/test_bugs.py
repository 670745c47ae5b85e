"""Each planted bug is caught by the oracles that its file names, and nothing is caught without it.

A file a bug: `bug` (src/sim/include/continuo/sim/bug.h), `origin` (where the mistake comes from), `scenario` (in
tests/scenarios), `strategy`, `oracles` (each must be broken in some run with the bug, and in none without), and
optionally `seeds`.
"""

import pathlib
import sys
import tomllib
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cli"))

from continuo_program import DOES_NOT_HOLD, DONE, document, json_of, run  # noqa: E402

SCENARIOS = HERE.parent / "scenarios"
KEYS = {"bug", "origin", "scenario", "strategy", "oracles", "seeds"}
SEEDS = "1..60"


def planted():
    files = sorted(HERE.glob("*.toml"))
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in files}


def outcomes(entry, bug=None):
    """For each invariant, how many runs kept it and how many broke it."""
    words = ["sim", "run", SCENARIOS / (entry["scenario"] + ".toml"), "--strategy", entry["strategy"],
             "--seeds", entry.get("seeds", SEEDS)]
    done = run(*words, *(["--bug", bug] if bug else []), "--json")
    # with the bug, what the scenario says must be kept may be broken
    assert done.returncode in ((DONE, DOES_NOT_HOLD) if bug else (DONE,)), done.stderr
    counts = {}
    for one in document(done)["runs"]:
        for name, verdict in one["verdicts"].items():
            kept, broken = counts.get(name, (0, 0))
            counts[name] = (kept + (verdict["outcome"] == "kept"), broken + (verdict["outcome"] == "broken"))
    return counts


class Bugs(unittest.TestCase):
    def test_every_bug_has_a_file(self):
        known = {entry["name"] for entry in json_of("sim", "list")["bugs"]}
        self.assertEqual(set(planted()), known)
        self.assertGreaterEqual(len(known), 20)

    def test_files(self):
        for name, entry in planted().items():
            with self.subTest(name):
                self.assertEqual(entry["bug"], name)
                self.assertLessEqual(set(entry), KEYS)
                self.assertTrue(entry["origin"] and entry["oracles"])

    def test_caught_with_the_bug(self):
        for name, entry in planted().items():
            with self.subTest(name):
                counts = outcomes(entry, name)
                for oracle in entry["oracles"]:
                    self.assertGreater(counts[oracle][1], 0, f"{oracle} does not catch {name}")

    def test_clean_without_it(self):
        for name, entry in planted().items():
            with self.subTest(name):
                counts = outcomes(entry)
                for oracle in entry["oracles"]:
                    kept, broken = counts[oracle]
                    self.assertEqual(broken, 0, f"{oracle} is broken without {name}")
                    self.assertGreater(kept, 0, f"{oracle} is not looked at")


if __name__ == "__main__":
    unittest.main()
