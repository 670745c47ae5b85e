"""Runs QEMU or Bochs, relays the program's output, and finds out how it all ended.

Apart from the kernel image, everything that they read and write is an inherited descriptor: a run
has no files, so nothing is left behind however the tool ends.
"""

import contextlib
import ctypes
import dataclasses
import os
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, Dict, List, Mapping, Optional, Tuple

from . import bochs
from .catalog import Host
from .errors import HOST_DIED, HOST_NEVER_UP, TIMED_OUT, BootFailed, LabError
from .streams import Sink

_POWER_OFF_SECONDS_MAX = 5.0
_LAST_WORDS_SECONDS_MAX = 5.0  # for a slow reader, after a failure
_READ_BYTES = 1 << 16
_CONSOLE_BYTES_MAX = 4 << 20  # the beginning and the end are kept
_PR_SET_PDEATHSIG = 1
# The self-tests of the kernel's ciphers take half a second.
_KERNEL_LINE = "quiet panic=-1 rdinit=/.lab/init cryptomgr.notests"


@dataclass(frozen=True)
class Boot:
    host: Host
    qemu: str
    vmlinuz: Path
    initramfs: BinaryIO  # a file with a descriptor of its own, readable by /dev/fd/N
    smp: int
    memory_mib: int
    timeout_s: float  # of the program, from the moment when the host is up; 0 = none
    boot_seconds_max: float
    kernel_parameters: str = ""  # after the tool's own
    more_arguments: Tuple[str, ...] = ()  # of QEMU
    descriptors: Tuple[int, ...] = ()  # that more_arguments name
    cpu: Optional[int] = None  # of the machine, for all of QEMU; None: any
    terminal: bool = False  # the console is the tool's own terminal, Ctrl-A x ends QEMU
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)  # further, of QEMU


@dataclass
class Outcome:
    exit_code: int = -1
    up_s: Optional[float] = None  # from QEMU's start until the host was up
    first_output_s: Optional[float] = None  # from QEMU's start until the program's first byte
    total_s: float = 0.0


def kernel_line(host: Host, further: str = "") -> str:
    of_host = (host.architecture.kernel_line, host.kernel_parameters)
    words = (f"console={host.architecture.console}", _KERNEL_LINE, *of_host, further)
    return " ".join(word for word in words if word)


def qemu_command(boot: Boot, ports: Dict[str, int], console: int) -> List[str]:
    """`ports` are the descriptors of stdout, stderr and status, in this order."""
    command = [
        *(boot.qemu, "-name", "continuo-lab", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-nic", "none"),
        *boot.host.qemu_arguments,
        *("-smp", str(boot.smp), "-m", str(boot.memory_mib)),
        *("-kernel", str(boot.vmlinuz), "-initrd", f"/dev/fd/{boot.initramfs.fileno()}"),
        *("-append", kernel_line(boot.host, boot.kernel_parameters)),
        *("-chardev", _console_chardev(boot, console), "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci,max_ports=8"),
    ]
    for number, (name, descriptor) in enumerate(ports.items(), start=1):
        command += ["-chardev", f"file,id={name},path=/dev/fd/{descriptor}"]
        command += ["-device", f"virtserialport,chardev={name},nr={number},name=continuo.{name}"]
    return [*command, *boot.more_arguments]


def _console_chardev(boot: Boot, descriptor: int) -> str:
    path = f"/dev/fd/{descriptor}"
    if boot.terminal:
        return f"stdio,id=console,mux=on,signal=off,logfile={path}"
    return f"file,id=console,path={path}"


class Emulator:
    """One run. `on_up` is called when the host is up, before the program's output is relayed."""

    def __init__(self, boot: Boot, stdout: Sink, stderr: Sink, on_up: Callable[[], None]):
        self._boot = boot
        self._sinks = {"stdout": stdout, "stderr": stderr}
        self._on_up = on_up
        self._outcome = Outcome()
        self._status = b""
        self._finished_at: Optional[float] = None
        self._failure = ""
        self._cancelled: Optional[LabError] = None
        self._began = 0.0
        self._screen = bochs.Screen()
        self.console = bytearray()
        self.command: List[str] = []

    def run(self) -> Outcome:
        """Raises LabError if the program did not come to its own end; QEMU is gone either way,
        and what the program had written by then is passed on either way."""
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            process = self._start(selector, stack)
            # Undone in reverse: QEMU is killed before its pipes are closed.
            stack.callback(_end, process)
            failure = self._relay(selector, process)
            _end(process)
            self._outcome.total_s = time.monotonic() - self._began
            self._drain(selector)
        failure = failure or self._verdict(process)
        for sink in self._sinks.values():
            sink.finish(None if failure is None else _LAST_WORDS_SECONDS_MAX)
        if failure is not None:
            raise failure
        return self._outcome

    def cancel(self, why: LabError) -> None:
        """From another thread: run() ends QEMU within half a second and raises `why`, unless it is
        about to end by itself."""
        self._cancelled = why

    def _start(self, selector, stack) -> subprocess.Popen:
        reads: Dict[str, int] = {}
        writes: Dict[str, int] = {}
        # The order is that of relaying: status first, so that the host is known to be up before
        # the first byte of its program is passed on.
        for name in ("status", "stdout", "stderr", "console"):
            reads[name], writes[name] = os.pipe()
            stack.callback(os.close, reads[name])
            os.set_blocking(reads[name], False)
            selector.register(reads[name], selectors.EVENT_READ, name)
        ports = {name: writes[name] for name in ("stdout", "stderr", "status")}
        descriptors = [*writes.values(), *self._prepare(ports, writes["console"], stack)]
        self._began = time.monotonic()
        try:
            return subprocess.Popen(
                self.command,
                stdin=None if self._boot.terminal else subprocess.DEVNULL,
                stdout=None if self._boot.terminal else writes["console"],
                stderr=writes["console"],
                pass_fds=descriptors,
                preexec_fn=_dies_with(os.getpid(), self._boot.cpu),
                env={**os.environ, **self._boot.environment},
                start_new_session=True,  # Ctrl-C reaches the tool only, which then ends QEMU
            )
        finally:
            for descriptor in writes.values():
                os.close(descriptor)

    def _prepare(self, ports: Dict[str, int], console: int, stack) -> List[int]:
        """The command; what it reads beside the ports, as descriptors."""
        boot = self._boot
        if boot.host.emulator == "Bochs":
            line = kernel_line(boot.host, boot.kernel_parameters)
            prepared = bochs.prepare(boot, line, {**ports, "console": console})
            stack.callback(prepared.close)
            self.command = prepared.command
            return prepared.descriptors
        self.command = qemu_command(boot, ports, console)
        return [boot.initramfs.fileno(), *boot.descriptors]

    def _relay(self, selector, process: subprocess.Popen) -> Optional[LabError]:
        """Until QEMU ends, the end of the program is long past, or the time is up."""
        while selector.get_map() and not self._power_off_overdue():
            late = self._lateness()
            if late is not None:
                return late
            paused = self._pause_where_nobody_reads(selector)
            events = selector.select(0.05 if paused else 0.25)
            self._take(selector, events)
            self._resume(selector, paused)
            if not events and not paused and process.poll() is not None:
                break
        return None

    def _take(self, selector, events) -> None:
        order = ("status", "stdout", "stderr", "console")
        for key, _ in sorted(events, key=lambda event: order.index(event[0].data)):
            data = os.read(key.fd, _READ_BYTES)
            if not data:
                selector.unregister(key.fd)
            elif key.data == "status":
                self._take_status(data)
            elif key.data == "console":
                self._take_console(data)
            else:
                self._take_output(self._sinks[key.data], data)

    def _take_status(self, data: bytes) -> None:
        *lines, self._status = (self._status + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == "up":
                self._outcome.up_s = time.monotonic() - self._began
                self._on_up()
            elif word == "exit" and rest.isdecimal():
                self._outcome.exit_code = int(rest)
                self._finished_at = time.monotonic()
            else:
                self._failure = rest or word

    def _take_output(self, sink: Sink, data: bytes) -> None:
        if self._outcome.first_output_s is None:
            self._outcome.first_output_s = time.monotonic() - self._began
        sink.put(data)

    def _take_console(self, data: bytes) -> None:
        self.console += data
        self._screen.look(self.console)
        if len(self.console) > _CONSOLE_BYTES_MAX:
            half = _CONSOLE_BYTES_MAX // 2
            self.console[half:-half] = b"\n[... left out ...]\n"

    def _lateness(self) -> Optional[LabError]:
        if self._cancelled is not None and self._finished_at is None:
            return self._cancelled
        now = time.monotonic()
        if self._outcome.up_s is None:
            if now - self._began > self._boot.boot_seconds_max:
                return BootFailed(
                    f"the emulated host did not come up within {self._boot.boot_seconds_max:g} s",
                    "see the console's log; on a busy machine try again",
                )
        elif self._boot.timeout_s and self._finished_at is None:
            if now - self._began - self._outcome.up_s > self._boot.timeout_s:
                return LabError(
                    TIMED_OUT,
                    f"the program did not end within {self._boot.timeout_s:g} s",
                    "give it more with --timeout SECONDS (0 = no limit)",
                )
        return None

    def _power_off_overdue(self) -> bool:
        # All output was taken before the exit status was sent, so there is nothing to wait for
        # but QEMU's own end; a kernel that hangs in its power-off must not hang the tool.
        limit = _POWER_OFF_SECONDS_MAX
        return self._finished_at is not None and time.monotonic() - self._finished_at > limit

    def _pause_where_nobody_reads(self, selector) -> Dict[int, str]:
        """A guest CPU spins while a port is not read, so much is kept for a slow reader first."""
        full = {
            key.fd: key.data
            for key in list(selector.get_map().values())
            if key.data in self._sinks and self._sinks[key.data].is_full()
        }
        for descriptor in full:
            selector.unregister(descriptor)
        return full

    @staticmethod
    def _resume(selector, paused: Dict[int, str]) -> None:
        for descriptor, name in paused.items():
            selector.register(descriptor, selectors.EVENT_READ, name)

    def _drain(self, selector) -> None:
        """What is in the pipes when QEMU is gone."""
        while selector.get_map():
            self._take(selector, selector.select())

    def _verdict(self, process: subprocess.Popen) -> Optional[LabError]:
        if self._finished_at is not None or self._was_ended_at_the_terminal(process):
            return None
        how = f"{self._boot.host.emulator} ended with {process.returncode}"
        if self._failure:
            return LabError(
                HOST_NEVER_UP,
                f"the emulated host is of no use: {self._failure}",
                "see the console's log; a fresh kernel may help: continuo-lab fetch",
            )
        if self._outcome.up_s is None:
            if process.returncode > 0:  # its own refusal; a panic of the guest ends it with 0
                said = bytes(self.console[-300:]).decode("utf-8", "replace").strip()
                why = f"{how}: {said.splitlines()[-1]}" if said else how
                return LabError(HOST_NEVER_UP, f"it refused ({why})", "see the console's log")
            return BootFailed(
                f"the emulated host ended before it was up ({how})",
                "see the console's log; a fresh kernel may help: continuo-lab fetch",
            )
        return LabError(
            HOST_DIED,
            f"the emulated host died while the program ran ({how})",
            "see the console's log; out of memory? give more with --memory MIB",
        )


    def _was_ended_at_the_terminal(self, process: subprocess.Popen) -> bool:
        """By Ctrl-A x; QEMU ends with 0 then, as it does after a panic."""
        if not self._boot.terminal or process.returncode != 0 or b"Kernel panic" in self.console:
            return False
        self._outcome.exit_code = 0
        return True


def _dies_with(parent: int, cpu: Optional[int]) -> Callable[[], None]:
    """For the child between fork and exec: the kernel kills it when the tool dies. And its CPU."""
    libc = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # died before the line above
            os._exit(1)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})

    return arrange


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
