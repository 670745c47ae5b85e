"""continuo explore, and continuo sim replay on what it writes."""

import copy
import json
import pathlib
import tempfile
import unittest

from continuo_program import BAD_INPUT, DOES_NOT_HOLD, DONE, ROOT, USAGE, document, error_of, json_of, run

EXAMPLE = ROOT / "docs/formats/counterexample.example.json"
QUICK = ("explore", "--protocol", "pvclock-publish")
PROTOCOLS = {"pvclock-publish", "pvclock-fallback", "time-travel-gate", "vcpu-restore", "masterclock-update",
             "migration-handover"}


class Explore(unittest.TestCase):
    def test_every_variant_is_judged_right(self):
        answer = json_of("explore", "--all")
        self.assertTrue(answer["reduction"])
        self.assertEqual({finding["protocol"] for finding in answer["findings"]}, PROTOCOLS)
        for protocol in PROTOCOLS:
            mine = [finding for finding in answer["findings"] if finding["protocol"] == protocol]
            self.assertTrue(any(finding["planted"] for finding in mine), protocol)
            self.assertTrue(any(not finding["planted"] for finding in mine), protocol)
        for finding in answer["findings"]:
            with self.subTest(variant=(finding["protocol"], finding["variant"])):
                self.assertTrue(finding["as_expected"], finding)
                self.assertEqual(finding["complete"], not finding["planted"])
                self.assertEqual(finding["violation"] is not None, finding["planted"])
                self.assertIsNone(finding["limit"])
                self.assertGreater(finding["states"], 1)
                self.assertGreaterEqual(finding["transitions"], finding["states"] - 1)
                self.assertGreater(finding["bytes"], finding["states"] * finding["state_bytes"])

    def test_reduction_leaves_states_out_and_no_verdict(self):
        reduced = json_of(*QUICK, "--variant", "x86")["findings"][0]
        full = json_of(*QUICK, "--variant", "x86", "--no-reduction")["findings"][0]
        self.assertLess(reduced["states"], full["states"])
        self.assertTrue(reduced["complete"] and full["complete"])

    def test_the_same_search_twice(self):
        first, second = (json_of(*QUICK, "--variant", "arm64")["findings"][0] for _ in range(2))
        for finding in (first, second):
            del finding["seconds"]
        self.assertEqual(first, second)

    def test_text(self):
        done = run(*QUICK, "--variant", "x86-never-odd")
        self.assertEqual((done.returncode, done.stderr), (DONE, b""))
        self.assertIn(b"caught: assertion after", done.stdout)
        done = run(*QUICK, "--variant", "x86")
        self.assertIn(b"clean, complete", done.stdout)
        done = run("explore", "--list")
        for protocol in PROTOCOLS:
            self.assertIn(protocol.encode(), done.stdout)

    def test_a_limit_is_no_verdict(self):
        for option, value in (("--limit", "1000"), ("--memory", "1")):
            answer = json_of(*QUICK, "--variant", "x86", "--no-reduction", option, value, code=DOES_NOT_HOLD)
            finding = answer["findings"][0]
            self.assertFalse(finding["as_expected"])
            self.assertIn(value, finding["limit"])
            done = run(*QUICK, "--variant", "x86", "--no-reduction", option, value)
            self.assertEqual(done.returncode, DOES_NOT_HOLD)
            self.assertIn(b"NOT COMPLETE", done.stdout)
            self.assertIn(option.encode(), done.stderr)

    def test_what_is_no_question(self):
        for words in ((), ("--protocol", "nothing"), ("--variant", "x86"), ("--all", "--protocol", "pvclock-publish"),
                      ("--protocol", "pvclock-publish", "--variant", "nothing"), ("--all", "--limit", "0"),
                      ("--all", "--limit", "-1"), ("--all", "--memory", "x")):
            with self.subTest(words=words):
                error_of("explore", *words, code=USAGE)
        error = error_of("explore", "--protocol", "nothing", code=USAGE)
        self.assertIn("pvclock-publish", error["advice"])

    def test_a_right_variant_has_no_counterexample(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "none.json"
            error_of(*QUICK, "--variant", "x86", "--counterexample", path, code=USAGE)
            self.assertFalse(path.exists())


class Replay(unittest.TestCase):
    def written(self, protocol, variant):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "c.json"
            done = run("explore", "--protocol", protocol, "--variant", variant, "--counterexample", path)
            self.assertEqual(done.returncode, DONE, done.stderr)
            return json.loads(path.read_text(encoding="utf-8"))

    def replayed(self, counterexample, code=DONE):
        text = counterexample if isinstance(counterexample, bytes) else json.dumps(counterexample).encode()
        if code != DONE:
            return error_of("sim", "replay", "-", stdin=text, code=code)
        done = run("sim", "replay", "-", "--json", stdin=text)
        self.assertEqual(done.returncode, DONE, done.stderr)
        return document(done)

    def test_every_planted_variant_replays(self):
        listed = run("explore", "--list").stdout.decode().splitlines()
        planted = [line.split()[:2] for line in listed if " planted " in line]
        self.assertGreater(len(planted), 20)
        for protocol, variant in planted:
            with self.subTest(protocol=protocol, variant=variant):
                counterexample = self.written(protocol, variant)
                self.assertEqual(self.replayed(counterexample), counterexample)

    def test_the_documented_example(self):
        counterexample = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        self.assertEqual(self.replayed(counterexample), counterexample)
        done = run("sim", "replay", EXAMPLE)
        self.assertEqual(done.returncode, DONE)
        for step in counterexample["steps"]:
            self.assertIn(step["text"].encode(), done.stdout)
        self.assertIn(counterexample["violation"]["what"].encode(), done.stdout)

    def test_a_file_that_does_not_fit(self):
        good = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        last = len(good["steps"]) - 1

        def changed(change):
            bad = copy.deepcopy(good)
            change(bad)
            return bad

        cases = {
            "agent": lambda c: c["steps"][2].update(agent="nobody"),
            "choice": lambda c: c["steps"][2].update(choice=77),
            "text": lambda c: c["steps"][2].update(text="something else"),
            "value": lambda c: c["steps"][last]["changes"][0].update(after="99"),
            "order": lambda c: c["steps"].insert(0, c["steps"].pop()),
            "short": lambda c: c["steps"].pop(),
            "what": lambda c: c["violation"].update(what="nothing"),
            "kind": lambda c: c["violation"].update(kind="deadlock"),
            "more": lambda c: c["steps"].append(c["steps"][last]),
        }
        for name, change in cases.items():
            with self.subTest(case=name):
                error = self.replayed(changed(change), code=BAD_INPUT)
                self.assertIn("/steps/", error["where"])

    def test_a_file_that_is_none(self):
        good = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        for name, bad in {
            "empty": b"", "text": b"hello", "array": b"[]", "number": b"3",
            "schema": {**good, "schema": "continuo-counterexample-2"},
            "kind": {**good, "violation": {"kind": "x", "what": "y"}},
            "extra": {**good, "more": 1},
            "missing": {key: value for key, value in good.items() if key != "steps"},
            "no steps": {**good, "steps": []},
            "step": {**good, "steps": [1]},
            "choice": {**good, "steps": [{**good["steps"][0], "choice": -1}]},
            "changes": {**good, "steps": [{**good["steps"][0], "changes": {}}]},
            "change": {**good, "steps": [{**good["steps"][0], "changes": [{"field": 1, "before": "", "after": ""}]}]},
        }.items():
            with self.subTest(case=name):
                self.replayed(bad, code=BAD_INPUT)
        self.replayed({**good, "protocol": "nothing"}, code=USAGE)
        self.replayed({**good, "variant": "nothing"}, code=USAGE)
        deep = b"[" * 100000
        self.replayed(deep, code=BAD_INPUT)


if __name__ == "__main__":
    unittest.main()
