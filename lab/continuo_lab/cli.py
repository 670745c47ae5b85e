"""The command line: list, fetch, run, up, pair, matrix."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
from fractions import Fraction
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from . import errors, matrix
from .boots import (
    BOOT_SECONDS_MAX,
    check_memory,
    clock_arguments,
    initramfs_of,
    keep_console,
    kernel_parameters,
    qemu_for,
    result_of,
    with_icount,
)
from .cache import Cache, CachedKernel, cache_root
from .catalog import DEFAULT_HOST, DEFAULT_KERNEL, HOSTS, KERNELS, Host, Kernel, kernel_named
from .emulator import Boot, Emulator, Outcome
from .errors import BootFailed, Interrupted, LabError
from .newer_qemu import NewerQemu
from .pair import ADDRESSES, NAMES, HostRequest, PairRequest, run_pair
from .payload import Payload, build_payload, build_shell
from .progress import Progress
from .requirements import why_missing
from .streams import Descriptor, Memory, OutputClosed
from .terminal import Commands, terminal_kept

_CPUS = 2  # of a host, unless asked for

_EXIT_CODES = f"""exit codes:
  the program's own (128 + N if signal N ended it), or
  {errors.FETCH_FAILED}  a kernel could not be fetched
  {errors.MACHINE_LACKS}  a program is missing on this machine (QEMU, apt)
  {errors.HOST_DIED}  the emulated host died while the program ran
  {errors.HOST_NEVER_UP}  the emulated host never came up, in {len(BOOT_SECONDS_MAX)} boots
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
        if options.action == "pair":
            return _run_pair(options, command, progress)
        if command is not None:
            raise LabError(errors.BAD_REQUEST, f"{options.action} takes no program")
        actions = {"list": _list, "fetch": _fetch, "up": _up, "matrix": _matrix}
        return actions[options.action](options, progress)
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


def _matrix(options, progress: Progress) -> int:
    known = [
        matrix.Column(host.name, kernel.series)
        for host in HOSTS.values()
        for kernel in KERNELS.values()
        if host.runs(kernel)
    ]
    columns = matrix.chosen(known, options.only)
    if not columns:
        raise LabError(
            errors.BAD_REQUEST,
            f"no host and kernel is called {' or '.join(options.only)}",
            f"there are: {', '.join(column.name() for column in known)}",
        )
    done, keep = _resumed(options.resume)
    everything = matrix.run_columns(columns, progress, done, keep)
    moves, wrong = ("", "") if options.only else matrix.between_hosts(progress)
    if options.output:
        matrix.write(options.output, matrix.markdown(everything, moves))
        progress.say(f"written: {options.output}")
    if options.json:
        print(json.dumps(matrix.as_json(everything), indent=2))
    elif not options.output:
        print(matrix.markdown(everything, moves), end="")
    failures = matrix.failures(everything) + ([f"between two hosts: {wrong}"] if wrong else [])
    for failure in failures:
        print(f"continuo-lab: FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _resumed(file: Optional[str]):
    """The columns that stand in the file, and what writes it after each further one."""
    if file is None:
        return [], lambda _: None

    def keep(everything) -> None:
        matrix.write(file, json.dumps(matrix.as_json(everything), indent=2) + "\n")

    if not os.path.exists(file):
        return [], keep
    try:
        with open(file, encoding="utf-8") as kept:
            return matrix.from_json(json.load(kept)), keep
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(errors.BAD_REQUEST, f"{file} is no result of the matrix: {error}",
                       "give another file after --resume") from error  # fmt: skip


def _list(options, progress: Progress) -> int:
    cache = Cache(cache_root(), progress)
    hosts = [HOSTS[options.host]] if options.host else list(HOSTS.values())
    rows = [
        describe(host, kernel, cache, progress) for host in hosts for kernel in KERNELS.values()
    ]
    if options.json:
        about = [{"host": host.name, "summary": host.summary} for host in hosts]
        print(json.dumps({"cache": str(cache.root), "hosts": about, "kernels": rows}, indent=2))
        return 0
    _print_table([("HOST", "WHAT IT IS"), *((host.name, host.summary) for host in hosts)])
    print()
    lines = [("HOST", "KERNEL", "STATE", "")]
    lines += [(row["host"], row["kernel"], row["state"], _remark(row)) for row in rows]
    _print_table(lines)
    print(f"\ncache: {cache.root}")
    return 0


def _print_table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _remark(row: Dict[str, str]) -> str:
    return row["why"].replace("\n", "; ") if "why" in row else row.get("release", "")


CACHED = "cached"
NOT_FETCHED = "not fetched"
NOT_TO_BE_HAD = "not to be had"


def describe(host: Host, kernel: Kernel, cache: Cache, progress: Progress) -> Dict[str, str]:
    """A row of `list`: whether this kernel can be booted on this host, and if not, why."""
    row = {"host": host.name, "kernel": kernel.series, "summary": kernel.summary}
    cached = cache.find(host, kernel)
    newer = NewerQemu(cache, progress)
    why_not = cache.why_not(host, kernel) if cached is None else ""
    if host.qemu_from is None:
        why_not = why_not or why_missing(host.qemu, host.qemu_package)
    elif newer.find(host) is None:
        why_not = why_not or newer.why_not(host)
        cached = None
    if not host.runs(kernel):
        why_not = f"only {' and '.join(host.kernels)} run there"
    if why_not:
        return {**row, "state": NOT_TO_BE_HAD, "why": why_not}
    if cached is None:
        return {**row, "state": NOT_FETCHED}
    return {
        **row,
        "state": CACHED,
        "package": cached.manifest.package,
        "version": cached.manifest.version,
        "release": cached.manifest.release,
        "folder": str(cached.folder),
    }


def _fetch(options, progress: Progress) -> int:
    hosts = list(HOSTS.values()) if options.host == "all" else [HOSTS[options.host]]
    one = kernel_named(options.kernel)
    kernels = list(KERNELS.values()) if one is None else [one]
    cache = Cache(cache_root(), progress)
    for suite_host in {host.qemu_from: host for host in hosts if host.qemu_from}.values():
        NewerQemu(cache, progress).fetch_newest(suite_host)
    shelves = {host.architecture.debian: host for host in hosts}  # hosts share an architecture's
    for host in shelves.values():
        for kernel in kernels:
            cache.fetch_newest(host, kernel)
    rows = [describe(host, kernel, cache, progress) for host in hosts for kernel in kernels]
    if options.json:
        print(json.dumps({"cache": str(cache.root), "kernels": rows}, indent=2))
        return 0
    for row in rows:
        print(f"{row['host']} {row['kernel']}: {row['package']} {row['version']}")
        print(f"  in {row['folder']}")
    return 0


def _run(options, command: Optional[List[str]], progress: Progress) -> int:
    if not command:
        raise LabError(
            errors.BAD_REQUEST,
            "no program to run",
            "write it after two dashes: continuo-lab run -- build/continuo doctor",
        )
    payload = build_payload(HOSTS[options.host], command, options.file)
    with _boot_of(options, payload, progress) as (boot, kernel):
        boot = dataclasses.replace(boot, timeout_s=options.timeout)
        outcome, captured, boots = _until_up(boot, kernel, options.json, progress)
    if options.json:
        result = {**result_of(outcome, kernel, captured), "boots": boots}
        print(json.dumps(result, indent=2), flush=True)
    return outcome.exit_code


def _check_fits(host: Host, kernel: Kernel, cpus: Optional[int]) -> None:
    if not host.runs(kernel):
        raise LabError(
            errors.BAD_REQUEST,
            f"Linux {kernel.series} does not run on {host.name}",
            f"choose one of these: --kernel {'|'.join(host.kernels)}",
        )
    if cpus is not None and cpus > host.cpus_max:
        raise LabError(errors.BAD_REQUEST, f"{host.name} has at most {host.cpus_max} CPUs")


def cpus_of(host: Host, asked: Optional[int]) -> int:
    return asked or min(_CPUS, host.cpus_max)


def _up(options, progress: Progress) -> int:
    host = HOSTS[options.host]
    if host.emulator != "QEMU":
        what = f"{host.name} has no shell: nothing leads into it ({host.emulator})"
        raise LabError(errors.BAD_REQUEST, what, "give it a script: continuo-lab run -- sh -c ...")
    terminal = os.isatty(0) and os.isatty(1)
    payload = build_shell(host, terminal, options.file)
    with _boot_of(options, payload, progress) as (boot, kernel):
        if not terminal:
            with Commands(0) as commands:
                boot = dataclasses.replace(
                    boot, more_arguments=(*boot.more_arguments, *commands.qemu_arguments()),
                    descriptors=(commands.descriptor,),
                )  # fmt: skip
                return _until_up(boot, kernel, False, progress, commands.start)[0].exit_code
        progress.say("a shell on the host's console; exit, or Ctrl-A x, ends the host")
        with terminal_kept(0):
            boot = dataclasses.replace(boot, terminal=True)
            return _until_up(boot, kernel, False, progress)[0].exit_code


@contextlib.contextmanager
def _boot_of(options, payload: Payload, progress: Progress):
    """(boot, kernel) as the options that `run` and `up` share ask for."""
    host = payload.host
    wanted = kernel_named(options.kernel)
    icount = options.icount is not None
    _check_fits(host, wanted, options.smp)
    if host.emulator != "QEMU" and (icount or options.realtime_offset):
        what = f"{host.name} takes neither --icount nor --realtime-offset: it is {host.emulator}'s"
        raise LabError(errors.BAD_REQUEST, what)
    check_memory(payload, options.memory)
    cache = Cache(cache_root(), progress)
    qemu = qemu_for(host, cache, progress)
    kernel = cache.find_or_fetch(host, wanted)
    with initramfs_of(kernel, payload) as initramfs:
        boot = Boot(
            host=with_icount(host, f"{options.icount},sleep=off") if icount else host,
            qemu=qemu.program,
            vmlinuz=kernel.vmlinuz,
            initramfs=initramfs,
            smp=cpus_of(host, options.smp),
            memory_mib=options.memory,
            timeout_s=0.0,
            boot_seconds_max=BOOT_SECONDS_MAX[-1],
            kernel_parameters=kernel_parameters(host, kernel.tick_hz, icount, options.append),
            more_arguments=clock_arguments(icount, options.realtime_offset),
            environment=qemu.environment,
        )
        yield boot, kernel


def _until_up(
    boot: Boot,
    kernel: CachedKernel,
    capture: bool,
    progress: Progress,
    on_up: Callable[[], None] = lambda: None,
):
    """(outcome, sinks of stdout and stderr, number of boots). Boots again where a boot was lost
    before the program began; nothing was run then, so nothing can be run twice."""
    limits = boot.host.boot_seconds_max or BOOT_SECONDS_MAX
    for number, seconds_max in enumerate(limits, start=1):
        sinks = (Memory(), Memory()) if capture else (Descriptor(1), Descriptor(2))
        this_boot = dataclasses.replace(boot, boot_seconds_max=seconds_max)
        try:
            return _emulate(this_boot, kernel, sinks, progress, on_up), sinks, number
        except BootFailed as failure:
            if number == len(limits):
                failure.args = (f"{failure}\n  this was boot {number}, and the last",)
                raise
            progress.warn(f"boot {number} failed, nothing was run, booting again: {failure}")
    raise AssertionError("the last boot returns or raises")


def _emulate(
    boot: Boot, kernel: CachedKernel, sinks, progress: Progress, on_up: Callable[[], None]
) -> Outcome:
    with contextlib.ExitStack() as booting:

        def up() -> None:
            booting.close()
            on_up()

        emulator = Emulator(boot, *sinks, on_up=up)
        with_what = f"{boot.smp} CPUs, {boot.host.emulator}"
        what = f"booting Linux {kernel.manifest.release} on {boot.host.name} ({with_what})"
        booting.enter_context(progress.stage(what))
        try:
            outcome = emulator.run()
        except LabError as error:
            booting.close()
            error.args = (f"{error}\n  console's log: {keep_console(emulator)}",)
            raise
    progress.detail(" ".join(emulator.command))
    first = outcome.first_output_s
    progress.detail(
        f"host up after {outcome.up_s:.2f} s, "
        + (f"first output after {first:.2f} s, " if first is not None else "no output, ")
        + f"all over after {outcome.total_s:.2f} s; exit code {outcome.exit_code}"
    )
    return outcome


def _run_pair(options, command: Optional[List[str]], progress: Progress) -> int:
    if HOSTS[options.host].emulator != "QEMU":
        raise LabError(errors.BAD_REQUEST, f"{options.host} has no network: choose another host")
    commands = _programs_of_pair(command)
    hosts = {name: _host_request(options, name, commands[name]) for name in NAMES}
    offset = options.realtime_offset
    request = PairRequest(
        HOSTS[options.host], hosts, options.file,
        None if offset is None else round(offset * 10**9),
        options.timeout, options.linger, options.json,
    )  # fmt: skip
    result = run_pair(request, progress)
    if options.json:
        print(json.dumps(result.as_json(), indent=2), flush=True)
    for name, host in result.hosts.items():
        if host.failure is not None:
            _complain(LabError(host.failure.exit_code, f"{name}: {host.failure}"))
        elif host.outcome is not None:
            up, code = host.outcome.up_s, host.outcome.exit_code
            progress.detail(f"{name}: up after {up:.2f} s, exit code {code}")
            if code != 0:
                progress.say(f"the program on host {name} ended with {code}")
    return result.exit_code()


def _programs_of_pair(command: Optional[List[str]]) -> Dict[str, List[str]]:
    """One for both hosts, or one for each, with `--` between them."""
    first, second = _split(command or [])
    if not first or second == [] or "--" in (second or []):
        raise LabError(
            errors.BAD_REQUEST,
            "one program is wanted for both hosts, or one for each",
            "continuo-lab pair -- PROGRAM-OF-A ... -- PROGRAM-OF-B ... "
            "(a program that itself takes `--` can be called by sh -c)",
        )
    return {"a": first, "b": first if second is None else second}


def _host_request(options, name: str, command: Sequence[str]) -> HostRequest:
    def own(option: str):
        return getattr(options, f"{option}_{name}")

    return HostRequest(
        kernel=own("kernel") or options.kernel,
        command=command,
        smp=cpus_of(HOSTS[options.host], options.smp),
        memory_mib=options.memory,
        append=own("append"),
        tsc_khz=own("tsc_khz"),
        icount=own("icount"),
        maxerror_us=None if own("maxerror") is None else round(own("maxerror") * 10**6),
        synchronised=not own("unsynchronised"),
    )


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
    if getattr(options, "json", False):
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
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="list|fetch|run|up|pair|matrix"
    )

    listing = _action(actions, "list", "what can be emulated, and what is cached", "list --json")
    listing.add_argument("--host", choices=list(HOSTS), help="only this one")
    listing.add_argument("--json", action="store_true", help="print JSON")

    fetching = _action(actions, "fetch", "fetch the newest kernel package", "fetch --kernel all")
    fetching.add_argument("--host", choices=[*HOSTS, "all"], default=DEFAULT_HOST)
    _add_kernel(fetching, "all")
    fetching.add_argument("--json", action="store_true", help="print JSON")
    fetching.add_argument("--quiet", action="store_true", help="no progress")

    running = _action(
        actions,
        "run",
        "run a program inside",
        "run --smp 4 -- build/continuo doctor --json",
    )
    running.usage = "continuo-lab run [options] -- PROGRAM [ARGUMENT ...]"
    _host_options(running)
    _program_options(running)
    _clock_options(running)

    upping = _action(
        actions, "up", "boot a host and give a shell on its console", "up --host arm64-nvhe"
    )
    upping.description += (
        " The programs of this repository's build folder are on its PATH. exit, or Ctrl-A x, ends "
        "the host. Where stdin or stdout is no terminal, the shell reads its commands from stdin."
    )
    _host_options(upping)
    _clock_options(upping)
    _pair_options(actions)
    _matrix_options(actions)
    return parser


def _matrix_options(actions) -> None:
    filling = _action(
        actions,
        "matrix",
        "run every program on every host and kernel, and tell which requirement works where",
        "matrix --only x86-svm/6.12 --only 'arm64-*/newest'",
    )
    filling.add_argument(
        "--only", action="append", default=[], metavar="HOST/KERNEL",
        help="only these (a pattern); can be repeated",
    )  # fmt: skip
    filling.add_argument("--output", metavar="FILE", help="write the table there, as Markdown")
    filling.add_argument(
        "--resume", metavar="FILE",
        help="keep each finished column there, and take those that stand there already",
    )  # fmt: skip
    filling.add_argument("--json", action="store_true", help="print JSON")
    filling.add_argument("--quiet", action="store_true", help="no progress, only errors")


def _host_options(parser: argparse.ArgumentParser) -> None:
    """What all that boot share."""
    parser.add_argument("--host", choices=list(HOSTS), default=DEFAULT_HOST)
    _add_kernel(parser)
    parser.add_argument("--smp", type=_between(1, 64), metavar="N", help="CPUs (2)")
    parser.add_argument(
        "--memory", type=_between(256, 1 << 20), default=1024, metavar="MIB", help="(1024)"
    )
    parser.add_argument(
        "--file", action="append", default=[], metavar="SRC[:DEST]",
        help="take a file or folder along, to the same path or to DEST; can be repeated",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress, only errors")
    parser.add_argument("--verbose", action="store_true", help="tell QEMU's command and times")


def _program_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="S",
        help="for the program, once the host is up; 0 = no limit (600)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="capture the output and print one JSON object"
    )


def _clock_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--icount", type=_between(0, 10), metavar="N",
        help="time by instructions, 2^N ns each, and none while idle: nearly the same in each run; "
        "x86-64's TSC has 1 GHz then",
    )  # fmt: skip
    parser.add_argument(
        "--realtime-offset", type=int, default=0, metavar="S",
        help="the host's realtime clock starts at this machine's plus S seconds, such as -7",
    )  # fmt: skip
    parser.add_argument(
        "--append", action="append", default=[], metavar="TEXT",
        help="further kernel parameters; can be repeated",
    )  # fmt: skip


def _pair_options(actions) -> None:
    pairing = _action(
        actions,
        "pair",
        "run a program on each of two hosts, a and b, with a network between them",
        "pair --realtime-offset=-7 -- sh -c 'nc -l -p 7000' -- sh -c 'sleep 1; date | nc a 7000'",
    )
    pairing.usage = "continuo-lab pair [options] -- PROGRAM-OF-A [ARG ...] [-- PROGRAM-OF-B ...]"
    pairing.description += (
        f" They are called a ({ADDRESSES['a']}) and b ({ADDRESSES['b']}) on both. One program runs "
        "on both where only one is given; CONTINUO_LAB_NAME is a or b inside. Lines of output "
        "begin with `a| ` and `b| `. Both hosts stay up until both programs have ended."
    )
    _host_options(pairing)
    _program_options(pairing)
    pairing.add_argument(
        "--linger", type=_seconds, default=10.0, metavar="S",
        help="when one program has failed, the other is ended after this (10)",
    )  # fmt: skip
    pairing.add_argument(
        "--realtime-offset", type=_signed_seconds, metavar="S",
        help="set b's REALTIME clock to a's plus S seconds, such as -7 or 0.3",
    )  # fmt: skip
    for name in NAMES:
        _options_of_one(pairing.add_argument_group(f"host {name}"), name)


def _options_of_one(group, name: str) -> None:
    group.add_argument(
        f"--kernel-{name}", type=_series(), metavar="KERNEL", help="instead of --kernel"
    )
    group.add_argument(
        f"--append-{name}", action="append", default=[], metavar="TEXT",
        help="further kernel parameters; can be repeated",
    )
    group.add_argument(
        f"--tsc-khz-{name}", type=_between(100_000, 100_000_000), metavar="KHZ",
        help="what the kernel believes of its TSC's frequency (what this machine's is)",
    )  # fmt: skip
    group.add_argument(
        f"--icount-{name}", action="store_true",
        help="time by instructions: a 1 GHz TSC, a frequency that cannot be had from the other's",
    )  # fmt: skip
    group.add_argument(
        f"--maxerror-{name}", type=_seconds, metavar="S",
        help="the kernel says that its clock is synchronised and within S seconds (at most 16)",
    )  # fmt: skip
    group.add_argument(
        f"--unsynchronised-{name}", action="store_true",
        help="the kernel says STA_UNSYNC (as it does after boot)",
    )  # fmt: skip


def _action(actions, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: continuo-lab {example}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _series(*further: str):
    def series(text: str) -> str:
        if text not in further and kernel_named(text) is None:
            known = ", ".join([*KERNELS, *further])
            raise argparse.ArgumentTypeError(f"{text!r} is none of {known}, nor a series like 7.2")
        return text

    return series


def _add_kernel(parser, *further: str) -> None:
    parser.add_argument(
        "--kernel", type=_series(*further), default=DEFAULT_KERNEL,
        metavar="|".join([*KERNELS, *further]),
        help=f"or a series that the unstable suite has ({DEFAULT_KERNEL})",
    )  # fmt: skip


def _between(least: int, most: int):
    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least} to {most}")
        return value

    return number


def _signed_seconds(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds") from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value
