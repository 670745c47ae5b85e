"""From the record of a move to figures, in integers. A line before the stop is held against the line
after it at one instant of the host's TSC: whatever was read when makes no difference.

Promises. Under ADVANCE a clock goes on as if the guest had never stopped; under FREEZE, which is
also QEMU's, it goes on from its value at the stop. The stop is the last exit of any vCPU from guest
mode on the source, the resume the first entry of any on the destination, as the host's kernel has
traced them.
"""

from dataclasses import asdict, dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

from .columns import ADVANCE, Column
from .lines import MONOTONIC, REALTIME, RIGHT_NS, Machine, Pvclock, Timekeeper, signed, skew


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
    counter: Tuple[int, int]  # the guest's TSC on vCPU 0 at the stop and at the resume

    @property
    def seen_seam(self) -> int:
        """MONOTONIC's, as the guest can see it: against its own counter."""
        return self.clocks["tsc"].lost - self.clocks["monotonic"].lost


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
    series = realtime_errors(record, resume)
    wrong_for, observed = realtime(
        series, record["realtime_before"][1], resume, clocks["monotonic"].lost, after.pages[0]
    )
    end = record["watched"][-1][0]
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
        counter=(before.tsc(0, stop), after.tsc(0, resume)),
    )


def by_vcpu(record: Dict, key: str) -> Dict[int, int]:
    """Of every vCPU; JSON has made texts of their numbers."""
    found = {int(vcpu): tsc for vcpu, tsc in record[key].items()}
    missing = set(range(len(record["source"]["offsets"]))) - found.keys()
    if missing:
        raise NotMeasured(f"{key}: vCPU {min(missing)} was not seen")
    return found


def realtime_errors(record: Dict, resume: int) -> List[Tuple[int, int]]:
    """(host TSC, guest's REALTIME less the host's), from the resume on."""
    (first, first_ns, _), (last, last_ns, _) = record["host_realtime"]
    found = []
    for tsc, timekeeper, page in record["watched"]:
        if tsc < resume:
            continue
        side = {**record["destination"], "timekeeper": timekeeper, "pages": [page]}
        truth = first_ns + (tsc - first) * (last_ns - first_ns) // (last - first)
        found.append((tsc, Side.of(side).machine.clock(REALTIME, tsc) - truth))
    if not found:
        raise NotMeasured("nobody looked at the destination's REALTIME")
    return found


def realtime(
    series: Sequence[Tuple[int, int]], usual: int, resume: int, lost: int, page: Pvclock
) -> Tuple[Optional[int], int]:
    """(how long it was wrong, None: to the end; how long it was observed), in ns from the resume to the
    look that found it where it was before the move, and staying there."""
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


@dataclass(frozen=True)
class Watched:
    """What `continuo watch` in the guest found, beside what the lines outside say. A move of which the
    guest can see nothing leaves no event, and should not."""

    events: int
    agree: int  # moves whose event has MONOTONIC's seam within the event's bound
    disagree: int
    bound_ns: int  # the largest of these
    unseen: int  # moves without an event
    unseen_seam_ns: int  # the largest seam among them
    backward: int  # steps back of any clock, on a CPU or across two


def watched_of(figures: Sequence[Figures], record: Dict) -> Watched:
    agree, bounds, unseen = 0, [], []
    for one in figures:
        seams = [(event["seam_ns"], event["bound_ns"]) for event in record["events"]
                 if _is_of_move(event["counter"], one.counter)]  # fmt: skip
        if not seams:
            unseen.append(abs(one.seen_seam))
            continue
        bounds.append(min(bound for _, bound in seams))
        # Our own rounding: of the page, twice.
        agree += any(abs(seam - one.seen_seam) <= bound + 2 for seam, bound in seams)
    backward = sum(count for clock, count in record["back"].items() if clock not in _MAY_STEP)
    return Watched(len(record["events"]), agree, len(bounds) - agree, max(bounds, default=0), len(unseen),
                   max(unseen, default=0), backward)  # fmt: skip


def _watched_by_guests(own: Sequence[Dict]) -> Optional[Watched]:
    """Each guest is asked about its own moves: one that was booted anew knows nothing of those before it."""
    found: List[Watched] = []
    moves: List[Figures] = []
    for record in own:
        if record["kind"] == "guest":
            moves = []
        elif record["kind"] == "move":
            moves.append(figures_of(record))
        elif record["kind"] == "guest_watched":
            found.append(watched_of(moves, record))
    if not found:
        return None
    add, most = ("events", "agree", "disagree", "unseen", "backward"), ("bound_ns", "unseen_seam_ns")
    return Watched(**{name: sum(getattr(one, name) for one in found) for name in add},
                   **{name: max(getattr(one, name) for one in found) for name in most})  # fmt: skip


_MAY_STEP = ("CLOCK_REALTIME", "CLOCK_TAI")


def _is_of_move(event: Sequence[int], move: Tuple[int, int]) -> bool:
    """Both are the guest's TSC before and after."""
    return signed(move[1] - event[0]) >= 0 and signed(event[1] - move[0]) >= 0


@dataclass
class Summary:
    column: Column
    moves: int
    failed: List[str]
    spreads: Dict[str, Spread]
    never_right: int  # moves after which REALTIME was still wrong when the observation ended
    observed_ns_max: int
    backward: Optional[int]  # steps back that the guest's clock loop saw; None: not asked
    watched: Optional[Watched]
    seconds: float

    def as_json(self) -> Dict:
        return {
            "column": self.column.name, "title": self.column.title, "about": self.column.about,
            "promise": self.column.promise, "policy": self.column.policy, "moves": self.moves,
            "failed": self.failed, "realtime_not_repaired": self.never_right,
            "observed_ns_max": self.observed_ns_max, "backward_steps": self.backward,
            "watched": asdict(self.watched) if self.watched else None,
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
        _watched_by_guests(own),
        sum(record["seconds"] for record in moves),
    )  # fmt: skip
