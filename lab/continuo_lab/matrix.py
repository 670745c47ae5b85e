"""Runs everything on every host and kernel, and says which requirement was seen to work where.

A column is one kernel on one host. Its jobs run each in a boot of its own, so that an emulated host
that dies takes one job with it. What a job finds becomes the cells of the table: `works` was seen,
`absent` is what the kernel itself says that it lacks, `quirk` is there and does other than it says
(and continuo goes around it), `FAILED` is ours to mend, `not run` comes with its reason.
"""

import fnmatch
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from .evidence import REQUIREMENTS, Requirement
from .progress import Progress

WORKS, ABSENT, QUIRK, FAILED, NOT_RUN = "works", "absent", "quirk", "FAILED", "not run"
NONE = "-"  # there is no such thing on this architecture
_ORDER = (FAILED, QUIRK, WORKS, ABSENT, NOT_RUN)  # what a cell says where its evidence differs
_DOCTOR = {"works": WORKS, "absent": ABSENT, "broken": QUIRK, "not-run": NOT_RUN}
_TOOL = Path(__file__).resolve().parents[1] / "continuo-lab"
_SCALING = _TOOL.parent / "scaling/run"
_LINUX_GUEST = _TOOL.parents[1] / "tests/cli/test_vm_linux_arm64_lab.py"
_MOVES = _TOOL.parent / "crosshost/moves"
_TESTS = ("continuo_kvm_test", "continuo_vmm_witness_test", "continuo_vmm_migration_test")
_JOB_SECONDS = 900
_SEQUENCES = 1000  # of controls and guest actions, held against the model
_SCHEMA = "continuo/lab-matrix/1"


@dataclass(frozen=True)
class Column:
    host: str
    kernel: str

    def title(self) -> str:
        return f"{self.host} {self.kernel}"

    def architecture(self) -> str:
        return self.host.partition("-")[0]

    def name(self) -> str:
        return f"{self.host}/{self.kernel}"


@dataclass(frozen=True)
class Finding:
    job: str
    key: str
    state: str
    note: str = ""


@dataclass
class Results:
    """What was seen in one column."""

    column: Column
    release: str = ""
    not_run: str = ""  # why the whole column was not
    findings: List[Finding] = field(default_factory=list)
    figures: Dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Done:
    """One run of continuo-lab."""

    code: int
    stdout: str
    stderr: str
    error: str = ""  # of the tool itself
    release: str = ""
    first_output_s: Optional[float] = None


def run_inside(column: Column, arguments: Sequence[str]) -> Done:
    command = [str(_TOOL), "run", "--host", column.host, "--kernel", column.kernel, "--json",
               "--quiet", "--timeout", str(_JOB_SECONDS), "--", *arguments]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", check=False)  # fmt: skip
    return parse_done(done.returncode, done.stdout, done.stderr)


def parse_done(code: int, stdout: str, stderr: str) -> Done:
    try:
        told = json.loads(stdout)
    except ValueError:
        return Done(code, "", "", error=(stderr or stdout).strip() or f"exit code {code}")
    if "error" in told:
        return Done(code, "", "", error=str(told["error"]).splitlines()[0])
    return Done(
        code,
        told.get("stdout", ""),
        told.get("stderr", ""),
        release=told.get("kernel", ""),
        first_output_s=told.get("first_output_seconds"),
    )


# -- jobs: what they run, and what they find --


def doctor(column: Column, results: Results) -> None:
    done = _once_more(column, ["continuo", "doctor", "--json"], _is_json)
    results.release = results.release or done.release
    if done.error or not _is_json(done):
        _failed(results, "doctor", done)
        return
    if done.first_output_s is not None:
        results.figures["boot to first result"] = f"{done.first_output_s:.1f} s"
    report = json.loads(done.stdout)
    results.figures["verdict"] = report["verdict"]
    for check in report["checks"]:
        state = _DOCTOR[check["state"]]
        results.findings.append(Finding("doctor", check["id"], state, check["evidence"]))


def tests(column: Column, results: Results) -> None:
    for program in _TESTS:
        done = _once_more(column, [program, "--gtest_output=xml:/proc/self/fd/2"], _all_passed)
        found = gtest_findings(done.stderr)
        results.findings += found
        if done.error or not found or (done.code and not any(f.state == FAILED for f in found)):
            _failed(results, "tests", done, program)


def demo(column: Column, results: Results) -> None:
    done = _once_more(column, ["continuo", "demo", "--host", "local", "--json"], _succeeded)
    if done.error or not _is_json(done):
        _failed(results, "demo", done)
        return
    found, figures = demo_findings(json.loads(done.stdout))
    results.findings += found
    results.figures.update(figures)


def bench(column: Column, results: Results) -> None:
    done = _once_more(column, ["continuo", "bench", "counter", "--json"], _is_json)
    if done.error or not _is_json(done):
        _failed(results, "bench", done)
        return
    for read in json.loads(done.stdout)["series"]:
        reason = read["no_cost"]
        state = WORKS if reason is None else NOT_RUN
        results.findings.append(Finding("bench", read["id"], state, (reason or {}).get("what", "")))


def scaling(column: Column, results: Results) -> None:
    """All in one boot, which takes minutes of processor time there."""
    done = subprocess.run([str(_SCALING), "--kernel", column.kernel, "--json"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", check=False)  # fmt: skip
    try:
        (told,) = json.loads(done.stdout)
    except ValueError:
        _failed(results, "scaling", Done(done.returncode, done.stdout, done.stderr))
        return
    results.release = told["release"]
    results.not_run = told["not_run"]
    results.findings += [Finding(**found) for found in told["findings"]]


def differential(column: Column, results: Results) -> None:
    """A mismatch is an answer: no second boot for it."""
    arguments = ["continuo_differential", "--json", "--quiet", "--sequences", str(_SEQUENCES)]
    done = _once_more(column, arguments, _is_json)
    if done.error or not _is_json(done):
        _failed(results, "differential", done)
        return
    found, figures = differential_findings(json.loads(done.stdout))
    results.findings.append(found)
    results.figures.update(figures)


def linux(column: Column, results: Results) -> None:
    """A guest with the column's own kernel boots, resets and moves; each test boots the host once."""
    where = {"CONTINUO_LAB_HOST": column.host, "CONTINUO_LAB_KERNEL": column.kernel}
    done = subprocess.run([sys.executable, "-B", str(_LINUX_GUEST), "-v"],
                          env={**os.environ, **where}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", check=False)  # fmt: skip
    found = unittest_findings(done.stderr)
    results.findings += found
    if not found or (done.returncode and not any(f.state == FAILED for f in found)):
        _failed(results, "linux", Done(done.returncode, done.stdout, done.stderr))


def unittest_findings(text: str) -> List[Finding]:
    """The tests of a Python program that told of each (-v)."""
    found = []
    verdicts = {"ok": WORKS, "FAIL": FAILED, "ERROR": FAILED}
    for line in text.splitlines():
        match = re.match(r"test_(\w+) \(.*\.\.\. (ok|FAIL|ERROR|skipped '(.*)')$", line)
        if match is not None:
            state = verdicts.get(match.group(2), NOT_RUN)
            found.append(Finding("linux", match.group(1), state, match.group(3) or ""))
    return found


Job = Callable[[Column, Results], None]
JOBS: Dict[str, Job] = {
    "doctor": doctor,
    "tests": tests,
    "demo": demo,
    "bench": bench,
}


def jobs_of(column: Column) -> Dict[str, Job]:
    if column.host == "x86-vmx-scaling":
        return {"scaling": scaling}
    if column.architecture() == "x86":
        return {**JOBS, "differential": differential}
    return {**JOBS, "linux": linux}


def _once_more(column: Column, arguments: Sequence[str], good: Callable[[Done], bool]) -> Done:
    """QEMU's TCG loses a host once in many runs; a second boot is told of on stderr."""
    done = run_inside(column, arguments)
    if good(done) or done.code in _NOT_HAD:
        return done
    print(f"continuo-lab: {column.title()}: {arguments[0]}: {done.error or f'exit code {done.code}'};"
          " once more", file=sys.stderr)  # fmt: skip
    return run_inside(column, arguments)


_NOT_HAD = (120, 121, 125, 126, 127)  # a second try changes nothing


def _is_json(done: Done) -> bool:
    try:
        json.loads(done.stdout)
    except ValueError:
        return False
    return True


def _succeeded(done: Done) -> bool:
    return done.code == 0 and not done.error


def _all_passed(done: Done) -> bool:
    found = gtest_findings(done.stderr)
    return done.code == 0 and bool(found)


def _failed(results: Results, job: str, done: Done, what: str = "") -> None:
    why = done.error or (done.stderr.strip().splitlines() or [f"exit code {done.code}"])[-1]
    results.findings.append(Finding(job, what or job, FAILED, why))


def gtest_findings(text: str) -> List[Finding]:
    """The cases of a GoogleTest program in the XML that stands somewhere in `text`."""
    match = re.search(r"<\?xml.*</testsuites>", text, re.DOTALL)
    if match is None:
        return []
    found = []
    for case in xml.fromstring(match.group(0)).iter("testcase"):
        suite = case.get("classname", "").rpartition("/")[2]
        key = f"{suite}.{case.get('name', '')}"
        skipped = case.find("skipped")
        if case.find("failure") is not None:
            message = case.find("failure").get("message", "")
            found.append(Finding("tests", key, FAILED, _last_line(message)))
        elif skipped is not None or case.get("result") == "skipped":
            message = skipped.get("message", "") if skipped is not None else ""
            found.append(Finding("tests", key, NOT_RUN, _last_line(message)))
        else:
            found.append(Finding("tests", key, WORKS))
    return found


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"


def demo_findings(told: dict) -> Tuple[List[Finding], Dict[str, str]]:
    found, seams = [], {}
    for leg in told["runs"]:
        policy = leg["policy"]
        if "error" in leg:
            found.append(Finding("demo", policy, NOT_RUN, leg["error"].get("what", "refused")))
            continue
        certificate = leg["certificate"]
        state = WORKS if certificate["holds"] else FAILED
        found.append(Finding("demo", policy, state))
        for clock in certificate["clocks"]:
            name = f"{clock['clock']} seam, {clock['unit']}"
            seams[name] = max(seams.get(name, 0), abs(int(clock["seam"])))
        for seen in certificate["observed"]:
            if seen.get("kvmclock_seam_ns") is not None:
                name = "kvmclock seam the guest read, ns"
                seams[name] = max(seams.get(name, 0), abs(int(seen["kvmclock_seam_ns"])))
    return found, {name: str(worst) for name, worst in seams.items()}


def differential_findings(told: dict) -> Tuple[Finding, Dict[str, str]]:
    """Whether the kernel and the model agree, and over how much."""
    figures = {"sequences the model agrees in": f"{told['sequences']} ({told['comparisons']} values)"}
    if told["mismatches"]:
        first = told["mismatches"][0]
        what = "; ".join(f"{one['what']}: model {one['model']}, kernel {one['kernel']}"
                         for one in first["differences"])  # fmt: skip
        return Finding("differential", "model", FAILED, f"seed {first['seed']}: {what}"), {}
    if told["sequences"] < _SEQUENCES:
        return Finding("differential", "model", FAILED, f"only {told['sequences']} sequences"), figures
    return Finding("differential", "model", WORKS), figures


# -- the table --


def cell(requirement: Requirement, results: Results) -> Tuple[str, str]:
    """State and note of one requirement in one column."""
    if requirement.architecture not in ("", results.column.architecture()):
        return NONE, ""
    if results.not_run:
        return NOT_RUN, results.not_run
    matching = [
        finding
        for finding in results.findings
        if any(
            evidence.job == finding.job and fnmatch.fnmatchcase(finding.key, evidence.pattern + "*")
            for evidence in requirement.evidence
        )
    ]
    if not matching:
        return NOT_RUN, requirement.elsewhere or "nothing on this host shows it"
    state = min((finding.state for finding in matching), key=_ORDER.index)
    notes = [f"{finding.key}: {finding.note}" for finding in matching
             if finding.state == state and finding.note]  # fmt: skip
    return state, notes[0] if notes and state != WORKS else ""


def chosen(columns: Sequence[Column], only: Sequence[str]) -> List[Column]:
    """All of them where nothing was asked for."""
    return [
        column
        for column in columns
        if not only or any(fnmatch.fnmatchcase(column.name(), pattern) for pattern in only)
    ]


def run_columns(
    columns: Sequence[Column], progress: Progress, done: Sequence[Results] = (),
    keep: Callable[[Sequence[Results]], None] = lambda _: None,
) -> List[Results]:  # fmt: skip
    """`done` are columns of an earlier run that are not run again; `keep` is told after each."""
    everything = []
    for number, column in enumerate(columns, 1):
        earlier = [results for results in done if results.column == column]
        if earlier:
            everything += earlier[:1]
            continue
        results = Results(column)
        began = time.monotonic()
        for name, job in jobs_of(column).items():
            with progress.stage(f"[{number}/{len(columns)}] {column.title()}: {name}"):
                job(column, results)
            if name == "doctor" and _host_cannot_be_had(results):
                break
        results.seconds = time.monotonic() - began
        everything.append(results)
        keep(everything)
    return everything


def between_hosts(progress: Progress) -> Tuple[str, str]:
    """What the moves between two hosts printed, and what went wrong, if anything."""
    with progress.stage("moves between two hosts"):
        done = subprocess.run([str(_MOVES), "--full"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", check=False)  # fmt: skip
    if done.returncode == 0:
        return done.stdout, ""
    return done.stdout, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _host_cannot_be_had(results: Results) -> bool:
    """Where the first job could not even boot, the column was not run; that is no failure of ours."""
    first = results.findings[0] if results.findings else None
    if results.release or first is None or first.state != FAILED:
        return False
    results.not_run = first.note
    results.findings = []
    return True


def markdown(everything: Sequence[Results], moves: str = "") -> str:
    notes: Dict[str, int] = {}
    lines = [
        "# What was seen on real kernels",
        "",
        "Written by `continuo-lab matrix`, of which `make lab` is the whole; every cell comes from a run on that kernel. **works**: seen. "
        "**absent**: the kernel says that it lacks it. **quirk**: it is there and does other than it "
        "says, and continuo goes around it. **not run** and **FAILED**: see the note.",
        "",
        "## Hosts",
        "",
    ]
    lines += _aligned(_host_rows(everything))
    lines += ["", "## Requirements", ""]
    header = ["S", "what", *(results.column.title() for results in everything)]
    rows = [header]
    for requirement in REQUIREMENTS:
        row = [requirement.number, requirement.title]
        for results in everything:
            state, note = cell(requirement, results)
            mark = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
            row.append(state + mark)
        rows.append(row)
    lines += _aligned(rows)
    lines += ["", "## Notes", ""]
    lines += [f"{number}. {_escaped(note)}" for note, number in notes.items()]
    if moves:
        lines += ["", "## Between two hosts", "", "`lab/crosshost/moves --full`:", ""]
        lines += ["```", *moves.rstrip("\n").splitlines(), "```"]
    return "\n".join(lines) + "\n"


def write(path: str, text: str) -> None:
    """At once or not at all: a table that is half written would say too little."""
    beside = f"{path}.new"
    Path(beside).write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _host_rows(everything: Sequence[Results]) -> List[List[str]]:
    figures = list(dict.fromkeys(name for results in everything for name in results.figures))
    rows = [["host", "kernel", *figures]]
    for results in everything:
        release = results.release or results.column.kernel
        told = [results.figures.get(name, "-") for name in figures]
        rows.append([results.column.host, release, *told])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> List[str]:
    cells = [[_escaped(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |"
             for row in cells]  # fmt: skip
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def as_json(everything: Sequence[Results]) -> dict:
    return {
        "schema": _SCHEMA,
        "columns": [
            {
                "host": results.column.host,
                "kernel": results.column.kernel,
                "release": results.release,
                "not_run": results.not_run,
                "figures": results.figures,
                "seconds": round(results.seconds, 1),
                "cells": [
                    dict(zip(("requirement", "state", "note"), (r.number, *cell(r, results))))
                    for r in REQUIREMENTS
                ],
                "findings": [vars(finding) for finding in results.findings],
            }
            for results in everything
        ],
    }


def from_json(told: dict) -> List[Results]:
    """The columns in what as_json() made; ValueError where it is something else."""
    if told.get("schema") != _SCHEMA:
        raise ValueError(f"its schema is {told.get('schema')!r} and not {_SCHEMA}")
    return [
        Results(
            Column(column["host"], column["kernel"]),
            release=column["release"],
            not_run=column["not_run"],
            findings=[Finding(**finding) for finding in column["findings"]],
            figures=column["figures"],
            seconds=column["seconds"],
        )
        for column in told["columns"]
    ]


def failures(everything: Sequence[Results]) -> List[str]:
    return [
        f"{results.column.title()}: {finding.key}: {finding.note}"
        for results in everything
        for finding in results.findings
        if finding.state == FAILED
    ]
