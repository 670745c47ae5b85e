"""What is told of the moves: from the certificates of the host, and from the guest's own watch and journal."""

import base64
import gzip
import json
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from ..errors import LabError
from .host import Outcome

_MEANING = {
    "advance-and-notify": "The guest's clocks go on as if it had never stopped. It is told that there was a gap, and that "
    "what NTP knew is void.",
    "freeze-and-notify": "The guest's clocks go on from where they stood. It is told how much its REALTIME lacks, to the "
    "nanosecond, and steps it itself.",
}
_FAILED = 3


@dataclass(frozen=True)
class Move:
    """One move as the host certified it and as the guest saw it."""

    sent: Dict
    certificate: Dict
    event: Dict
    repair: Optional[Dict]  # the guest's step of REALTIME after it
    told: List[str]  # what the agent wrote of it

    @property
    def policy(self) -> str:
        return self.certificate["policy"]

    def clock(self, name: str) -> Dict:
        return next(row for row in self.event["clocks"] if row["clock"] == name)


@dataclass(frozen=True)
class Story:
    guest: str
    moves: List[Move]
    watch: Dict
    agent: List[str]
    kernel: List[str]


def story_of(outcome: Outcome) -> Story:
    watch = watch_in(outcome.printed)
    agent = lines_of("agent.log", outcome.printed)
    sent, received = outcome.documents[0::2], outcome.documents[1::2]
    events = [event for event in watch["events"] if set(event["reasons"]) & {"republished", "disruption", "notice"}]
    if len(events) != len(received):
        saw = ", ".join(f"{event['number']} ({'+'.join(event['reasons'])}) at {event['at_ns'] / 1e9:.3f} s" for event in events)
        raise LabError(_FAILED, f"the guest's watch saw {len(events)} moves, and there were {len(received)}: {saw}")
    moves = []
    for number, (sender, receiver, event) in enumerate(zip(sent, received, events)):
        end = events[number + 1]["number"] if number + 1 < len(events) else len(watch["events"]) + 1
        moves.append(Move(sender, receiver["certificate"], event, repair_after(event, watch["events"], end),
                          told_of(number + 1, agent)))  # fmt: skip
    about = re.search(r"guest: (linux [^\r\n]*)", outcome.printed)
    return Story(about.group(1) if about else "", moves, watch, agent, lines_of("kernel", outcome.printed))


def watch_in(printed: str) -> Dict:
    packed = re.search(r"guest: begin\s(.*?)guest: end", printed, re.DOTALL)
    if packed is None:
        raise LabError(_FAILED, "the guest handed out no report")
    return json.loads(gzip.decompress(base64.b64decode(packed.group(1))))


def lines_of(log: str, printed: str) -> List[str]:
    return [line.rstrip() for line in re.findall(rf"^guest: {re.escape(log)}: (.*)$", printed, re.MULTILINE)]


def repair_after(event: Dict, events: List[Dict], end: int) -> Optional[Dict]:
    """The step of REALTIME that gave back what the move took from it."""
    for other in events:
        if event["number"] < other["number"] < end and other["since_stop_ns"] is not None:
            return other
    return None


def told_of(number: int, agent: List[str]) -> List[str]:
    """The line about that notice, the `number`th one, and the one about the daemon after it."""
    notices = [at for at, line in enumerate(agent) if line.startswith("time travel, notice")]
    if number > len(notices):
        return []
    at = notices[number - 1]
    return [agent[at], *[other for other in agent[at + 1:at + 2] if at + 1 not in notices]]


# -- text --


def grouped(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def length(ns: int) -> str:
    for size, name in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        if abs(ns) >= size:
            return f"{ns / size:.4g} {name}"
    return f"{ns} ns"


def with_bound(ns: Optional[int], bound: Optional[int]) -> str:
    return "not known" if ns is None else f"{grouped(ns)} +-{grouped(bound or 0)} ns"


def rows_of(move: Move) -> List[Tuple[str, str]]:
    gap = move.certificate["gap"]
    rows = [
        ("stood still", f"{grouped(gap['ns'])} ns, known to {length(gap['bound_ns'])}"),
        ("certificate", "holds" if move.certificate["holds"] else "DOES NOT HOLD"),
    ]
    for row in move.certificate["clocks"]:
        which = row["clock"] + ("" if row["vcpu"] is None else f" of vCPU {row['vcpu']}")
        rows.append((f"  {which}", f"{row['seam']} {row['unit']} off what was prescribed"))
    rows.append(("the guest saw", ""))
    for name in ("CLOCK_MONOTONIC", "CLOCK_REALTIME"):
        clock = move.clock(name)
        rows.append((f"  {name[6:]}", f"seam {with_bound(clock['seam_ns'], clock['bound_ns'])}; of the host's time it lost "
                     f"{with_bound(clock['lost_ns'], clock['lost_bound_ns'])}"))  # fmt: skip
    rows.append(("the guest was told", move.told[0] if move.told else "nothing"))
    rows += [("", line) for line in move.told[1:]]
    rows.append(("REALTIME right again", repair_text(move)))
    return rows


def repair_text(move: Move) -> str:
    if move.repair is None:
        return "it was never wrong" if move.policy.startswith("advance") else "no step was seen"
    step = next(row for row in move.repair["clocks"] if row["clock"] == "CLOCK_REALTIME")
    return (f"{length(move.repair['since_stop_ns'])} after the first reading in its new place, by a step of "
            f"{with_bound(step['seam_ns'], step['bound_ns'])}")  # fmt: skip


def ntp_rows(story: Story) -> List[Tuple[str, str]]:
    def state(of: Dict) -> str:
        return f"{'unsynchronised' if of['unsync'] else 'synchronised'}, maxerror {length(of['maxerror_us'] * 1000)}"

    return [(f"{change['at_ns'] / 1e9:.3f} s", f"{state(change['before'])} -> {state(change['after'])}")
            for change in story.watch["ntp_changes"]]  # fmt: skip


def steps_back(story: Story) -> int:
    return sum(row["backward_within_cpu"] + row["backward_across_cpus"] for row in story.watch["clocks"]
               if row["clock"] not in ("CLOCK_REALTIME", "CLOCK_TAI"))  # fmt: skip


def text_of(story: Story) -> str:
    lines = [f"Guest: {story.guest}; unmodified, from Debian's package. Host: emulated, Linux with real KVM.", ""]
    for number, move in enumerate(story.moves, 1):
        lines += [f"== move {number}: {move.policy}", f"  {_MEANING[move.policy]}"]
        lines += [f"  {name:<22}{text}".rstrip() for name, text in rows_of(move)]
        lines.append("")
    lines.append("NTP's state in the guest's kernel, as adjtimex(2) had it")
    lines += [f"  {at:<12}{what}" for at, what in ntp_rows(story)] or ["  it did not change"]
    lines += ["", f"Monotonic clocks went back {steps_back(story)} times in {grouped(story.watch['passes'])} passes over "
              f"all of them."]  # fmt: skip
    lines += [f"The guest's kernel said: {line}" for line in story.kernel]
    return "\n".join(lines) + "\n"


def figures_of(story: Story) -> Dict:
    """For a program: each move's certificate beside what the guest saw of it, and the watch's report."""
    moves = [{"sent": move.sent, "certificate": move.certificate, "event": move.event, "repair": move.repair,
              "told": move.told} for move in story.moves]  # fmt: skip
    return {"guest": story.guest, "moves": moves, "watch": story.watch, "agent": story.agent, "kernel": story.kernel}


def page_of(story: Story) -> Dict:
    """The watch's report, with the story before it, for its page."""
    sections = [{"title": f"Move {number}: {move.policy}", "text": _MEANING[move.policy],
                 "rows": [list(row) for row in rows_of(move)]}
                for number, move in enumerate(story.moves, 1)]  # fmt: skip
    sections.append({"title": "What the agent in the guest wrote", "lines": story.agent})
    return {**story.watch, "story": sections}


def failures(story: Story) -> List[str]:
    """What a demonstration must not show."""
    wrong = []
    for number, move in enumerate(story.moves, 1):
        if not move.certificate["holds"]:
            wrong.append(f"move {number}: the certificate does not hold")
        clock = move.clock("CLOCK_MONOTONIC")
        if abs(clock["seam_ns"]) > clock["bound_ns"]:
            wrong.append(f"move {number}: MONOTONIC has a seam")
        if not move.told:
            wrong.append(f"move {number}: the agent was not told")
        if move.policy.startswith("freeze") and move.repair is None:
            wrong.append(f"move {number}: REALTIME was not repaired")
    if steps_back(story):
        wrong.append("a monotonic clock went backwards")
    return wrong
