"""What every boot needs, of one host or of two: emulator, initramfs, log of a failure, result."""

import base64
import contextlib
import dataclasses
import os
import shutil
import time
from typing import Dict, List, Optional, Sequence, Tuple

from . import bochs, errors
from .cache import Cache, CachedKernel, cache_root
from .catalog import Host
from .emulator import Emulator, Outcome
from .errors import LabError
from .machine_tsc import machine_tsc_khz
from .newer_qemu import NewerQemu, Qemu
from .payload import Payload
from .progress import Progress
from .requirements import require_files, require_program

# A boot under TCG is lost now and then. The last try has time enough for a busy machine.
BOOT_SECONDS_MAX = (60.0, 90.0, 180.0)
ICOUNT_KHZ = 1_000_000  # of the TSC then
_LOGS_KEPT = 20
_KERNEL_MIB = 224  # what the kernel and the base image take, measured, with some room


def qemu_for(host: Host, cache: Cache, progress: Progress) -> Qemu:
    """The machine's, installed where root may and it is missing, or a newer one in the cache. Or
    Bochs, for the host that is its."""
    if host.qemu_from is not None:
        return NewerQemu(cache, progress).find_or_fetch(host)
    if host.emulator == "Bochs":
        require_files(bochs.FILES, host.qemu_package, progress)
        return Qemu(require_program(host.qemu, host.qemu_package, progress), bochs.ENVIRONMENT)
    return Qemu(require_program(host.qemu, host.qemu_package, progress), {})


def with_icount(host: Host, shift: str) -> Host:
    """Time by instructions: the TSC is that virtual time, 1 GHz. QEMU does it in one thread."""
    arguments = [word.replace("thread=multi", "thread=single") for word in host.qemu_arguments]
    return dataclasses.replace(host, qemu_arguments=(*arguments, "-icount", f"shift={shift}"))


def kernel_parameters(
    host: Host, tick_hz: Optional[int], icount: bool, further: Sequence[str]
) -> str:
    """A kernel that measures its TSC on a busy machine may find anything (machine_tsc.py); told
    what it is, it corrects that by one percent at most. The same for the delay loop, which counts
    TSC ticks: a CPU that is brought up late measures it for two seconds."""
    words: List[str] = []
    if host.architecture.has_tsc and host.emulator == "QEMU":
        khz = ICOUNT_KHZ if icount else machine_tsc_khz()
        if khz is not None:
            words += [f"tsc_early_khz={khz}"]
            words += [f"lpj={khz * 1000 // tick_hz}"] if tick_hz else []
    return " ".join([*words, *further])


def clock_arguments(icount: bool, realtime_offset_s: int) -> Tuple[str, ...]:
    """QEMU's real-time clock, from which the kernel sets its own at boot; it has whole seconds.
    What else differs from run to run is made the same with icount."""
    rtc: Tuple[str, ...] = ()
    if realtime_offset_s or icount:
        base = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + realtime_offset_s))
        rtc = ("-rtc", f"base={base}" + (",clock=vm" if icount else ""))
    return (*rtc, "-seed", "1") if icount else rtc


def result_of(outcome: Outcome, kernel: CachedKernel, captured) -> Dict[str, object]:
    result: Dict[str, object] = {
        "exit_code": outcome.exit_code,
        "kernel": kernel.manifest.release,
        "up_seconds": outcome.up_s,
        "first_output_seconds": outcome.first_output_s,
        "total_seconds": outcome.total_s,
    }
    for name, sink in zip(("stdout", "stderr"), captured):
        try:
            result[name] = bytes(sink.content).decode("utf-8")
        except UnicodeDecodeError:
            result[f"{name}_base64"] = base64.b64encode(sink.content).decode("ascii")
    return result


def check_memory(payload: Payload, memory_mib: int) -> None:
    """The initramfs is in memory twice while the kernel unpacks it."""
    needed = 2 * (payload.size() >> 20) + _KERNEL_MIB
    if needed > memory_mib:
        raise LabError(
            errors.BAD_REQUEST,
            f"the program and its files are too large for {memory_mib} MiB of memory",
            f"give more: --memory {needed + needed // 4}",
        )


@contextlib.contextmanager
def initramfs_of(kernel: CachedKernel, payload: Payload, modules: Tuple[str, ...] = ()):
    """The cached base with the run's own files after it, in memory. `modules` are inserted beside
    those of the host."""
    with open(os.memfd_create("continuo-lab-initramfs"), "w+b") as image:
        with open(kernel.base_cpio, "rb") as base:
            shutil.copyfileobj(base, image)
        payload.write(image, kernel.load_order(payload.host, modules))
        image.flush()
        yield image


def keep_console(emulator: Emulator) -> str:
    folder = cache_root() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("console-*.log"))[: -(_LOGS_KEPT - 1)]:
            old.unlink(missing_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{time.time_ns() // 10**6 % 1000:03}"
        log = folder / f"console-{stamp}-{os.getpid()}.log"
        log.write_bytes(" ".join(emulator.command).encode() + b"\n" + bytes(emulator.console))
        return str(log)
    except OSError as error:
        return f"not kept ({error})"
