"""From the record of a move to figures, in integers. A line before the stop is held against the line
after it at one instant of the host's TSC: whatever was read when makes no difference.

Promises. Under ADVANCE a clock goes on as if the guest had never stopped; under FREEZE, which is
also QEMU's, it goes on from its value at the stop. The stop is the last exit of any vCPU from guest
mode on the source, the resume the first entry of any on the destination, as the host's kernel has
traced them.
"""

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

from .columns import ADVANCE, Column
from .lines import MONOTONIC, Machine, Pvclock, Timekeeper, signed, skew

RIGHT_NS = 10**6  # REALTIME is right no further than this from where it was


class NotMeasured(Exception):
    """A record that lacks what a figure needs."""


@dataclass(frozen=True)
class Side:
    """A guest's clocks on one side of a move, over which its pages may be published again."""

    machine: Machine

    @staticmethod
    def of(record: Dict) -> "Side":
        pages = tuple(Pvclock.parse(bytes.fromhex(page)) for page in record["pages"])
        timekeeper = Timekeeper.parse(bytes.fromhex(record["timekeeper"]))
        return Side(Machine(tuple(record["offsets"]), pages, timekeeper))

    def until(self, events: Sequence[Dict], tsc_by_vcpu: Dict[int, int]) -> "Side":
        """With what was published and written up to an instant of each vCPU."""
        pages, offsets = list(self.machine.pages), list(self.machine.offsets)
        for event in events:
            vcpu = event["vcpu"]
            if event["tsc"] > tsc_by_vcpu[vcpu]:
                continue
            if "page" in event:
                pages[vcpu] = Pvclock(*event["page"])
            else:
                offsets[vcpu] = signed(event["offset"])
        return Side(replace(self.machine, pages=tuple(pages), offsets=tuple(offsets)))


@dataclass(frozen=True)
class Clock:
    """What became of one clock, in ns."""

    lost: int  # what real time has more than the clock, behind the move; negative: gained
    ran: int  # how far it went from the stop to the resume

    def seam(self, promise: str) -> int:
        return -self.lost if promise == ADVANCE else self.ran


@dataclass(frozen=True)
class Figures:
    blackout: int  # no vCPU was in guest mode
    clocks: Dict[str, Clock]  # tsc, kvmclock, monotonic: of the vCPU that is furthest off
    skew_ticks: int  # how far the vCPUs' counters are apart on the destination
    apart: int  # how much further the TSC lost than kvmclock
    moved_later: int  # what kvmclock's line moved by after the resume
    wrong_for: Optional[int]  # how long REALTIME was off by more than RIGHT_NS; None: to the end
    observed: int  # from the resume to the end of the observation
    told_gap: Optional[int]  # by Continuo's certificate


def figures_of(record: Dict) -> Figures:
    exits, entries = by_vcpu(record, "last_exits"), by_vcpu(record, "first_entries")
    stop, resume = max(exits.values()), min(entries.values())
    if resume <= stop:
        raise NotMeasured("a vCPU of the destination ran before the source's had stopped")
    events = record["events"]
    before = Side.of(record["source"]).until(_of(events, "source"), exits).machine
    there = [event for event in _of(events, "destination")]
    after = Side.of(record["destination"]).until(there, entries).machine
    later = Side.of(record["destination_later"]).machine
    clocks = {name: _worst_vcpu(before, after, stop, resume, name) for name in _CLOCKS}
    wrong_for, observed = realtime(record, resume, clocks["monotonic"].lost, after.pages[0])
    end = record["realtime_after"][-1][0]
    certificate = record["told"].get("certificate")
    return Figures(
        blackout=after.pages[0].ns_of(resume - stop),
        clocks=clocks,
        skew_ticks=skew(after.offsets),
        apart=clocks["tsc"].lost - clocks["kvmclock"].lost,
        moved_later=later.kvmclock(0, end) - after.kvmclock(0, end),
        wrong_for=wrong_for,
        observed=observed,
        told_gap=certificate["gap"]["ns"] if certificate else None,
    )


def by_vcpu(record: Dict, key: str) -> Dict[int, int]:
    """Of every vCPU; JSON has made texts of their numbers."""
    found = {int(vcpu): tsc for vcpu, tsc in record[key].items()}
    missing = set(range(len(record["source"]["offsets"]))) - found.keys()
    if missing:
        raise NotMeasured(f"{key}: vCPU {min(missing)} was not seen")
    return found


def realtime(record: Dict, resume: int, lost: int, page: Pvclock) -> Tuple[Optional[int], int]:
    """(how long it was wrong, how long it was observed), from the resume on. It is as wrong as the
    guest's clock has lost, until it is seen where it was before, and stays."""
    usual = record["realtime_before"][1]
    series = record["realtime_after"]
    observed = page.ns_of(series[-1][0] - resume)
    wrong = [tsc for tsc, error in series if abs(error - usual) > RIGHT_NS]
    if not wrong:
        # Where it was wrong at the resume it was repaired before the first look.
        return (page.ns_of(series[0][0] - resume) if abs(lost) > RIGHT_NS else 0), observed
    right = [tsc for tsc, _ in series if tsc > wrong[-1]]
    return (page.ns_of(right[0] - resume) if right else None), observed


def _of(events: Sequence[Dict], side: str) -> List[Dict]:
    return [event for event in events if event["of"] == side]


def _tsc_clock(machine: Machine, vcpu: int, host: int) -> int:
    return signed(machine.tsc(vcpu, host))


_CLOCKS = {
    "tsc": _tsc_clock,
    "kvmclock": Machine.kvmclock,
    "monotonic": lambda machine, _vcpu, host: machine.clock(MONOTONIC, host),
}


def _worst_vcpu(before: Machine, after: Machine, stop: int, resume: int, name: str) -> Clock:
    """MONOTONIC by the destination's own line of it, which the move itself does not touch: what its
    counter lost, it lost."""
    read = _CLOCKS[name]
    if name == "monotonic":
        before = replace(before, timekeeper=after.timekeeper)
    found = []
    for vcpu in range(len(before.offsets)):
        lost = read(before, vcpu, resume) - read(after, vcpu, resume)
        ran = read(after, vcpu, resume) - read(before, vcpu, stop)
        if name == "tsc":
            lost, ran = after.pages[vcpu].ns_of(lost), after.pages[vcpu].ns_of(ran)
        found.append(Clock(lost, ran))
    return max(found, key=lambda clock: abs(clock.lost))


@dataclass(frozen=True)
class Spread:
    """Of one figure over all moves: nothing is averaged away."""

    values: Tuple[int, ...]

    @property
    def median(self) -> int:
        """The lower of the two in the middle, by size: a value that was measured."""
        ordered = sorted(self.values, key=abs)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def worst(self) -> int:
        return max(self.values, key=abs)


@dataclass
class Summary:
    column: Column
    moves: int
    failed: List[str]
    spreads: Dict[str, Spread]
    never_right: int  # moves after which REALTIME was still wrong when the observation ended
    observed_ns_max: int
    backward: Optional[int]  # steps back that the guest's clock loop saw; None: not asked
    seconds: float

    def as_json(self) -> Dict:
        return {
            "column": self.column.name, "title": self.column.title, "about": self.column.about,
            "promise": self.column.promise, "policy": self.column.policy, "moves": self.moves,
            "failed": self.failed, "realtime_not_repaired": self.never_right,
            "observed_ns_max": self.observed_ns_max, "backward_steps": self.backward,
            "seconds": round(self.seconds, 1),
            "figures": {
                name: {"median": spread.median, "worst": spread.worst, "values": list(spread.values)}
                for name, spread in self.spreads.items()
            },
        }  # fmt: skip


def values_of(figures: Figures, promise: str) -> Dict[str, Optional[int]]:
    """By the names of the document; ns, and ticks where the name says so."""
    values: Dict[str, Optional[int]] = {"blackout_ns": figures.blackout}
    for name, clock in figures.clocks.items():
        values[f"{name}_seam_ns"] = clock.seam(promise)
        values[f"{name}_lost_ns"] = clock.lost
    values["skew_ticks"] = figures.skew_ticks
    values["tsc_beside_kvmclock_ns"] = figures.apart
    values["kvmclock_moved_later_ns"] = figures.moved_later
    values["realtime_wrong_ns"] = figures.wrong_for
    if figures.told_gap is not None and promise != ADVANCE:
        values["kvmclock_beside_certificate_ns"] = figures.clocks["kvmclock"].lost - figures.told_gap
    return values


def summary_of(column: Column, records: Sequence[Dict]) -> Optional[Summary]:
    """None where nothing was recorded of it."""
    own = [record for record in records if record.get("column") == column.name]
    moves = [record for record in own if record["kind"] == "move"]
    if not own:
        return None
    figures = [figures_of(record) for record in moves]
    rows = [values_of(one, column.promise) for one in figures]
    names = rows[0].keys() if rows else ()
    spreads = {}
    for name in names:
        values = tuple(value for value in (row[name] for row in rows) if value is not None)
        if values:
            spreads[name] = Spread(values)
    saw = [record["backward"] for record in own if record["kind"] == "guest_saw"]
    return Summary(
        column, len(moves), [record["why"] for record in own if record["kind"] == "failed"], spreads,
        sum(1 for one in figures if one.wrong_for is None),
        max((one.observed for one in figures), default=0), sum(saw) if saw else None,
        sum(record["seconds"] for record in moves),
    )  # fmt: skip
