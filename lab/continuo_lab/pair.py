"""Two emulated hosts at once, `a` and `b`, with a network between them.

They share two things and nothing else: a virtio-net link, and one page of memory (ivshmem) through
which test programs can say what must need neither network nor clock. Both are descriptors that the
two QEMUs inherit: no port and no interface of the machine is touched.

Each host has a control port beside the three of base_image.py. Nothing is run before both hosts are
up ("go"), and both stay up until both programs have ended ("over"), so that neither loses what the
other had still to say.
"""

import contextlib
import os
import shlex
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from . import errors
from .boots import (
    BOOT_SECONDS_MAX,
    ICOUNT_KHZ,
    check_memory,
    initramfs_of,
    keep_console,
    qemu_for,
    result_of,
    with_icount,
)
from .cache import Cache, CachedKernel, cache_root
from .catalog import Host, kernel_named
from .emulator import Boot, Emulator, Outcome
from .errors import BootFailed, LabError
from .machine_tsc import machine_tsc_khz
from .payload import PROLOGUE_DESCRIPTOR, Payload, build_payload
from .progress import Progress
from .streams import Descriptor, Memory, Prefixed, Sink

NAMES = ("a", "b")
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
_SHARED_BYTES = 1 << 16
_REPOSITORY = Path(__file__).resolve().parents[2]
_CLOCK_PROGRAM = "continuo-crosshost"
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class HostRequest:
    """What is asked for of one of the two."""

    kernel: str
    command: Sequence[str]
    smp: int
    memory_mib: int
    append: Sequence[str] = ()  # further kernel parameters
    tsc_khz: Optional[int] = None  # what the kernel is to believe; None: what is so
    icount: bool = False
    maxerror_us: Optional[int] = None  # None with synchronised: nothing is set
    synchronised: bool = True

    def sets_ntp(self) -> bool:
        return self.maxerror_us is not None or not self.synchronised


@dataclass(frozen=True)
class PairRequest:
    host: Host
    hosts: Dict[str, HostRequest]
    files: Sequence[str]
    realtime_offset_ns: Optional[int]  # b's REALTIME less a's; None: as the hosts booted
    timeout_s: float  # from the moment when both are up; 0 = none
    linger_s: float  # how long one host may go on when the other's program has failed
    capture: bool

    def sets_clocks(self) -> bool:
        return self.realtime_offset_ns is not None or any(
            host.sets_ntp() for host in self.hosts.values()
        )


@dataclass
class HostResult:
    kernel: CachedKernel
    sinks: Tuple[Sink, Sink]
    outcome: Optional[Outcome] = None
    failure: Optional[LabError] = None

    def failed_by_itself(self) -> bool:
        return self.failure is not None and not isinstance(self.failure, Ended)


@dataclass
class PairResult:
    hosts: Dict[str, HostResult]
    boots: int

    def exit_code(self) -> int:
        """0 where both programs ended with 0; else that of the first failure: of a host before that
        of a program, of a before that of b."""
        hosts = self.hosts.values()
        codes = [host.failure.exit_code for host in hosts if host.failed_by_itself()]
        codes += [host.outcome.exit_code for host in hosts if host.outcome is not None]
        return next((code for code in codes if code != 0), 0)

    def as_json(self) -> Dict[str, object]:
        hosts: Dict[str, object] = {}
        for name, host in self.hosts.items():
            found = result_of(host.outcome or Outcome(), host.kernel, host.sinks)
            if host.failure is not None:
                found.update(exit_code=None, error=str(host.failure))
            hosts[name] = found
        return {"exit_code": self.exit_code(), "boots": self.boots, "hosts": hosts}


class Ended(LabError):
    """A host that was ended only because the other one had failed."""

    def __init__(self, message: str):
        super().__init__(errors.HOST_DIED, message)


def run_pair(request: PairRequest, progress: Progress) -> PairResult:
    """Raises LabError where nothing was run; what happens afterwards is in the result."""
    _check(request)
    payloads = {name: _payload(request, name) for name in NAMES}
    for name, payload in payloads.items():
        check_memory(payload, request.hosts[name].memory_mib)
    cache = Cache(cache_root(), progress)
    qemu = qemu_for(request.host, cache, progress)
    kernels = {
        name: cache.find_or_fetch(request.host, kernel_named(request.hosts[name].kernel))
        for name in NAMES
    }
    for number, seconds_max in enumerate(BOOT_SECONDS_MAX, start=1):
        with _Pair(request, payloads, kernels, qemu, seconds_max, progress) as pair:
            try:
                return PairResult(pair.run(), number)
            except BootFailed as failure:
                if number == len(BOOT_SECONDS_MAX):
                    failure.args = (f"{failure}\n  this was boot {number}, and the last",)
                    raise
                progress.warn(f"boot {number} failed, nothing was run, booting again: {failure}")
    raise AssertionError("the last boot returns or raises")


def _check(request: PairRequest) -> None:
    if request.host.emulator != "QEMU":
        what = f"{request.host.name} is {request.host.emulator}'s, which has no network for two"
        raise LabError(errors.BAD_REQUEST, what, "take a host of QEMU's: --host x86-svm")
    has_tsc = request.host.architecture.has_tsc
    for name, asked in request.hosts.items():
        if not has_tsc and (asked.icount or asked.tsc_khz is not None):
            raise LabError(
                errors.BAD_REQUEST,
                f"host {name}: {request.host.name} has no TSC; its counter's frequency is fixed",
                "leave out --tsc-khz and --icount, or take --host x86-svm",
            )


# ---- what runs inside ----


def _payload(request: PairRequest, name: str) -> Payload:
    payload = build_payload(request.host, request.hosts[name].command, request.files)
    clock: Tuple[str, ...] = ()
    if request.sets_clocks():
        program = _REPOSITORY / request.host.architecture.build_folder / _CLOCK_PROGRAM
        if not program.is_file():
            raise LabError(
                errors.NOT_FOUND,
                f"clocks are set by {program}, which is not there",
                f"build it: {request.host.architecture.make_target}",
            )
        payload.place(program, str(program))
        command = _clock_command(request, name, program)
        clock = (f"{command} {PROLOGUE_DESCRIPTOR}>&- || exit 126",)
    payload.prologue = (*_prologue(name), *clock)
    payload.epilogue = _EPILOGUE
    return payload


def _prologue(name: str) -> Tuple[str, ...]:
    peer = NAMES[1 - NAMES.index(name)]
    addresses = "".join(f"{ADDRESSES[each]} {each}\\n" for each in NAMES)
    port = PROLOGUE_DESCRIPTOR
    return (
        f"export CONTINUO_LAB_NAME={name} CONTINUO_LAB_PEER={peer}",
        f"export CONTINUO_LAB_PEER_ADDRESS={ADDRESSES[peer]}",
        f"hostname {name}",
        f"printf '{addresses}' >>/etc/hosts",
        "until [ -c /dev/vport0p4 ] && [ -e /sys/class/net/eth0 ]; do sleep 0.05; done",
        f"ip address add {ADDRESSES[name]}/24 dev eth0 && ip link set eth0 up || exit 126",
        f"exec {port}<>/dev/vport0p4",
        f"echo ready >&{port}",
        f"read -r go <&{port}",
    )


_EPILOGUE = (
    f'echo "ended $code" >&{PROLOGUE_DESCRIPTOR}',
    f"read -r over <&{PROLOGUE_DESCRIPTOR}",
)


def _clock_command(request: PairRequest, name: str, program: Path) -> str:
    """The same on both hosts but for the NTP state: they set the clocks together."""
    asked = request.hosts[name]
    words = [str(program), "clock"]
    if request.realtime_offset_ns is not None:
        words += [f"--offset-ns={request.realtime_offset_ns}"]
    if asked.maxerror_us is not None:
        words += [f"--maxerror-us={asked.maxerror_us}"]
    if not asked.synchronised:
        words += ["--unsynchronised"]
    return " ".join(shlex.quote(word) for word in words)


# ---- what the two QEMUs get ----


def kernel_parameters(asked: HostRequest, machine_khz: Optional[int]) -> str:
    """The kernel is told its TSC's frequency (machine_tsc.py says why, and two hosts that measure
    would not find the same one), and nothing to refine it with: neither HPET nor the PM timer
    (tsc_refine_calibration_work() then keeps what it has)."""
    khz = asked.tsc_khz or (ICOUNT_KHZ if asked.icount else machine_khz)
    words = [] if khz is None else [f"tsc_early_khz={khz}", "hpet=disable", "pmtmr=0"]
    return " ".join([*words, *asked.append])


def emulated_host(host: Host, icount: bool) -> Host:
    """`icount`: a 1 GHz TSC that keeps to real time while the host is idle."""
    return with_icount(host, "auto,sleep=on") if icount else host


def cpus_for_two() -> Tuple[int, int]:
    """One CPU of the machine for each QEMU. Where threads of one QEMU read the TSC on two CPUs at
    once, a reading can come out a few hundred ticks below an earlier one; cpu_get_ticks() then
    raises that QEMU's offset for good, and the guest's TSC runs ahead of the machine's in small
    steps (seen: 100 000 ticks in 10 s with two spinning readers). On one CPU it cannot happen."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[-1]


def link_arguments(name: str, network: int, page: int, control: int) -> Tuple[str, ...]:
    """The network, the shared page and the control port; three inherited descriptors."""
    mac = f"52:54:00:4c:41:{NAMES.index(name) + 1:02x}"
    return (
        *("-netdev", f"socket,id=link,fd={network}"),
        *("-device", f"virtio-net-pci,netdev=link,mac={mac},romfile="),
        "-object",
        f"memory-backend-file,id=page,mem-path=/proc/self/fd/{page},size={_SHARED_BYTES},share=on",
        *("-device", "ivshmem-plain,memdev=page"),
        *("-chardev", f"socket,id=control,fd={control}"),
        *("-device", "virtserialport,chardev=control,nr=4,name=continuo.control"),
    )


# ---- the two of them ----


@dataclass
class _Running:
    """One host while it runs. The thread writes `outcome` and `failure`, then ends."""

    name: str
    emulator: Emulator
    result: HostResult
    control: socket.socket
    up: threading.Event
    thread: Optional[threading.Thread] = None
    raised: Optional[BaseException] = None
    ready: bool = False
    ended: Optional[int] = None  # the program's exit code, while its host waits for the other
    received: bytes = b""

    def is_over(self) -> bool:
        return self.thread is not None and not self.thread.is_alive()

    def program_code(self) -> Optional[int]:
        """None while it runs, and where its host died under it."""
        if self.ended is None and self.is_over() and self.result.outcome is not None:
            return self.result.outcome.exit_code  # it ended before its program began
        return self.ended


class _Pair:
    """One boot of both. A context manager: no QEMU outlives it."""

    def __init__(self, request: PairRequest, payloads, kernels, qemu, seconds_max, progress):
        self._request = request
        self._progress = progress
        self._stack = contextlib.ExitStack()
        self._hosts: List[_Running] = []
        self._shared_sinks = None if request.capture else (Descriptor(1), Descriptor(2))
        self._went_at: Optional[float] = None
        self._failed_at: Optional[float] = None
        with contextlib.ExitStack() as building:
            self._build(building, payloads, kernels, qemu, seconds_max)
            self._stack = building.pop_all()

    def __enter__(self) -> "_Pair":
        return self

    def __exit__(self, *_exception) -> None:
        for host in self._hosts:
            host.emulator.cancel(Ended("the tool ends"))
        for host in self._hosts:
            if host.thread is not None:
                host.thread.join()
        self._stack.close()

    def run(self) -> Dict[str, HostResult]:
        what = " and ".join(
            f"{host.name} (Linux {host.result.kernel.manifest.release})" for host in self._hosts
        )
        with contextlib.ExitStack() as booting:
            booting.enter_context(self._progress.stage(f"booting {what}, TCG"))
            for host in self._hosts:
                host.thread = threading.Thread(target=_run_host, args=(host,), daemon=True)
                host.thread.start()
            self._until_all_ready()
            booting.close()
            self._go()
            self._until_all_over()
        self._finish_sinks()
        return {host.name: host.result for host in self._hosts}

    # -- building --

    def _build(self, stack, payloads, kernels, qemu, seconds_max) -> None:
        machine_khz = machine_tsc_khz() if self._request.host.architecture.has_tsc else None
        network = dict(zip(NAMES, socket.socketpair()))
        page = os.memfd_create("continuo-lab-page")
        stack.callback(os.close, page)
        os.ftruncate(page, _SHARED_BYTES)
        for name, cpu in zip(NAMES, cpus_for_two()):
            asked = self._request.hosts[name]
            ours, theirs = socket.socketpair()
            for each in (network[name], ours, theirs):
                stack.callback(each.close)
            ours.setblocking(False)
            inherited = (network[name].fileno(), page, theirs.fileno())
            boot = Boot(
                host=emulated_host(self._request.host, asked.icount),
                qemu=qemu.program,
                environment=qemu.environment,
                vmlinuz=kernels[name].vmlinuz,
                initramfs=stack.enter_context(
                    initramfs_of(kernels[name], payloads[name], ("virtio_net",))
                ),
                smp=asked.smp,
                memory_mib=asked.memory_mib,
                timeout_s=0,  # counted here, for both
                boot_seconds_max=seconds_max,
                kernel_parameters=kernel_parameters(asked, machine_khz),
                more_arguments=link_arguments(name, *inherited),
                descriptors=inherited,
                cpu=cpu,
            )
            sinks = self._sinks(name)
            up = threading.Event()
            emulator = Emulator(boot, *sinks, on_up=up.set)
            self._hosts.append(
                _Running(name, emulator, HostResult(kernels[name], sinks), ours, up)
            )

    def _sinks(self, name: str) -> Tuple[Sink, Sink]:
        if self._shared_sinks is None:
            return Memory(), Memory()
        stdout, stderr = self._shared_sinks
        prefix = f"{name}| ".encode()
        return Prefixed(stdout, prefix), Prefixed(stderr, prefix)

    def _finish_sinks(self) -> None:
        for sink in self._shared_sinks or ():
            sink.finish()

    # -- running --

    def _until_all_ready(self) -> None:
        """BootFailed, or what else stopped a host, with the log of its console."""
        began = time.monotonic()
        while not all(host.ready for host in self._hosts):
            self._hear()
            for host in self._hosts:
                if host.is_over():
                    raise self._boot_failure(host)
            late = all(host.up.is_set() for host in self._hosts) and (
                time.monotonic() - began > BOOT_SECONDS_MAX[-1]
            )
            if late:
                raise BootFailed("the hosts are up, but do not find their network")
            time.sleep(_POLL_SECONDS)

    def _boot_failure(self, host: _Running) -> BaseException:
        if host.raised is not None:
            return host.raised
        failure = host.result.failure
        if failure is None:
            outcome = host.result.outcome
            code = outcome.exit_code if outcome else "nothing"
            failure = BootFailed(f"it ended with {code} before its program was run")
        failure.args = (
            f"host {host.name}: {failure}\n  console's log: {keep_console(host.emulator)}",
        )
        return failure

    def _go(self) -> None:
        self._went_at = time.monotonic()
        for host in self._hosts:
            self._progress.detail(" ".join(host.emulator.command))
            host.control.send(b"go\n")

    def _until_all_over(self) -> None:
        told = False
        while not all(host.is_over() for host in self._hosts):
            self._hear()
            self._raise_what_was_raised()
            self._look_after_failures()
            self._look_at_the_time()
            if not told and all(host.ended is not None or host.is_over() for host in self._hosts):
                self._over()
                told = True
            time.sleep(_POLL_SECONDS)
        self._raise_what_was_raised()
        for host in self._hosts:
            if host.result.failed_by_itself():
                failure = host.result.failure
                failure.args = (f"{failure}\n  console's log: {keep_console(host.emulator)}",)

    def _hear(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                host.received += host.control.recv(4096)
            *lines, host.received = host.received.split(b"\n")
            for line in lines:
                word, _, rest = line.partition(b" ")
                if word == b"ready":
                    host.ready = True
                elif word == b"ended" and rest.isdigit():
                    host.ended = int(rest)

    def _raise_what_was_raised(self) -> None:
        for host in self._hosts:
            if host.raised is not None:
                raise host.raised

    def _look_after_failures(self) -> None:
        """A host that died ends the other at once; a program that failed, after a while."""
        for host, other in zip(self._hosts, reversed(self._hosts)):
            if host.is_over() and host.result.failed_by_itself():
                other.emulator.cancel(Ended(f"ended because host {host.name} died"))
            code = host.program_code()
            if not code or other.program_code() is not None:
                continue
            if self._failed_at is None:
                self._failed_at = time.monotonic()
            if time.monotonic() - self._failed_at > self._request.linger_s:
                other.emulator.cancel(
                    Ended(f"ended because the program on host {host.name} failed ({code})")
                )

    def _look_at_the_time(self) -> None:
        limit = self._request.timeout_s
        if not limit or self._went_at is None or time.monotonic() - self._went_at < limit:
            return
        for host in self._hosts:
            if host.ended is None:
                host.emulator.cancel(
                    LabError(
                        errors.TIMED_OUT,
                        f"the program on host {host.name} did not end within {limit:g} s",
                        "give it more with --timeout SECONDS (0 = no limit)",
                    )
                )

    def _over(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(OSError):
                host.control.send(b"over\n")


def _run_host(host: _Running) -> None:
    try:
        host.result.outcome = host.emulator.run()
    except LabError as failure:
        host.result.failure = failure
    except BaseException as error:  # OutputClosed, OSError: for the main thread to raise
        host.raised = error
