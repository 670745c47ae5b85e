"""Runs the scenarios, judges what the hosts wrote, prints what was found."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence

from continuo_lab.errors import HOST_DIED
from continuo_lab.machine_tsc import machine_tsc_khz

import judge
from judge import INSIDE, OUTSIDE, Judged, Move, Run
from scenarios import CAUGHT, FAST, FULL, REFUSED, Boot, Scenario

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = _ROOT / "build" / "continuo-crosshost"
_LAB = _ROOT / "lab" / "continuo-lab"
_SECONDS_A_MOVE_MAX = 60  # of a machine that is busy with other things
_BOOTS = 2  # of a pair whose host died: QEMU's TCG loses one now and then (docs/lab.md)


class Failed(Exception):
    """The pair did not come to an end."""


@dataclass
class Row:
    """One clock in one scenario: what the table has a line of."""

    scenario: str
    elapsed_by: str
    clock: str
    errors_ns: List[int] = field(default_factory=list)  # the largest that each may have been
    bounds_ns: List[int] = field(default_factory=list)
    ratios: List[float] = field(default_factory=list)
    verdicts: List[str] = field(default_factory=list)

    def take(self, judged: Judged, khz: int) -> None:
        def in_ns(value: int) -> int:
            return -(-value * 10**6 // khz) if judged.unit == "ticks" else value

        self.errors_ns.append(in_ns(judged.error.largest()))
        self.bounds_ns.append(in_ns(judged.bound))
        self.ratios.append(judged.error.largest() / max(judged.bound, 1))
        self.verdicts.append(judged.verdict())

    def as_json(self) -> Dict:
        return {
            "scenario": self.scenario,
            "elapsed_by": self.elapsed_by,
            "clock": self.clock,
            "judged": len(self.verdicts),
            "outside": self.verdicts.count(OUTSIDE),
            "undecided": len(self.verdicts) - self.verdicts.count(INSIDE)
            - self.verdicts.count(OUTSIDE),
            "largest_error_ns": max(self.errors_ns),
            "smallest_bound_ns": min(self.bounds_ns),
            "median_bound_ns": round(statistics.median(self.bounds_ns)),
            "largest_ratio": max(self.ratios),
        }  # fmt: skip


@dataclass
class BootReport:
    boot: Boot
    run: Run
    rows: List[Row]
    complaints: List[str]
    moved: int
    refused: int
    caught: int
    downtimes_ns: List[int]
    seconds: float

    def as_json(self) -> Dict:
        common = self.run.common_difference
        return {
            "name": self.boot.name,
            "kernels": self.run.kernels,
            "tsc_khz": self.run.tsc_khz,
            "moves": self.moved,
            "refused": self.refused,
            "planted_errors_caught": self.caught,
            "median_downtime_ns": round(statistics.median(self.downtimes_ns))
            if self.downtimes_ns else None,
            "counters": {
                "one_rate": common.least <= common.most,
                "difference_known_to_ticks": common.most - common.least,
                "rate_known_to_ppb": self.run.rate_ppb,
                "seconds": self.run.seconds,
                "widest_pairing_ticks": max(self.run.pairing_widths),
            },
            "rows": [row.as_json() for row in self.rows],
            "complaints": self.complaints,
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


# ---- the hosts ----


def run_boot(boot: Boot, options) -> Dict:
    """What `continuo-lab pair --json` printed."""
    for number in range(1, _BOOTS + 1):
        found = _run_pair(boot, options)
        if found.get("exit_code") != HOST_DIED or number == _BOOTS:
            return found
        _say(f"a host died, and all is done again: {_errors_in(found)}")
    raise AssertionError("the last boot returns")


def _run_pair(boot: Boot, options) -> Dict:
    moves = sum(scenario.moves for scenario in boot.scenarios)
    with tempfile.TemporaryDirectory(prefix="crosshost-") as folder:
        steps = Path(folder) / "steps.json"
        steps.write_text(json.dumps([scenario.step() for scenario in boot.scenarios]))
        command = [
            *(str(_LAB), "pair", "--json", "--quiet"),
            *("--timeout", str(120 + _SECONDS_A_MOVE_MAX * moves)),
            *("--kernel-a", options.kernel_a, "--kernel-b", boot.kernel_b or options.kernel_b),
            *_frequency_options(boot),
            *("--file", f"{steps}:/steps.json"),
            *("--", str(_PROGRAM), "shuttle", "/steps.json"),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              check=False)  # fmt: skip
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise Failed(f"continuo-lab ended with {done.returncode}") from None


def _frequency_options(boot: Boot) -> List[str]:
    if boot.icount_b:
        return ["--icount-b"]
    if boot.tsc_ppm_b == 0:
        return []
    khz = machine_tsc_khz()
    if khz is None:
        raise Failed("this machine has no TSC, so what a kernel believes of it cannot be set")
    believed = khz + khz * boot.tsc_ppm_b // 10**6
    return ["--tsc-khz-a", str(khz), "--tsc-khz-b", str(believed)]


def _errors_in(found: Dict) -> str:
    texts = [found.get("error", "")]
    for name, host in found.get("hosts", {}).items():
        texts += [f"{name}: {host[key].strip()}" for key in ("error", "stderr") if host.get(key)]
    return "; ".join(text for text in texts if text) or f"exit code {found.get('exit_code')}"


# ---- what came of it ----


def report_on(boot: Boot, found: Dict, seconds: float) -> BootReport:
    if found.get("exit_code") != 0:
        raise Failed(_errors_in(found))
    lines = {
        name: [json.loads(line) for line in host["stdout"].splitlines()]
        for name, host in found["hosts"].items()
    }
    run = judge.read_run(lines["a"], lines["b"])
    report = BootReport(boot, run, [], [], 0, 0, 0, [], seconds)
    for scenario in boot.scenarios:
        moves = [move for move in run.moves if move.step == scenario.name]
        if len(moves) != scenario.moves:
            report.complaints.append(f"{scenario.name}: {len(moves)} moves, not {scenario.moves}")
        for move in moves:
            _take(report, scenario, move)
    if run.end["backward_steps"] != 0:
        report.complaints.append(f"the witness saw {run.end['backward_steps']} backward steps")
    return report


def _take(report: BootReport, scenario: Scenario, move: Move) -> None:
    def complain(text: str) -> None:
        report.complaints.append(f"{scenario.name}, move {move.number}: {text}")

    if not move.moved():
        return _take_refusal(report, scenario, move, complain)
    report.downtimes_ns.append(move.left["migration"]["downtime_ns"])
    if scenario.expect == REFUSED:
        return complain("it took place, and should have been refused")
    for text in judge.odd_readings(move):
        complain(text)
    judged = judge.judge(move, report.run.tsc_khz["a"])
    if scenario.expect == CAUGHT:
        report.caught += 1
        for each in judged:
            if each.verdict() != OUTSIDE:
                complain(f"{each.clock} is wrong by up to {each.error.largest()} {each.unit}, its "
                         f"bound is {each.bound}, and that was not seen to be false")  # fmt: skip
        return None
    report.moved += 1
    for each in judged:
        _row(report.rows, scenario, move, each).take(each, report.run.tsc_khz["a"])
        if each.verdict() != INSIDE:
            complain(
                f"{each.clock}: the true error is {each.error.least} to {each.error.most} "
                f"{each.unit}, the certified bound {each.bound}: {each.verdict()}"
            )
    for text in _unexpected(scenario, move, judged):
        complain(text)
    return None


def _take_refusal(report: BootReport, scenario: Scenario, move: Move, complain) -> None:
    said = move.arrived.get("error", {})
    if scenario.expect != REFUSED:
        return complain(f"it was refused: {said.get('where')}: {said.get('what')}")
    report.refused += 1
    if said.get("code") != "refused":
        complain(f"the destination's reason is of kind {said.get('code')}, not refused")
    for words in scenario.told:
        if words not in said.get("what", ""):
            complain(f"the refusal does not say '{words}': {said.get('what')}")
    if not move.left.get("runs_on"):
        complain("the VM does not go on where it was")
    return None


def _unexpected(scenario: Scenario, move: Move, judged: Sequence[Judged]) -> Iterable[str]:
    certificate = move.certificate
    if not certificate["holds"]:
        yield "the certificate itself does not hold"
    to_b = move.source == "a"
    expected = {"elapsed_by": scenario.elapsed_by, "rate": scenario.rate_on_b if to_b else "equal"}
    for key, wanted in expected.items():
        if certificate[key] != wanted:
            yield f"{key} is {certificate[key]}, not {wanted}"
    notes = " / ".join(certificate["notes"])
    for words in scenario.told + (scenario.told_on_b if to_b else ()):
        if words not in notes:
            yield f"no note says '{words}': {notes or 'there are none'}"
    gap = next(each for each in judged if each.clock == "gap")
    if gap.bound < scenario.bound_at_least_ns:
        yield f"the gap's bound is {gap.bound} ns, below {scenario.bound_at_least_ns} ns"


def _row(rows: List[Row], scenario: Scenario, move: Move, judged: Judged) -> Row:
    clock = judged.clock.split()[0]
    elapsed_by = move.certificate["elapsed_by"]
    for row in rows:
        if (row.scenario, row.elapsed_by, row.clock) == (scenario.name, elapsed_by, clock):
            return row
    rows.append(Row(scenario.name, elapsed_by, clock))
    return rows[-1]


# ---- in words ----


def length(ns: float) -> str:
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def text_of(report: BootReport) -> str:
    run, common = report.run, report.run.common_difference
    lines = [
        f"{report.boot.name}: a {run.kernels['a']}, {run.tsc_khz['a']} kHz; "
        f"b {run.kernels['b']}, {run.tsc_khz['b']} kHz",
    ]
    width = common.most - common.least
    if report.boot.icount_b:
        lines.append("  b counts instructions: the counters are no pair, and nothing is judged")
    elif width >= 0:
        lines.append(
            f"  the truth: over {run.seconds:.0f} s the counters' difference is one, known to "
            f"{width} ticks (one rate to {run.rate_ppb:.1f} ppb)"
        )
    else:
        lines.append(
            f"  the truth: over {run.seconds:.0f} s the counters' difference moved by {-width} "
            "ticks or more; each move is judged by the pairings before and after it"
        )
    lines.append(f"  {'scenario':<38}{'by':<10}{'clock':<10}{'judged':>7}{'true error':>12}"
                 f"{'least bound':>13}{'median':>10}{'error/bound':>13}  verdict")  # fmt: skip
    lines += [_line_of(row) for row in report.rows]
    lines.append(
        f"  {report.moved} moves, {report.refused} refused as they must be, "
        f"{report.caught} planted errors; "
        + (f"median downtime {length(statistics.median(report.downtimes_ns))}; "
           if report.downtimes_ns else "")
        + f"{report.seconds:.0f} s"
    )  # fmt: skip
    lines += [f"  VIOLATION: {text}" for text in report.complaints]
    return "\n".join(lines)


def _line_of(row: Row) -> str:
    found = row.as_json()
    bad = found["outside"] + found["undecided"]
    return (
        f"  {row.scenario:<38}{row.elapsed_by:<10}{row.clock:<10}{found['judged']:>7}"
        f"{length(found['largest_error_ns']):>12}{length(found['smallest_bound_ns']):>13}"
        f"{length(found['median_bound_ns']):>10}{found['largest_ratio']:>13.2g}  "
        + (f"{bad} NOT inside" if bad else "inside")
    )


def _say(text: str) -> None:
    print(f"moves: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if not _PROGRAM.is_file():
        _say(f"error: {_PROGRAM} is not built; run: make build")
        return 2
    reports: List[BootReport] = []
    failure: Optional[str] = None
    for boot in FULL if options.full else FAST:
        began = time.monotonic()
        try:
            found = run_boot(boot, options)
            reports.append(report_on(boot, found, time.monotonic() - began))
        except (Failed, judge.Unusable) as error:
            failure = f"{boot.name}: {error}"
            _say(f"error: {failure}")
            break
        if not options.json:
            print(text_of(reports[-1]), flush=True)
    holds = failure is None and not any(report.complaints for report in reports)
    moved = sum(report.moved for report in reports)
    if options.json:
        print(json.dumps({"schema": "continuo/crosshost-moves/1", "holds": holds, "moves": moved,
                          "failure": failure, "boots": [report.as_json() for report in reports]},
                         indent=2))  # fmt: skip
    elif failure is None:
        print(f"{moved} moves: " + ("every true error was inside its certified bound" if holds
                                    else "NOT as it must be"))  # fmt: skip
    return 2 if failure is not None else 0 if holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moves",
        description="Moves a VM between two emulated hosts whose clocks are wrong, and holds the "
        "true error of every clock against the bound that its certificate gives.",
        epilog="exit status: 0 all inside and as expected, 1 not, 2 the hosts did not come to an "
        "end",
    )
    parser.add_argument("--full", action="store_true",
                        help="more than 50 moves, and hosts of other frequencies")
    parser.add_argument("--kernel-a", default="6.12", metavar="K", help="Linux of host a (6.12)")
    parser.add_argument("--kernel-b", default="6.12", metavar="K", help="Linux of host b (6.12)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
