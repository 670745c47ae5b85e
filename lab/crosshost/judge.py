"""Judges moves between two hosts by what no clock and no network had a part in.

The truth is the pairing of the two hosts' counters (pairing.h): b's counter less a's is D,
somewhere in [D.least, D.most], just before a move and just after it. With it a guest's line can be
continued on the host that it has left, and held against the line that it has on the other one.
Everything else comes from the record of the source, the offsets that the destination's kernel has,
and the guest's own pages; a certificate is only asked for its bounds. All arithmetic is in integers.
"""

from dataclasses import dataclass, field
from typing import Dict, Iterable, Iterator, List, Optional, Tuple

_WRAP = 1 << 64
NS = 10**9


class Unusable(Exception):
    """What the hosts wrote cannot be judged."""


def signed(value: int) -> int:
    """Modulo 2^64, as a signed number."""
    value %= _WRAP
    return value - _WRAP if value >= _WRAP >> 1 else value


@dataclass(frozen=True)
class Interval:
    """Where a true error is."""

    least: int
    most: int

    def largest(self) -> int:
        return max(abs(self.least), abs(self.most))

    def smallest(self) -> int:
        return 0 if self.least <= 0 <= self.most else min(abs(self.least), abs(self.most))


INSIDE, OUTSIDE, UNDECIDED = "inside", "outside", "undecided"


def verdict(error: Interval, bound: int) -> str:
    """Whether |error| <= bound: for certain, for certain not, or the pairing is too wide to say."""
    if error.largest() <= bound:
        return INSIDE
    return OUTSIDE if error.smallest() > bound else UNDECIDED


@dataclass(frozen=True)
class Judged:
    """One clock of one move."""

    clock: str  # "tsc 0", "kvmclock", "gap"
    unit: str
    error: Interval
    bound: int

    def verdict(self) -> str:
        return verdict(self.error, self.bound)


@dataclass
class Move:
    """What both hosts wrote of one move, with the pairings round it."""

    number: int
    step: str
    source: str
    left: Dict
    arrived: Dict
    difference: Interval  # b's counter less a's while it took place
    judged: List[Judged] = field(default_factory=list)

    @property
    def certificate(self) -> Dict:
        return self.arrived["certificate"]

    def moved(self) -> bool:
        return self.left["outcome"] == "moved" and self.arrived["outcome"] == "runs"

    def ahead(self) -> Interval:
        """The destination's counter less the source's."""
        if self.source == "a":
            return self.difference
        return Interval(-self.difference.most, -self.difference.least)


@dataclass
class Run:
    """All that one boot of the pair wrote."""

    kernels: Dict[str, str]
    tsc_khz: Dict[str, int]
    offsets_found_ns: Dict[str, int]  # of b's REALTIME, by step
    moves: List[Move]
    common_difference: Interval  # what all pairings allow, if the counters ran at one rate
    pairing_widths: List[int]
    seconds: float  # between the first pairing and the last, by a's counter
    rate_ppb: float  # b's rate is within this of a's, by these two
    end: Dict


def read_run(events_a: Iterable[Dict], events_b: Iterable[Dict]) -> Run:
    """`events_*` are the lines of the two hosts. Raises Unusable where they do not fit together."""
    a, b = list(events_a), list(events_b)
    hosts = {event["host"]: event for event in (*a, *b) if event["event"] == "host"}
    if set(hosts) != {"a", "b"}:
        raise Unusable("one of the hosts has not said what it is")
    moves_of_a = {event["move"]: event for event in a if event["event"] in ("left", "arrived")}
    moves = list(_moves(moves_of_a, b))
    pairings = [event for event in b if event["event"] == "pairing"]
    ends = [event for event in (*a, *b) if event["event"] == "end"]
    if not pairings or len(moves) != len(moves_of_a) or len(ends) != 1:
        raise Unusable("the hosts did not come to the end of their steps")
    khz = {name: host["tsc_khz"] for name, host in hosts.items()}
    first, last = pairings[0], pairings[-1]
    ticks = last["a"] - first["a"]
    moved = Interval(
        last["difference_least"] - first["difference_most"],
        last["difference_most"] - first["difference_least"],
    )
    return Run(
        {name: host["kernel"] for name, host in hosts.items()},
        khz,
        {event["name"]: event["offset_found_ns"] for event in b if event["event"] == "step"},
        moves,
        Interval(
            max(pairing["difference_least"] for pairing in pairings),
            min(pairing["difference_most"] for pairing in pairings),
        ),
        [pairing["difference_most"] - pairing["difference_least"] for pairing in pairings],
        ticks / khz["a"] / 1000,
        moved.largest() * 1e9 / ticks if ticks > 0 else float("inf"),
        ends[0],
    )


def _moves(moves_of_a: Dict[int, Dict], events_b: List[Dict]) -> Iterator[Move]:
    before: Optional[Dict] = None
    waiting: Optional[Dict] = None
    for event in events_b:
        if event["event"] in ("left", "arrived"):
            waiting = event
        elif event["event"] == "pairing":
            if waiting is not None:
                yield _move(moves_of_a, waiting, before, event)
                waiting = None
            before = event
    if waiting is not None:
        raise Unusable(f"no pairing stands after move {waiting['move']}")


def _move(moves_of_a: Dict[int, Dict], of_b: Dict, before: Optional[Dict], after: Dict) -> Move:
    number = of_b["move"]
    of_a = moves_of_a.get(number)
    if of_a is None or before is None or of_a["event"] == of_b["event"]:
        raise Unusable(f"of move {number} only one side is known")
    left, arrived = (of_a, of_b) if of_a["event"] == "left" else (of_b, of_a)
    # The counters' difference cannot have left this and come back: an emulator's counter is never
    # set back.
    difference = Interval(
        min(before["difference_least"], after["difference_least"]),
        max(before["difference_most"], after["difference_most"]),
    )
    return Move(number, left["step"], left["host"], left, arrived, difference)


# ---- one move ----


def judge(move: Move, true_khz: int) -> List[Judged]:
    """Every clock of a move that took place. `true_khz`: of the counters, one for both hosts."""
    advances = move.certificate["policy"].startswith("advance")
    judged = [
        _judge_tsc(move, vcpu, advances) for vcpu in range(len(move.left["record"]["vcpus"]))
    ]
    judged.append(_judge_kvmclock(move, advances))
    judged.append(_judge_gap(move, true_khz))
    return judged


def _bound_of(certificate: Dict, clock: str, vcpu: Optional[int]) -> int:
    for entry in certificate["clocks"]:
        if entry["clock"] == clock and entry["vcpu"] == vcpu:
            return entry["bound"]["total"]
    raise Unusable(f"the certificate has no {clock} of vCPU {vcpu}")


def _judge_tsc(move: Move, vcpu: int, advances: bool) -> Judged:
    """The guest's counter on the destination, by the offset that its kernel has, less where the
    policy wants it."""
    recorded = move.left["record"]["vcpus"][vcpu]["counter"]
    stopped = move.left["record"]["anchor"]["counter"]
    offset = move.arrived["vcpus"][vcpu]["tsc_offset"]
    if advances:
        # At the destination's counter y the source's is y - ahead, and the guest would be at
        # recorded + y - ahead - stopped; it is at y + offset. y drops out.
        error = Interval(*(signed(offset + ahead - recorded + stopped) for ahead in _ends(move)))
    else:
        seam = signed(move.certificate["resume_at"] + offset - recorded)
        error = Interval(seam, seam)
    return Judged(f"tsc {vcpu}", "ticks", error, _bound_of(move.certificate, "tsc", vcpu))


def _judge_kvmclock(move: Move, advances: bool) -> Judged:
    """kvmclock as the guest's own page gives it at the resume instant, less the line in its page on
    the source: continued there where it advances, at the stop where it was frozen."""
    record = move.left["record"]
    vcpu = move.arrived["vcpus"][0]
    resume_at = move.certificate["resume_at"]
    found = page_ns(vcpu["page"], resume_at + vcpu["tsc_offset"])
    recorded = record["vcpus"][0]["counter"]
    if advances:
        stopped = record["anchor"]["counter"]
        expected = [
            page_ns(record["kvmclock"], recorded + signed(resume_at - ahead - stopped))
            for ahead in _ends(move)
        ]
    else:
        expected = [page_ns(record["kvmclock"], recorded)] * 2
    errors = sorted(signed(found - each) for each in expected)
    return Judged(
        "kvmclock", "ns", Interval(*errors), _bound_of(move.certificate, "kvmclock", None)
    )


def _judge_gap(move: Move, true_khz: int) -> Judged:
    """How long the guest was away: from its stop on one host to its resume on the other."""
    gap = move.certificate["gap"]
    stopped = move.left["record"]["anchor"]["counter"]
    ticks = [signed(move.certificate["resume_at"] - ahead - stopped) for ahead in _ends(move)]
    # Rounded away from what was said, so that no error is lost to a division.
    errors = sorted(gap["ns"] - each * NS // (true_khz * 1000) for each in ticks)
    return Judged("gap", "ns", Interval(errors[0] - 1, errors[1] + 1), gap["bound_ns"])


def _ends(move: Move) -> Tuple[int, int]:
    ahead = move.ahead()
    return ahead.least, ahead.most


def page_ns(page: Dict, tsc: int) -> int:
    """What a pvclock page (or a record's line, which has the same fields) gives at `tsc`."""
    ticks = signed(tsc - page["tsc_timestamp"])
    shift = page["shift"]
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    return page["system_time"] + (ticks * page["mul"] >> 32)


def odd_readings(move: Move) -> List[str]:
    """What the guest itself read against what its pages say: the judgement rests on these pages."""
    complaints = []
    for number, vcpu in enumerate(move.arrived["vcpus"]):
        reading = vcpu["after"]
        off = reading["kvmclock_ns"] - page_ns(vcpu["page"], reading["tsc"])
        if abs(off) > 1:
            complaints.append(f"vCPU {number} read kvmclock {off} ns off its own page")
        if signed(reading["tsc"] - vcpu["before"]["tsc"]) <= 0:
            complaints.append(f"vCPU {number}'s TSC went back over the move")
        if vcpu["backward_steps"] != 0:
            complaints.append(f"vCPU {number} saw {vcpu['backward_steps']} backward steps")
    return complaints
