"""A Linux guest between two hosts: runs the pair, judges what it wrote, prints what was found."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterable, List, Sequence

import linux_guest
from continuo_lab.errors import HOST_DIED

import judge
from judge import INSIDE, Interval, Judged, Move, Unusable

_ROOT = Path(__file__).resolve().parents[2]
_SIDE = Path(__file__).resolve().parent / "linux_side.sh"
_CLOCK_LOOP = _ROOT / "tests" / "cli" / "clock_loop.c"
_LAB = _ROOT / "lab" / "continuo-lab"
_PROGRAMS = (_ROOT / "build" / "continuo", _ROOT / "build" / "continuo-crosshost")
_POLICIES = ("advance", "freeze", "advance-and-notify", "freeze-and-notify")
_BOOTS = 2  # of a pair whose host died: QEMU's TCG loses one now and then (docs/lab.md)

# The guest's shell hands each line to the loop, which answers for it.
_GUEST = """
mkfifo /tmp/ask
clock_loop </tmp/ask &
exec 3>/tmp/ask
echo "guest: ready"
while read -r line; do
    case $line in
    off) poweroff -f ;;
    *) echo ask >&3 ;;
    esac
done
"""


# ---- the hosts ----


def run_pair(policies: Sequence[str], options) -> Dict:
    """What `continuo-lab pair --json` printed."""
    with tempfile.TemporaryDirectory(prefix="linux-moves-") as name:
        folder = Path(name)
        linux_guest.kernel(folder / "vmlinuz")
        loop = linux_guest.compiled(_CLOCK_LOOP, folder / "clock_loop")
        linux_guest.initrd(folder / "initrd.gz", _GUEST, [loop])
        files = [folder / "vmlinuz", folder / "initrd.gz", _SIDE, *_PROGRAMS]
        command = [
            # Of one CPU each: with more, TCG loses a guest that patches its code (docs/lab.md).
            *(str(_LAB), "pair", "--json", "--quiet", "--smp", "1", "--timeout", str(options.timeout)),
            *("--kernel-a", options.kernel_a, "--kernel-b", options.kernel_b),
            *("--maxerror-a", "0.001", "--maxerror-b", "0.001", "--realtime-offset", "0"),
            *(word for file in files for word in ("--file", str(file))),
            *("--", "sh", str(_SIDE), str(folder), *map(str, _PROGRAMS), *policies),
        ]
        for number in range(1, _BOOTS + 1):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode != HOST_DIED or number == _BOOTS:
                break
            print("linux-moves: a host died, and all is done again", file=sys.stderr)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise Unusable(f"continuo-lab ended with {done.returncode}") from None


# ---- what they wrote ----


def _events(host: Dict) -> List[Dict]:
    return [json.loads(line) for line in host["stdout"].splitlines() if line.startswith("{")]


def _line_of(record: Dict) -> Dict:
    """kvmclock as the guest's own page has it: a record's line is read from there, or it says so."""
    if record["kvmclock"] is None or record["kvmclock"]["origin"] != "page":
        raise Unusable("the guest's page of kvmclock was not to be read")
    return record["kvmclock"]


def moves_of(found: Dict) -> List[Move]:
    """Each move, between the pairings before and after it."""
    events = {name: _events(host) for name, host in found["hosts"].items()}
    by_kind = {
        (event["event"], event["move"]): event
        for host in events.values() for event in host if "move" in event
    }  # fmt: skip
    pairings = [event for event in events["b"] if event["event"] == "pairing"]
    moves = []
    for number in range(1, len(pairings) // 2 + 1):
        try:
            left, arrived, captured = (
                by_kind[kind, number] for kind in ("left", "arrived", "captured")
            )
        except KeyError as missing:
            raise Unusable(f"move {number} has no {missing}") from None
        before, after = pairings[2 * number - 2 : 2 * number]
        record = captured["record"]
        page = _line_of(record)
        moves.append(
            Move(
                number,
                left["policy"],
                left["host"],
                {"record": left["sent"]["record"], "outcome": left["sent"]["outcome"],
                 "migration": left["sent"]["migration"]},
                {"certificate": arrived["received"]["certificate"], "outcome": "runs",
                 "vcpus": [{"tsc_offset": vcpu["tsc_offset"], "page": page}
                           for vcpu in record["vcpus"]]},
                Interval(min(before["difference_least"], after["difference_least"]),
                         max(before["difference_most"], after["difference_most"])),
            )
        )  # fmt: skip
        _line_of(moves[-1].left["record"])
    return moves


def guest_reports(found: Dict) -> List[Dict]:
    """What the guest's loop said, in the order of its stays: before the first move, then after each."""
    events = [event for host in found["hosts"].values() for event in _events(host)]
    said = [event for event in events if event["event"] == "guest"]
    return [event["clocks"] for event in sorted(said, key=lambda event: event["move"])]


# ---- what must be true ----


def complaints_of(move: Move, judged: Iterable[Judged]) -> Iterable[str]:
    if not move.certificate["holds"]:
        yield "the certificate does not hold"
    if move.certificate["policy"] != move.step:
        yield f"its policy is {move.certificate['policy']}, not {move.step}"
    for clock in move.certificate["clocks"]:
        if clock["clock"] == "tsc" and clock["seam"] != 0:
            yield f"the seam of vCPU {clock['vcpu']}'s TSC is {clock['seam']} ticks"
    for each in judged:
        if each.verdict() != INSIDE:
            yield (
                f"{each.clock}: the true error is {each.error.least} to {each.error.most} {each.unit}, "
                f"the certified bound {each.bound}: {each.verdict()}"
            )


def complaints_of_guest(moves: Sequence[Move], said: Sequence[Dict]) -> Iterable[str]:
    if len(said) != len(moves) + 1:
        yield f"the guest spoke {len(said)} times, not {len(moves) + 1}"
        return
    for number, (before, after) in enumerate(zip(said, said[1:]), start=1):
        if after["loops"] <= before["loops"]:
            yield f"the guest's loop did not go on after move {number}"
        if after["monotonic_ns"] <= before["monotonic_ns"]:
            yield f"the guest's MONOTONIC was set back by move {number}"
    if said[-1]["backward"] != 0:
        yield f"the guest saw {said[-1]['backward']} steps back"
    # A gap that was advanced over stands in the guest's clock as one step at least as long.
    gaps = [move.certificate["gap"]["ns"] for move in moves if move.step.startswith("advance")]
    if gaps and said[-1]["forward_ns"] < max(gaps) - max(
        move.certificate["gap"]["bound_ns"] for move in moves
    ):
        yield f"no step of the guest's clock is as long as the gap of {max(gaps)} ns"


def row(move: Move, each: Judged, khz: int) -> Dict:
    def in_ns(value: int) -> int:
        return -(-value * 10**6 // khz) if each.unit == "ticks" else value

    return {
        "move": move.number, "from": move.source, "policy": move.step, "clock": each.clock,
        "largest_error_ns": in_ns(each.error.largest()), "bound_ns": in_ns(each.bound),
        "verdict": each.verdict(),
    }  # fmt: skip


def report_on(found: Dict, policies: Sequence[str]) -> Dict:
    if found.get("exit_code") != 0:
        texts = [found.get("error", "")]
        for name, host in found.get("hosts", {}).items():
            texts += [f"{name}: {host[key].strip()}" for key in ("error", "stderr") if host.get(key)]
        raise Unusable("; ".join(text for text in texts if text) or "the pair failed")
    moves = moves_of(found)
    complaints = []
    if len(moves) != len(policies):
        complaints.append(f"{len(moves)} moves, not {len(policies)}")
    rows = []
    khz = moves[0].left["record"]["host_hz"] // 1000 if moves else 0  # the machine's, on both hosts
    for move in moves:
        judged = judge.judge(move, khz)
        rows += [row(move, each, khz) for each in judged]
        complaints += [f"move {move.number}: {text}" for text in complaints_of(move, judged)]
    said = guest_reports(found)
    complaints += complaints_of_guest(moves, said)
    return {
        "schema": "continuo/crosshost-linux-moves/1",
        "holds": not complaints,
        "moves": [
            {"number": move.number, "from": move.source, "policy": move.step,
             "elapsed_by": move.certificate["elapsed_by"], "gap": move.certificate["gap"],
             "migration": move.left["migration"],
             "seams": [{key: clock[key] for key in ("clock", "vcpu", "seam", "seam_bound")}
                       for clock in move.certificate["clocks"]]}
            for move in moves
        ],
        "rows": rows,
        "guest": said,
        "complaints": complaints,
    }  # fmt: skip


def text_of(report: Dict) -> str:
    lines = []
    for move in report["moves"]:
        there = "b" if move["from"] == "a" else "a"
        lines.append(
            f"move {move['number']}, {move['from']} to {there}, {move['policy']}: by "
            f"{move['elapsed_by']}, gap {move['gap']['ns'] / 1e6:.3f} ms, "
            f"{move['migration']['rounds']} rounds, {move['migration']['pages_sent']} pages, stood "
            f"still for {move['migration']['downtime_ns'] / 1e6:.1f} ms"
        )
        for each in report["rows"]:
            if each["move"] == move["number"]:
                lines.append(f"  {each['clock']:<10}true error at most {each['largest_error_ns']:>9} ns, "
                             f"bound {each['bound_ns']:>9} ns: {each['verdict']}")  # fmt: skip
    last = report["guest"][-1] if report["guest"] else None
    if last:
        lines.append(f"the guest, two CPUs: {last['loops']} readings of MONOTONIC, {last['backward']} steps "
                     f"back, longest step forward {last['forward_ns'] / 1e6:.3f} ms")  # fmt: skip
    lines += [f"VIOLATION: {text}" for text in report["complaints"]]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    policies = options.policies or ["advance", "freeze"]
    for program in _PROGRAMS:
        if not program.is_file():
            print(f"linux-moves: error: {program} is not built; run: make build", file=sys.stderr)
            return 2
    began = time.monotonic()
    try:
        report = report_on(run_pair(policies, options), policies)
    except Unusable as error:
        print(f"linux-moves: error: {error}", file=sys.stderr)
        return 2
    report["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(report, indent=2) if options.json else text_of(report))
    return 0 if report["holds"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="linux-moves",
        description="Moves a Linux guest between two emulated hosts over TCP, and holds its clocks' "
        "true error against the bounds of the certificates.",
        epilog="exit status: 0 all inside, no step back; 1 not so; 2 the hosts did not come to an end",
    )
    parser.add_argument("policies", nargs="*", choices=[[], *_POLICIES], metavar="POLICY",
                        help="of each move (advance freeze)")
    parser.add_argument("--kernel-a", default="6.12", metavar="K", help="Linux of host a (6.12)")
    parser.add_argument("--kernel-b", default="6.12", metavar="K", help="Linux of host b (6.12)")
    parser.add_argument("--timeout", type=int, default=900, metavar="S", help="for all of it (900)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
