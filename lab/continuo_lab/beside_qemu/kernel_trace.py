"""The host kernel's own record of what KVM did to a guest's clocks, stamped with the host's TSC.

Two instances of its tracer: one that loses nothing, with every pvclock page that was published and
every TSC offset that was written; and one of a move alone, with entries to and exits from guest
mode, of which the newest are kept.
"""

import contextlib
import re
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

_TRACING = Path("/sys/kernel/tracing")
_CLOCKS_KB, _ENTRIES_KB = 1024, 4096  # a CPU
_CLOCK_EVENTS = ("kvm_pvclock_update", "kvm_write_tsc_offset")
_ENTRY_EVENTS = ("kvm_entry", "kvm_exit")
_HEAD = re.compile(r"-(\d+) +\( *([\d-]+)\) +\[\d+\] +\S+ +(\d+): (\w+): (.*)$")
_PVCLOCK = re.compile(
    r"vcpu_id (\d+), pvclock { version (\d+), tsc_timestamp 0x([0-9a-f]+), system_time 0x([0-9a-f]+),"
    r" tsc_to_system_mul 0x([0-9a-f]+), tsc_shift (-?\d+), flags 0x([0-9a-f]+) }"
)
_OFFSET = re.compile(r"vcpu=(\d+) prev=(\d+) next=(\d+)")
_VCPU = re.compile(r"vcpu (\d+)")


class KernelTrace:
    def __init__(self) -> None:
        self._clocks = _instance("clocks", _CLOCKS_KB, _CLOCK_EVENTS)
        self._entries = _instance("entries", _ENTRIES_KB, _ENTRY_EVENTS)
        _write(self._clocks / "tracing_on", "1")

    def close(self) -> None:
        for folder in (self._clocks, self._entries):
            _write(folder / "tracing_on", "0")
            folder.rmdir()

    @contextlib.contextmanager
    def of_a_move(self) -> Iterator["KernelTrace"]:
        for instance in (self._clocks, self._entries):
            _write(instance / "trace", "")
        _write(self._entries / "tracing_on", "1")
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """No more entries and exits; what was written is kept."""
        _write(self._entries / "tracing_on", "0")

    def clock_events(self) -> List[Dict]:
        return clock_events((self._clocks / "trace").read_text(errors="replace"))

    def last_exits_first_entries(self, source: int, destination: int):
        text = (self._entries / "trace").read_text(errors="replace")
        return last_exits_first_entries(text, source, destination)


def _instance(name: str, kilobytes: int, events: Tuple[str, ...]) -> Path:
    folder = _TRACING / "instances" / f"continuo-{name}"
    folder.mkdir(exist_ok=True)
    _write(folder / "tracing_on", "0")
    _write(folder / "trace_clock", "x86-tsc")
    _write(folder / "buffer_size_kb", str(kilobytes))
    _write(folder / "options/record-tgid", "1")
    for event in events:
        _write(folder / f"events/kvm/{event}/enable", "1")
    return folder


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def clock_events(text: str) -> List[Dict]:
    """In the order of time: {"tsc", "pid", "vcpu", and "page" or "offset"}."""
    found = []
    for line in text.splitlines():
        head = _HEAD.search(line)
        if head is None:
            continue
        event = {"tsc": int(head[3]), "pid": _pid(head)}
        page, offset = _PVCLOCK.match(head[5]), _OFFSET.match(head[5])
        if page is not None:
            version, tsc, time, mul = int(page[2]), *(int(page[i], 16) for i in (3, 4, 5))
            event["vcpu"] = int(page[1])
            event["page"] = [version, tsc, time, mul, int(page[6]), int(page[7], 16)]
        elif offset is not None:
            event["vcpu"] = int(offset[1])
            event["offset"] = int(offset[3])
        else:
            continue
        found.append(event)
    return sorted(found, key=lambda event: event["tsc"])


def last_exits_first_entries(
    text: str, source: int, destination: int
) -> Tuple[Dict[int, int], Dict[int, int]]:
    """TSC of the source's last exit from guest mode and of the destination's first entry, by vCPU."""
    exits: Dict[int, int] = {}
    entries: Dict[int, int] = {}
    for line in text.splitlines():
        head = _HEAD.search(line)
        if head is None:
            continue
        pid, tsc = _pid(head), int(head[3])
        vcpu = _VCPU.search(head[5])
        if vcpu is None:
            continue
        number = int(vcpu[1])
        if pid == source and head[4] == "kvm_exit":
            exits[number] = max(tsc, exits.get(number, 0))
        elif pid == destination and head[4] == "kvm_entry":
            entries[number] = min(tsc, entries.get(number, tsc))
    return exits, entries


def _pid(head) -> int:
    """The process's; the thread's where the tracer did not know it."""
    return int(head[1]) if head[2].startswith("-") else int(head[2])
