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

    def test_quirks_says_of_every_row_what_was_seen(self):
        rows = json_of("doctor", "--quirks")["quirk_table"]
        self.assertGreater(len(rows), 0)
        for row in rows:
            self.assertTrue(row["id"] and row["releases"] and row["evidence"] and row["instead"], row)
            self.assertIn(row["seen"], {True, False, None})
            known = row["by_release"] if row["seen"] is None else row["seen"]
            self.assertEqual(row["in_force"], bool(known), row)
            differ = None not in (row["seen"], row["by_release"]) and row["seen"] != row["by_release"]
            self.assertEqual(row["disagrees"], differ, row)
        by_checks = {row["id"]: row["seen"] for row in json_of("doctor")["quirk_table"]}
        self.assertEqual(set(by_checks), {row["id"] for row in rows})

    def test_quirks_as_text(self):
        done = run("doctor", "--quirks")
        self.assertIn(b"tsc_sync_on_first_write", done.stdout)
        self.assertIn(b"before 6.7", done.stdout)

    def test_its_destination_can_be_planned_with(self):
        done = run("doctor", "--json")
        destination = json.dumps(document(done)["destination"]).encode()
        record = ROOT / "docs/formats/record.example.json"
        planned = run("plan", "--record", record, "--destination", "-", "--json", stdin=destination)
        self.assertIn(document(planned)["verdict"], {"accepted", "refused"}, planned.stderr)


if __name__ == "__main__":
    unittest.main()
