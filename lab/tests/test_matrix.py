"""The matrix: what runs found becomes cells. No host is booted."""

import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from continuo_lab import evidence, matrix  # noqa: E402
from continuo_lab.evidence import Evidence, Requirement  # noqa: E402
from continuo_lab.progress import Progress  # noqa: E402
from continuo_lab.matrix import ABSENT, FAILED, NOT_RUN, QUIRK, WORKS, Column, Finding, Results  # noqa: E402

GTEST = """text of the program before it
<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="3" name="AllTests">
  <testsuite name="Kvm/MachineContract">
    <testcase name="Moves/kvm" status="run" result="completed" classname="Kvm/MachineContract" />
    <testcase name="Scales/kvm" status="run" result="skipped" classname="Kvm/MachineContract">
      <skipped message="contract_tests.cc:100&#x0A;this host: no scaling"><![CDATA[x]]></skipped>
    </testcase>
    <testcase name="Stays/kvm" status="run" result="completed" classname="Kvm/MachineContract">
      <failure message="a.cc:1&#x0A;off by 3 ticks" type=""><![CDATA[x]]></failure>
    </testcase>
  </testsuite>
</testsuites>
text after it
"""


def results(*findings: Finding) -> Results:
    return Results(Column("x86-svm", "6.12"), release="6.12.1", findings=list(findings))


class Findings(unittest.TestCase):
    def test_cases_of_a_test_program(self):
        found = {finding.key: finding for finding in matrix.gtest_findings(GTEST)}
        self.assertEqual(found["MachineContract.Moves/kvm"].state, WORKS)
        skipped = found["MachineContract.Scales/kvm"]
        self.assertEqual((skipped.state, skipped.note), (NOT_RUN, "this host: no scaling"))
        failed = found["MachineContract.Stays/kvm"]
        self.assertEqual((failed.state, failed.note), (FAILED, "off by 3 ticks"))

    def test_a_program_that_died_has_no_cases(self):
        self.assertEqual(matrix.gtest_findings("Segmentation fault"), [])
        self.assertEqual(matrix.gtest_findings(GTEST.partition("</testsuites>")[0]), [])

    def test_cases_of_a_python_program(self):
        told = """test_boots (__main__.Guest.test_boots) ... ok
test_moves (__main__.Guest.test_moves) ... FAIL
test_waits (__main__.Guest.test_waits) ... skipped 'not built'
FAIL: test_moves (__main__.Guest.test_moves)
"""
        found = [(one.key, one.state, one.note) for one in matrix.unittest_findings(told)]
        self.assertEqual(found, [("boots", WORKS, ""), ("moves", FAILED, ""), ("waits", NOT_RUN, "not built")])

    def test_a_seam_is_the_worst_of_its_clock(self):
        clocks = [{"clock": "tsc", "unit": "ticks", "seam": seam} for seam in (0, -4, 3)]
        certificate = {"holds": True, "clocks": clocks, "observed": [{"kvmclock_seam_ns": -1}]}
        told = {"runs": [{"policy": "advance", "certificate": certificate},
                         {"policy": "freeze", "error": {"what": "nothing moves the TSC"}}]}  # fmt: skip
        found, figures = matrix.demo_findings(told)
        self.assertEqual([finding.state for finding in found], [WORKS, NOT_RUN])
        self.assertEqual(figures["tsc seam, ticks"], "4")
        self.assertEqual(figures["kvmclock seam the guest read, ns"], "1")

    def test_a_model_that_agrees_and_one_that_does_not(self):
        told = {"sequences": 1000, "comparisons": 9, "mismatches": []}
        found, figures = matrix.differential_findings(told)
        self.assertEqual((found.state, figures), (WORKS, {"sequences the model agrees in": "1000 (9 values)"}))
        difference = {"what": "vCPU 0: offset", "model": "0x1", "kernel": "0x2"}
        told["mismatches"] = [{"seed": 7, "differences": [difference]}]
        found, _ = matrix.differential_findings(told)
        self.assertEqual((found.state, found.note),
                         (FAILED, "seed 7: vCPU 0: offset: model 0x1, kernel 0x2"))  # fmt: skip

    def test_a_differential_run_that_was_cut_short_is_a_failure(self):
        found, _ = matrix.differential_findings({"sequences": 12, "comparisons": 9, "mismatches": []})
        self.assertEqual(found.state, FAILED)

    def test_a_certificate_that_does_not_hold_is_a_failure(self):
        certificate = {"holds": False, "clocks": [], "observed": []}
        found, _ = matrix.demo_findings({"runs": [{"policy": "freeze", "certificate": certificate}]})
        self.assertEqual(found[0].state, FAILED)

    def test_what_the_tool_says_of_itself(self):
        done = matrix.parse_done(121, json.dumps({"error": "no QEMU\n  log", "exit_code": 121}), "")
        self.assertEqual((done.code, done.error), (121, "no QEMU"))
        self.assertEqual(matrix.parse_done(1, "", "Traceback").error, "Traceback")


class Cells(unittest.TestCase):
    requirement = Requirement("S9.9", "x", (Evidence("doctor", "tsc"), Evidence("tests", "A.*")))

    def state(self, *findings: Finding) -> str:
        return matrix.cell(self.requirement, results(*findings))[0]

    def test_what_failed_outweighs_what_works(self):
        works, failed = Finding("tests", "A.x", WORKS), Finding("tests", "A.y", FAILED, "why")
        self.assertEqual(self.state(works, failed), FAILED)
        self.assertEqual(matrix.failures([results(works, failed)]), ["x86-svm 6.12: A.y: why"])

    def test_a_quirk_is_told_though_the_rest_works(self):
        self.assertEqual(self.state(Finding("doctor", "tsc", QUIRK), Finding("tests", "A.x", WORKS)), QUIRK)

    def test_a_skip_is_no_pass(self):
        self.assertEqual(self.state(Finding("tests", "A.x", NOT_RUN, "no KVM")), NOT_RUN)
        self.assertEqual(self.state(Finding("doctor", "tsc", ABSENT, "0")), ABSENT)

    def test_evidence_of_another_job_does_not_count(self):
        self.assertEqual(self.state(Finding("demo", "tsc", WORKS)), NOT_RUN)

    def test_a_column_that_was_not_run_says_why(self):
        column = Results(Column("arm64-ecv", "7.2"), not_run="no QEMU 10")
        self.assertEqual(matrix.cell(self.requirement, column), (NOT_RUN, "no QEMU 10"))


class Choice(unittest.TestCase):
    columns = [Column(host, kernel) for host in ("x86-svm", "arm64-vhe") for kernel in ("6.1", "6.12")]

    def test_all_or_those_asked_for(self):
        self.assertEqual(matrix.chosen(self.columns, []), self.columns)
        self.assertEqual(matrix.chosen(self.columns, ["*/6.1"]), self.columns[::2])
        self.assertEqual(matrix.chosen(self.columns, ["x86-svm/6.12"]), self.columns[1:2])
        self.assertEqual(matrix.chosen(self.columns, ["nothing"]), [])


class Resuming(unittest.TestCase):
    def test_what_was_kept_comes_back_and_is_not_run_again(self):
        before = results(Finding("doctor", "tsc", QUIRK, "lost"))
        before.figures["tsc seam, ticks"] = "0"
        back = matrix.from_json(json.loads(json.dumps(matrix.as_json([before]))))
        self.assertEqual(back, [before])
        told = []
        everything = matrix.run_columns([before.column], Progress(quiet=True), back, told.append)
        self.assertEqual((everything, told), ([before], []))

    def test_another_file_is_refused(self):
        with self.assertRaises(ValueError):
            matrix.from_json({"schema": "continuo/demo/1"})


class Table(unittest.TestCase):
    def test_every_requirement_has_evidence_or_a_reason(self):
        for requirement in evidence.REQUIREMENTS:
            with self.subTest(requirement.number):
                self.assertNotEqual(bool(requirement.evidence), bool(requirement.elsewhere))

    def test_every_row_is_there_aligned_and_notes_are_numbered_once(self):
        text = matrix.markdown([results(Finding("doctor", "tsc_scaling", ABSENT, "a|b"))] * 2)
        rows = [line for line in text.splitlines() if line.startswith("| S")]
        self.assertEqual(len(rows), len(evidence.REQUIREMENTS) + 1)
        self.assertEqual(len({len(row) for row in rows}), 1)
        self.assertEqual(text.count("a\\|b"), 1)


if __name__ == "__main__":
    unittest.main()
