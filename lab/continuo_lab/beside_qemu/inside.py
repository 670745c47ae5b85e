"""Runs in the host, as root, and moves the guests: `python3 -m continuo_lab.beside_qemu.inside FILE`.

What it records goes to stdout, one JSON object on a line, as soon as it is known: raw lines and
instants, of which `evaluation` makes figures. What it does goes to stderr.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from .columns import COLUMNS, Column
from .kernel_trace import KernelTrace
from .lines import REALTIME, RIGHT_NS, Machine, NotALine, Timekeeper
from .vms import Layout, MoveFailed, QemuVm, Setting, Vm, vm_of

_FAILURES_MAX = 3  # of one column; then it is left
_TRACED_S = 0.2  # after the move has been reported
_POLL_S = 0.005
_STAYS_RIGHT_S = 0.2
_KEPT_EVERY_S = 0.2
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_KVM_CREATE_VM, _KVM_CREATE_VCPU, _KVM_GET_TSC_KHZ = 0xAE01, 0xAE41, 0xAEA3


def main() -> int:
    config = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        config["qemu"], config["continuo"], config["kernel"], config["initrds"], config["cpus"],
        config["memory_mib"], folder, tsc_khz(),
    )  # fmt: skip
    tell(kind="host", release=os.uname().release, tsc_khz=setting.tsc_khz, cpus=os.cpu_count())
    with contextlib.closing(KernelTrace()) as trace:
        recorder = Recorder(setting, reader_of_tsc(), trace)
        for wanted in config["columns"]:
            recorder.column(COLUMNS[wanted["name"]], wanted["first"], wanted["moves"])
    return 0


def tell(**what) -> None:
    print(json.dumps(what), flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tsc_khz() -> int:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
    vcpu = fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0)
    khz = fcntl.ioctl(vcpu, _KVM_GET_TSC_KHZ, 0)
    for descriptor in (vcpu, vm, kvm):
        os.close(descriptor)
    return khz


def reader_of_tsc() -> Callable[[], int]:
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_RDTSC)
    held = ctypes.c_char.from_buffer(page)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(held))
    return lambda held=held: function()  # the page lives as long as who calls its code


class Recorder:
    def __init__(self, setting: Setting, read_tsc: Callable[[], int], trace: KernelTrace) -> None:
        self._setting = setting
        self._tsc = read_tsc
        self._trace = trace
        self._processes = 0

    def column(self, column: Column, first: int, moves: int) -> None:
        number, failures = first, 0
        while number <= moves and failures < _FAILURES_MAX:
            vm = self._new(column)
            try:
                layout = self._boot(column, vm)
                while number <= moves:
                    vm = self._next(column, vm, layout, number, moves)
                    number += 1
                self._ask(column, vm)
            except (MoveFailed, OSError, ValueError) as error:
                failures += 1
                say(f"{column.name}, move {number}: {error}")
                tell(kind="failed", column=column.name, move=number, why=str(error))
            finally:
                vm.close()

    def _new(self, column: Column) -> Vm:
        self._processes += 1
        return vm_of(self._setting, column, self._processes)

    def _boot(self, column: Column, vm: Vm) -> Layout:
        began = time.monotonic()
        vm.start()
        vm.await_text(r"guest: ready")
        layout = layout_in(vm.printed.read_text(errors="replace"))
        release = vm.await_text(r"guest: linux (\S+)")[1]
        machine = vm.machine(layout)
        tell(
            kind="guest", column=column.name, release=release, clocksource=machine.timekeeper.clocksource,
            seconds=round(time.monotonic() - began, 1),
            vmm=vm.version() if isinstance(vm, QemuVm) else "",
        )  # fmt: skip
        say(f"{column.name}: the guest runs after {time.monotonic() - began:.1f} s")
        return layout

    def _next(self, column: Column, source: Vm, layout: Layout, number: int, moves: int) -> Vm:
        """The VM that the guest is in afterwards; the source is closed whatever happens."""
        began = time.monotonic()
        destination = self._new(column)
        try:
            destination.await_source()
            record = self._moved(column, source, destination, layout)
        except BaseException:
            destination.close()
            raise
        finally:
            source.close()
        seconds = time.monotonic() - began
        tell(kind="move", column=column.name, move=number, seconds=round(seconds, 1), **record)
        say(f"{column.name}: move {number} of {moves}, {seconds:.1f} s")
        return destination

    def _moved(self, column: Column, source: Vm, destination: Vm, layout: Layout) -> Dict:
        record: Dict = {"source": as_record(source, layout), "host_realtime": [self._bracket()]}
        record["realtime_before"] = self._realtime_error(source.machine(layout))
        watcher = Watcher(destination, layout, self._tsc)
        with self._trace.of_a_move() as trace, watcher:
            record["told"] = source.move_to(destination)
            time.sleep(_TRACED_S)
            trace.stop()
            record["destination"] = as_record(destination, layout)
            self._observe(destination, layout, record["realtime_before"][1], column.observe_s)
        record["host_realtime"].append(self._bracket())
        record["destination_later"] = as_record(destination, layout)
        record["watched"] = watcher.seen
        exits, entries = trace.last_exits_first_entries(source.pid, destination.pid)
        record["last_exits"], record["first_entries"] = exits, entries
        pids = {source.pid: "source", destination.pid: "destination"}
        record["events"] = [
            {**event, "of": pids[event["pid"]]} for event in trace.clock_events() if event["pid"] in pids
        ]
        return record

    def _realtime_error(self, machine: Machine) -> Tuple[int, int]:
        """(host TSC, guest's REALTIME less the host's there in ns)."""
        tsc, now, _ = self._bracket()
        return tsc, machine.clock(REALTIME, tsc) - now

    def _bracket(self) -> Tuple[int, int, int]:
        """(host TSC, host's REALTIME in ns, ticks that lay round it), the narrowest of some."""
        found = []
        for _ in range(5):
            before = self._tsc()
            now = time.clock_gettime_ns(time.CLOCK_REALTIME)
            after = self._tsc()
            found.append(((before + after) // 2, now, after - before))
        return min(found, key=lambda bracket: bracket[2])

    def _observe(self, vm: Vm, layout: Layout, usual: int, seconds: float) -> None:
        """Returns when REALTIME is right and has been for a while, or when the time is over."""
        end = time.monotonic() + seconds
        right_since = None
        offsets = tuple(vm.offsets())
        while time.monotonic() < end:
            _, error = self._realtime_error(vm.machine(layout, offsets))
            now = time.monotonic()
            if abs(error - usual) > RIGHT_NS:
                right_since = None
            elif right_since is None:
                right_since = now
            if right_since is not None and now - right_since > _STAYS_RIGHT_S:
                return
            vm.check_alive()
            time.sleep(10 * _POLL_S)

    def _ask(self, column: Column, vm: Vm) -> None:
        """What the guest itself has seen since it was booted. Where it does not say it, the moves count."""
        try:
            self._asked(column, vm)
        except (MoveFailed, ValueError) as error:
            tell(kind="unasked", column=column.name, why=str(error))
            say(f"{column.name}: {error}")

    def _asked(self, column: Column, vm: Vm) -> None:
        vm.type("ask")
        said = vm.await_text(r"clocks: loops (\d+) backward (\d+) forward_ns (\d+)")
        tell(kind="guest_saw", column=column.name, loops=int(said[1]), backward=int(said[2]),
             forward_ns=int(said[3]))  # fmt: skip
        vm.type("watched")
        vm.await_text(r"guest: watched")
        tell(kind="guest_watched", column=column.name, **watched_in(vm.printed.read_text(errors="replace")))


class Watcher:
    """Looks at the destination's clocks from before the move until the end of the observation. It keeps
    what it saw when somebody had set REALTIME, and five times a second."""

    def __init__(self, vm: Vm, layout: Layout, read_tsc: Callable[[], int]) -> None:
        self._vm, self._layout, self._tsc = vm, layout, read_tsc
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: List[Tuple[int, str, str]] = []  # host TSC, timekeeper, vCPU 0's page

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        # Its wake-ups are few and short; they are not to wait for the guest's busy vCPUs.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        kept_at, ahead = 0.0, 0
        last = None
        while not self._over.wait(_POLL_S):
            try:
                page, data = self._vm.pages(self._layout)[0], self._vm.timekeeper(self._layout)
                keeper = Timekeeper.parse(data)
            except (NotALine, MoveFailed, OSError):
                continue  # its memory is not there yet
            last = (self._tsc(), data.hex(), page.hex())
            now = time.monotonic()
            if abs(keeper.realtime_ahead() - ahead) > RIGHT_NS // 20 or now - kept_at > _KEPT_EVERY_S:
                kept_at, ahead = now, keeper.realtime_ahead()
                self.seen.append(last)
        if last is not None:
            self.seen.append(last)


def watched_in(printed: str) -> Dict:
    """What `continuo watch` in the guest has seen: MONOTONIC's seams, and steps back of each clock."""
    events, back = [], {}
    for line in printed.splitlines():
        words = line.split()
        if words[:2] == ["guest:", "event"]:
            before, after, seam, bound = map(int, words[2:6])
            events.append({"counter": [before, after], "seam_ns": seam, "bound_ns": bound})
        elif words[:2] == ["guest:", "back"]:
            back[words[2]] = back.get(words[2], 0) + int(words[3])
    return {"events": events, "back": back}


def as_record(vm: Vm, layout: Layout) -> Dict:
    return {
        "offsets": vm.offsets(),
        "pages": [page.hex() for page in vm.pages(layout)],
        "timekeeper": vm.timekeeper(layout).hex(),
    }


def layout_in(printed: str) -> Layout:
    """From what the guest says of its kernel: where its code lies, and its symbols."""
    code, symbols = None, {}
    for line in printed.splitlines():
        words = line.strip().split()
        if words[:2] == ["guest:", "code"]:
            code = int(words[2], 16)
        elif words[:2] == ["guest:", "symbol"]:
            symbols[words[4]] = int(words[2], 16)
    missing = {"_stext", "_vdso_data", "hv_clock_boot"} - symbols.keys()
    if code is None or missing:
        raise MoveFailed(f"the guest does not say where its clocks are ({', '.join(missing) or 'code'})")
    shift = code - symbols["_stext"]
    return Layout(symbols["hv_clock_boot"] + shift, symbols["_vdso_data"] + shift)


if __name__ == "__main__":
    sys.exit(main())
