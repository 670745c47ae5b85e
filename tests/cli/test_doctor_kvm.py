"""continuo doctor on this machine's KVM."""

import json
import unittest

from continuo_program import DOES_NOT_HOLD, HAS_KVM, NO_KVM, ROOT, document, json_of, run

VERDICTS = {"exact", "by-value", "fixed-tsc", "no-kvm"}
STATES = {"works", "absent", "broken", "not-run"}


@unittest.skipUnless(HAS_KVM, NO_KVM)
class WithKvm(unittest.TestCase):
    def test_report(self):
        answer = json_of("doctor")
        self.assertIn(answer["verdict"], VERDICTS - {"no-kvm"})
        self.assertGreater(answer["tsc_khz"], 0)
        self.assertGreater(len(answer["checks"]), 10)
        for check in answer["checks"]:
            self.assertIn(check["state"], STATES)
            self.assertTrue(check["id"] and check["title"] and check["evidence"], check)
            self.assertEqual(check["consequence"] == "" or check["state"] != "works", True, check)

    def test_check_makes_it_the_exit_code(self):
        code = run("doctor", "--check").returncode
        verdict = json_of("doctor")["verdict"]
        self.assertEqual(code, 0 if verdict == "exact" else DOES_NOT_HOLD)

    def test_a_time_limit_of_nothing_runs_no_check(self):
        answer = json_of("doctor", "--time-limit", "0s")
        self.assertEqual({check["state"] for check in answer["checks"]}, {"not-run"})

    def test_its_destination_can_be_planned_with(self):
        done = run("doctor", "--json")
        destination = json.dumps(document(done)["destination"]).encode()
        record = ROOT / "docs/formats/record.example.json"
        planned = run("plan", "--record", record, "--destination", "-", "--json", stdin=destination)
        self.assertIn(document(planned)["verdict"], {"accepted", "refused"}, planned.stderr)


if __name__ == "__main__":
    unittest.main()
