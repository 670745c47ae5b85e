"""The command line: list, fetch, run."""

import argparse
import base64
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from typing import Dict, List, Optional, Sequence, Tuple

from . import errors
from .cache import Cache, CachedKernel, cache_root
from .catalog import DEFAULT_HOST, DEFAULT_KERNEL, HOSTS, KERNELS
from .emulator import Boot, Emulator, Outcome
from .errors import BootFailed, Interrupted, LabError
from .payload import Payload, build_payload
from .progress import Progress
from .requirements import require_program
from .streams import Descriptor, Memory, OutputClosed

_LOGS_KEPT = 20
# A boot under TCG is lost now and then. The last try has time enough for a busy machine.
_BOOT_SECONDS_MAX = (60.0, 90.0, 180.0)
_KERNEL_MIB = 224  # what the kernel and the base image take, measured, with some room

_EXIT_CODES = f"""exit codes:
  the program's own (128 + N if signal N ended it), or
  {errors.FETCH_FAILED}  a kernel could not be fetched
  {errors.MACHINE_LACKS}  a program is missing on this machine (QEMU, apt)
  {errors.HOST_DIED}  the emulated host died while the program ran
  {errors.HOST_NEVER_UP}  the emulated host never came up, in {len(_BOOT_SECONDS_MAX)} boots
  {errors.TIMED_OUT}  the program did not end within --timeout
  {errors.BAD_REQUEST}  the command line asks for something that cannot be
  {errors.NOT_EXECUTABLE}  the program cannot be run there: no program, or a library is missing
  {errors.NOT_FOUND}  there is no such program
  130, 143  interrupted by SIGINT, SIGTERM; {errors.BROKEN_PIPE}  nobody reads the output"""


def main(arguments: Sequence[str]) -> int:
    options_part, command = _split(list(arguments))
    options = _parser().parse_args(options_part)
    progress = Progress(getattr(options, "quiet", False), getattr(options, "verbose", False))
    _arrange_signals()
    try:
        if options.action == "run":
            return _run(options, command, progress)
        if command is not None:
            raise LabError(errors.BAD_REQUEST, f"{options.action} takes no program")
        return {"list": _list, "fetch": _fetch}[options.action](options, progress)
    except (OutputClosed, BrokenPipeError):
        return _leave(errors.BROKEN_PIPE)
    except LabError as error:
        return _report(error, options)
    except OSError as error:
        return _report(LabError(errors.BAD_REQUEST, f"this machine refuses: {error}"), options)
    except Interrupted as interrupt:
        return _leave(128 + interrupt.signum)


def _split(arguments: List[str]) -> Tuple[List[str], Optional[List[str]]]:
    """What stands before `--`, and the program with its arguments after it."""
    if "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1:]


def _list(options, progress: Progress) -> int:
    cache = Cache(cache_root(), progress)
    host = HOSTS[options.host]
    rows = [_describe(kernel.series, cache.find(host, kernel)) for kernel in KERNELS.values()]
    if options.json:
        hosts = [{"host": host.name, "summary": host.summary} for host in HOSTS.values()]
        print(json.dumps({"cache": str(cache.root), "hosts": hosts, "kernels": rows}, indent=2))
        return 0
    print("HOST       WHAT IT IS")
    for host in HOSTS.values():
        print(f"{host.name:<10} {host.summary}")
    print("\nKERNEL     STATE")
    for row in rows:
        state = f"cached: {row['package']} {row['version']}" if row["cached"] else "not fetched yet"
        print(f"{row['kernel']:<10} {state}; {row['summary']}")
    print(f"\ncache: {cache.root}")
    return 0


def _describe(series: str, cached: Optional[CachedKernel]) -> Dict[str, object]:
    row: Dict[str, object] = {
        "kernel": series,
        "summary": KERNELS[series].summary,
        "cached": cached is not None,
    }
    if cached is not None:
        row.update(
            package=cached.manifest.package,
            version=cached.manifest.version,
            release=cached.manifest.release,
            modules=list(cached.manifest.modules),
            folder=str(cached.folder),
        )
    return row


def _fetch(options, progress: Progress) -> int:
    wanted = list(KERNELS) if options.kernel == "all" else [options.kernel]
    cache = Cache(cache_root(), progress)
    found = [cache.fetch_newest(HOSTS[options.host], KERNELS[series]) for series in wanted]
    rows = [_describe(series, cached) for series, cached in zip(wanted, found)]
    if options.json:
        print(json.dumps({"cache": str(cache.root), "kernels": rows}, indent=2))
        return 0
    for row in rows:
        print(f"{row['kernel']}: {row['package']} {row['version']}\n  in {row['folder']}")
    return 0


def _run(options, command: Optional[List[str]], progress: Progress) -> int:
    if not command:
        raise LabError(
            errors.BAD_REQUEST,
            "no program to run",
            "write it after two dashes: continuo-lab run -- build/continuo doctor",
        )
    host = HOSTS[options.host]
    payload = build_payload(host, command, options.file)
    _check_memory(payload, options.memory)
    qemu = require_program(host.qemu, host.qemu_package, progress)
    kernel = Cache(cache_root(), progress).find_or_fetch(host, KERNELS[options.kernel])
    with _initramfs(kernel, payload) as initramfs:
        boot = Boot(
            host, qemu, kernel.vmlinuz, initramfs, options.smp, options.memory, options.timeout,
            _BOOT_SECONDS_MAX[-1],
        )  # fmt: skip
        outcome, captured, boots = _until_up(boot, kernel, options.json, progress)
    if options.json:
        result = {**_result(outcome, kernel, captured), "boots": boots}
        print(json.dumps(result, indent=2), flush=True)
    return outcome.exit_code


def _until_up(boot: Boot, kernel: CachedKernel, capture: bool, progress: Progress):
    """(outcome, sinks of stdout and stderr, number of boots). Boots again where a boot was lost
    before the program began; nothing was run then, so nothing can be run twice."""
    for number, seconds_max in enumerate(_BOOT_SECONDS_MAX, start=1):
        sinks = (Memory(), Memory()) if capture else (Descriptor(1), Descriptor(2))
        this_boot = dataclasses.replace(boot, boot_seconds_max=seconds_max)
        try:
            return _emulate(this_boot, kernel, sinks, progress), sinks, number
        except BootFailed as failure:
            if number == len(_BOOT_SECONDS_MAX):
                failure.args = (f"{failure}\n  this was boot {number}, and the last",)
                raise
            progress.warn(f"boot {number} failed, nothing was run, booting again: {failure}")
    raise AssertionError("the last boot returns or raises")


def _emulate(boot: Boot, kernel: CachedKernel, sinks, progress: Progress) -> Outcome:
    with contextlib.ExitStack() as booting:
        emulator = Emulator(boot, *sinks, on_up=booting.close)
        what = f"booting Linux {kernel.manifest.release} on {boot.host.name} ({boot.smp} CPUs, TCG)"
        booting.enter_context(progress.stage(what))
        try:
            outcome = emulator.run()
        except LabError as error:
            booting.close()
            error.args = (f"{error}\n  console's log: {_keep_console(emulator)}",)
            raise
    progress.detail(" ".join(emulator.command))
    first = outcome.first_output_s
    progress.detail(
        f"host up after {outcome.up_s:.2f} s, "
        + (f"first output after {first:.2f} s, " if first is not None else "no output, ")
        + f"all over after {outcome.total_s:.2f} s; exit code {outcome.exit_code}"
    )
    return outcome


def _result(outcome: Outcome, kernel: CachedKernel, captured) -> Dict[str, object]:
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


def _check_memory(payload: Payload, memory_mib: int) -> None:
    """The initramfs is in memory twice while the kernel unpacks it."""
    needed = 2 * (payload.size() >> 20) + _KERNEL_MIB
    if needed > memory_mib:
        raise LabError(
            errors.BAD_REQUEST,
            f"the program and its files are too large for {memory_mib} MiB of memory",
            f"give more: --memory {needed + needed // 4}",
        )


@contextlib.contextmanager
def _initramfs(kernel: CachedKernel, payload: Payload):
    """The cached base with the run's own files after it, in memory."""
    with open(os.memfd_create("continuo-lab-initramfs"), "w+b") as image:
        with open(kernel.base_cpio, "rb") as base:
            shutil.copyfileobj(base, image)
        payload.write(image)
        image.flush()
        yield image


def _keep_console(emulator: Emulator) -> str:
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


def _arrange_signals() -> None:
    def interrupt(signum, _frame):
        signal.signal(signum, signal.SIG_IGN)  # once is enough
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(signum, interrupt)


def _leave(exit_code: int) -> int:
    """At once: a thread that waits for a slow reader must not hold up the end."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(exit_code)


def _report(error: LabError, options) -> int:
    if options.json:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}), flush=True)
    _complain(error)
    return error.exit_code


def _complain(error: LabError) -> None:
    text = f"continuo-lab: error: {error}\n"
    if error.next_step:
        text += f"continuo-lab: what to do: {error.next_step}\n"
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.print_usage(sys.stderr)
        _complain(LabError(errors.BAD_REQUEST, message, f"see: {self.prog} --help"))
        sys.exit(errors.BAD_REQUEST)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="continuo-lab",
        description="Runs a program inside an emulated host: a real "
        "Linux kernel with real KVM under QEMU's TCG. No /dev/kvm is needed.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch|run")

    listing = _action(actions, "list", "what can be emulated, and what is cached", "list --json")
    listing.add_argument("--json", action="store_true", help="print JSON")

    fetching = _action(actions, "fetch", "fetch the newest kernel package", "fetch --kernel all")
    fetching.add_argument("--kernel", choices=[*KERNELS, "all"], default=DEFAULT_KERNEL)
    fetching.add_argument("--json", action="store_true", help="print JSON")
    fetching.add_argument("--quiet", action="store_true", help="no progress")

    running = _action(
        actions,
        "run",
        "run a program inside",
        "run --smp 4 -- build/continuo doctor --json",
    )
    running.usage = "continuo-lab run [options] -- PROGRAM [ARGUMENT ...]"
    running.add_argument("--kernel", choices=list(KERNELS), default=DEFAULT_KERNEL)
    running.add_argument("--smp", type=_between(1, 64), default=2, metavar="N", help="CPUs (2)")
    running.add_argument(
        "--memory", type=_between(256, 1 << 20), default=1024, metavar="MIB", help="(1024)"
    )
    running.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="S",
        help="for the program, once the host is up; 0 = no limit (600)",
    )  # fmt: skip
    running.add_argument(
        "--file", action="append", default=[], metavar="SRC[:DEST]",
        help="take a file or folder along, to the same path or to DEST; can be repeated",
    )  # fmt: skip
    running.add_argument(
        "--json", action="store_true", help="capture the output and print one JSON object"
    )
    running.add_argument("--quiet", action="store_true", help="no progress, only errors")
    running.add_argument("--verbose", action="store_true", help="tell QEMU's command and times")
    return parser


def _action(actions, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: continuo-lab {example}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", choices=list(HOSTS), default=DEFAULT_HOST)
    return parser


def _between(least: int, most: int):
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least} to {most}")
        return value

    return number


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value
