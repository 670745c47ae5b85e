"""Starts a guest and moves it on, by QEMU or by Continuo: the same files, the same console, the same
way into the guest's memory."""

import json
import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple

from .columns import Column
from .lines import Machine, NotALine, Pvclock, Timekeeper
from .qmp import Qmp, QmpError

PATIENCE_S = 240.0  # for anything that a guest or a VMM does under nested emulation
_DEBUGFS = Path("/sys/kernel/debug/kvm")
_PVCLOCK_STRIDE = 64  # struct pvclock_vsyscall_time_info
_TIMEKEEPER_BYTES = 256
_STABLE_READS_MAX = 1000


class MoveFailed(Exception):
    """A VM that did not start, move or answer; the guest is lost."""


@dataclass(frozen=True)
class Setting:
    """Of all VMs of a run."""

    qemu: str
    continuo: str
    kernel: str
    initrds: Dict[str, str]  # by the services in it, joined by "+"
    cpus: int
    memory_mib: int
    folder: Path  # for sockets, consoles and their like
    tsc_khz: int

    def initrd_of(self, column: Column) -> str:
        return self.initrds["+".join(column.services)]


@dataclass(frozen=True)
class Layout:
    """Where the guest's kernel has its clocks, in guest-physical addresses."""

    pvclock: int
    timekeeper: int


class Vm:
    """A process that runs, or is about to receive, the guest. Its console goes on in each."""

    def __init__(self, setting: Setting, column: Column, number: int) -> None:
        self.setting, self.column, self.number = setting, column, number
        self.base = setting.folder / f"{column.name}-{number}"
        self.printed = Path(f"{self.base}.printed")
        self.log = Path(f"{self.base}.log")
        self.process: Optional[subprocess.Popen] = None
        for path in (self.printed, self.log):
            path.write_bytes(b"")
        self._memory: Optional[int] = None
        self._memory_at = 0
        self._others: Set[str] = set()
        self._folder: Optional[Path] = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command_line(self) -> str:
        return f"console=ttyS0 panic=-1 quiet nowatchdog {self.column.append}".strip()

    def await_text(self, pattern: str, patience_s: float = PATIENCE_S) -> "re.Match[str]":
        """What the guest has printed in this process and matches."""
        end = time.monotonic() + patience_s
        while True:
            found = re.search(pattern, self.printed.read_text(errors="replace"))
            if found is not None:
                return found
            self.check_alive()
            if time.monotonic() > end:
                said = self.printed.read_text(errors="replace")[-500:]
                raise MoveFailed(f"the guest did not say {pattern!r} in {patience_s:g} s: {said}")
            time.sleep(0.05)

    def check_alive(self) -> None:
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            raise MoveFailed(f"the VMM ended with {code}: {self.log.read_text(errors='replace')[-1000:]}")

    def read(self, gpa: int, length: int) -> bytes:
        """Of the guest's memory, as its vCPUs have it."""
        if self._memory is None:
            self._memory_at = self.memory_at()
            self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        data = os.pread(self._memory, length, self._memory_at + gpa)
        if len(data) != length:
            raise MoveFailed(f"guest memory at {gpa:#x} cannot be read")
        return data

    def offsets(self) -> List[int]:
        """The TSC offset of each vCPU, as KVM has it."""
        folder = self._debug_folder()
        return [int((folder / f"vcpu{number}/tsc-offset").read_text())
                for number in range(self.setting.cpus)]  # fmt: skip

    def _debug_folder(self) -> Path:
        """The one that appeared when this VM was made: the next one makes another."""
        if self._folder is None:
            new = sorted(_vms() - self._others)
            if len(new) != 1:
                raise MoveFailed(f"{len(new)} VMs in {_DEBUGFS} that were not there before")
            self._folder = _DEBUGFS / new[0]
        return self._folder

    def pages(self, layout: Layout) -> List[bytes]:
        return [self._stable(layout.pvclock + _PVCLOCK_STRIDE * number, 32, 0)
                for number in range(self.setting.cpus)]  # fmt: skip

    def timekeeper(self, layout: Layout) -> bytes:
        return self._stable(layout.timekeeper, _TIMEKEEPER_BYTES, 0)

    def machine(self, layout: Layout, offsets: Tuple[int, ...] = ()) -> Machine:
        """`offsets` where they are known: debugfs is slow."""
        return Machine(offsets or tuple(self.offsets()), tuple(map(Pvclock.parse, self.pages(layout))),
                       Timekeeper.parse(self.timekeeper(layout)))  # fmt: skip

    def close(self) -> None:
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def type(self, line: str) -> None:
        """At the guest's console."""
        raise NotImplementedError

    def memory_at(self) -> int:
        """Where guest-physical 0 is in the process."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def await_source(self) -> None:
        """Starts a process that the guest may be moved to; returns when it listens."""
        raise NotImplementedError

    def move_to(self, destination: "Vm") -> Dict:
        """Returns when the guest runs there, with what the VMMs say about it."""
        raise NotImplementedError

    def _launch(self, command: Sequence[str]) -> None:
        self._others = _vms()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _stable(self, gpa: int, length: int, sequence_at: int) -> bytes:
        """Not while its sequence number is odd, nor over a change of it."""
        for _ in range(_STABLE_READS_MAX):
            before, data, after = (self.read(gpa, length) for _ in range(3))
            numbers = {one[sequence_at:sequence_at + 4] for one in (before, data, after)}
            if len(numbers) == 1 and data[sequence_at] % 2 == 0:
                return data
        raise NotALine(f"the page at {gpa:#x} never stands still")


class QemuVm(Vm):
    def __init__(self, setting: Setting, column: Column, number: int) -> None:
        super().__init__(setting, column, number)
        self._qmp: Optional[Qmp] = None

    def start(self) -> None:
        self._run(())

    def await_source(self) -> None:
        self._run(("-incoming", f"unix:{self._listens_at()}"))

    def move_to(self, destination: Vm) -> Dict:
        assert isinstance(destination, QemuVm)
        self._monitor().ask("migrate", uri=f"unix:{destination._listens_at()}")
        destination._await_running(self)
        return self._told()

    def memory_at(self) -> int:
        said = self._monitor().monitor("gpa2hva 0")
        found = re.search(r"is (0x[0-9a-f]+)", said)
        if found is None:
            raise MoveFailed(f"gpa2hva: {said}")
        return int(found[1], 16)

    def type(self, line: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as keyboard:
            keyboard.connect(self._keyboard())
            keyboard.sendall(line.encode() + b"\n")

    def version(self) -> str:
        return self._monitor().ask("query-version")["package"]

    def close(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        super().close()

    def _run(self, further: Sequence[str]) -> None:
        setting = self.setting
        hz = str(setting.tsc_khz * 1000)
        self._launch([
            setting.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            *(word.replace("{hz}", hz) for word in self.column.machine),
            *("-m", str(setting.memory_mib), "-smp", str(setting.cpus)),
            *("-kernel", setting.kernel, "-initrd", setting.initrd_of(self.column)),
            *("-append", self.command_line()),
            *("-chardev", f"socket,id=console,path={self._keyboard()},server=on,wait=off,"
                          f"logfile={self.printed}"),
            *("-serial", "chardev:console", "-qmp", f"unix:{self.base}.qmp,server=on,wait=off"),
            *further,
        ])  # fmt: skip
        self._qmp = self._connected()

    def _connected(self) -> Qmp:
        end = time.monotonic() + PATIENCE_S
        while not os.path.exists(f"{self.base}.qmp"):
            self.check_alive()
            if time.monotonic() > end:
                raise MoveFailed("QEMU has no monitor")
            time.sleep(0.05)
        try:
            return Qmp(f"{self.base}.qmp", PATIENCE_S)
        except QmpError as error:
            raise MoveFailed(str(error)) from error

    def _monitor(self) -> Qmp:
        assert self._qmp is not None
        return self._qmp

    def _keyboard(self) -> str:
        return f"{self.base}.console"

    def _listens_at(self) -> str:
        return f"{self.base}.migration"

    def _await_running(self, source: "QemuVm") -> None:
        end = time.monotonic() + PATIENCE_S
        while not self._monitor().ask("query-status")["running"]:
            told = source._monitor().ask("query-migrate")
            if told.get("status") == "failed" or time.monotonic() > end:
                raise MoveFailed(f"QEMU's migration: {json.dumps(told)}")
            self.check_alive()
            time.sleep(0.01)

    def _told(self) -> Dict:
        """Completion reaches the source a little after the destination runs."""
        end = time.monotonic() + PATIENCE_S
        while True:
            told = self._monitor().ask("query-migrate")
            if told.get("status") == "completed":
                keys = ("downtime", "total-time", "setup-time")
                return {"migration": {key: told.get(key) for key in keys} | {"ram": told.get("ram")}}
            if told.get("status") == "failed" or time.monotonic() > end:
                raise MoveFailed(f"QEMU's migration: {json.dumps(told)}")
            time.sleep(0.01)


class ContinuoVm(Vm):
    _REGION = "memfd:continuo-guest"

    def __init__(self, setting: Setting, column: Column, number: int) -> None:
        super().__init__(setting, column, number)
        self._typed = Path(f"{self.base}.typed")
        self._typed.unlink(missing_ok=True)
        os.mkfifo(self._typed)
        self._keyboard = os.open(self._typed, os.O_RDWR)  # so that neither side waits for the other

    def type(self, line: str) -> None:
        os.write(self._keyboard, line.encode() + b"\n")

    def close(self) -> None:
        if self._keyboard >= 0:
            os.close(self._keyboard)
            self._keyboard = -1
        super().close()

    def start(self) -> None:
        setting = self.setting
        self._launch([
            setting.continuo, "vm", "run", "--kernel", setting.kernel,
            *("--initrd", setting.initrd_of(self.column), "--append", self.command_line()),
            *("--cpus", str(setting.cpus), "--memory", f"{setting.memory_mib}M"),
            *self._console_and_control(),
        ])  # fmt: skip
        self._await_log("", lambda: Path(self._control()).exists())

    def await_source(self) -> None:
        self._launch([
            self.setting.continuo, "vm", "receive", "--listen", f"unix:{self.base}.migration",
            *("--policy", self.column.policy), *self._console_and_control(),
        ])  # fmt: skip
        self._await_log("listening on", lambda: False)

    def move_to(self, destination: Vm) -> Dict:
        assert isinstance(destination, ContinuoVm)
        done = subprocess.run(
            [self.setting.continuo, "vm", "send", "--control", self._control(),
             "--to", f"unix:{destination.base}.migration", "--force", "--json"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise MoveFailed(f"vm send ended with {done.returncode}: {done.stdout}{done.stderr}")
        sent = json.loads(done.stdout)
        return {"migration": sent.get("migration"), "certificate": destination._certificate()}

    def memory_at(self) -> int:
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            if self._REGION in line:
                return int(line.split("-", 1)[0], 16)
        raise MoveFailed(f"no {self._REGION} among the mappings of process {self.pid}")

    def _control(self) -> str:
        return f"{self.base}.control"

    def _console_and_control(self) -> Sequence[str]:
        return ("--console", str(self.printed), "--input", str(self._typed), "--control",
                self._control(), "--json")  # fmt: skip

    def _await_log(self, text: str, or_when) -> None:
        end = time.monotonic() + PATIENCE_S
        while not or_when() and not (text and text in self.log.read_text(errors="replace")):
            self.check_alive()
            if time.monotonic() > end:
                raise MoveFailed(f"Continuo did not say {text!r}")
            time.sleep(0.02)

    def _certificate(self) -> Dict:
        """The document that the destination prints, among what it says of its progress."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            said = self.log.read_text(errors="replace")
            at = said.find("\n{") + 1 if not said.startswith("{") else 0
            if at > 0 or said.startswith("{"):
                try:
                    return json.JSONDecoder().raw_decode(said[at:])[0]["certificate"]
                except (ValueError, KeyError):
                    pass
            self.check_alive()
            time.sleep(0.02)
        raise MoveFailed("no certificate came")


def _vms() -> Set[str]:
    """The VMs that have a vCPU. They are named by the thread that made them, which may be gone."""
    return {path.parent.name for path in _DEBUGFS.glob("*/vcpu0")}


def vm_of(setting: Setting, column: Column, number: int) -> Vm:
    return (QemuVm if column.is_qemu else ContinuoVm)(setting, column, number)
