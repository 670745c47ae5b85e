"""The command line of lab/compare-qemu."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Dict, List, Sequence

from ..catalog import DEFAULT_KERNEL, HOSTS
from ..errors import BAD_REQUEST, LabError
from ..progress import Progress
from . import page
from .campaign import ROOT, Request, Store, moves_wanted, run
from .columns import COLUMNS
from .evaluation import NotMeasured, Summary, summary_of

_MOVES = 30
_EXAMPLE = """examples:
  lab/compare-qemu --moves 3 --only qemu --only advance       a first look
  lab/compare-qemu --resume run.jsonl --write --html qemu.html
                                 everything; again after a Ctrl-C, and it goes on where it was
  lab/compare-qemu --host local                               on this machine's /dev/kvm, as root

exit codes:
  0  every move was made and measured; 1  one failed, or a figure cannot be had from its record;
  what docs/lab.md says where the emulated host failed"""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    progress = Progress(options.quiet)
    try:
        with _records(options.resume) as store:
            return _compare(options, store, progress)
    except LabError as error:
        print(f"compare-qemu: error: {error}", file=sys.stderr)
        if error.next_step:
            print(f"compare-qemu: {error.next_step}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _compare(options, store: Store, progress: Progress) -> int:
    request = Request(
        options.host, options.kernel, options.only or list(COLUMNS), options.moves, options.cpus,
        options.memory, options.host_memory, options.qemu, options.continuo,
    )  # fmt: skip
    _same_run(request, store)
    if not options.evaluate:
        run(request, store, progress)
    try:
        found = [summary_of(COLUMNS[name], store.records) for name in request.columns]
    except NotMeasured as error:
        raise LabError(1, f"a move cannot be judged: {error}") from error
    summaries = [one for one in found if one is not None]
    document = as_document(request, store.records, summaries)
    measured = f"{textwrap.fill(document['about'], 100)}\n\n{page.tables(summaries)}"
    if options.write:
        page.write_into(ROOT / "docs/compare-qemu.md", measured)
        (ROOT / "docs/compare-qemu.svg").write_text(page.svg(summaries), encoding="utf-8")
    if options.html:
        Path(options.html).write_text(page.html(document), encoding="utf-8")
    print(json.dumps(document, indent=1) if options.json else measured, end="\n" if options.json else "")
    whole = all(one.moves >= moves_wanted(one.column, request.moves) and not one.failed
                for one in summaries)  # fmt: skip
    return 0 if whole and len(summaries) == len(request.columns) else 1


@contextlib.contextmanager
def _records(resume: str):
    if resume:
        yield Store(Path(resume))
        return
    with tempfile.TemporaryDirectory(prefix="continuo-compare-qemu-") as folder:
        yield Store(Path(folder, "records.jsonl"))


def _same_run(request: Request, store: Store) -> None:
    """What stands in the file must be of the same host, kernel, guest and programs."""
    ours = {
        "kind": "request", "host": request.host, "kernel": request.kernel, "cpus": request.cpus,
        "memory_mib": request.memory_mib, "qemu": request.qemu,
    }  # fmt: skip
    theirs = next((record for record in store.records if record["kind"] == "request"), None)
    if theirs is None:
        store.add({**ours, "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime())})
        return
    other = [key for key, value in ours.items() if theirs.get(key) != value]
    if other:
        raise LabError(BAD_REQUEST, f"the records are of another {other[0]}: {theirs.get(other[0])}",
                       "give another file after --resume")  # fmt: skip


def as_document(request: Request, records: Sequence[Dict], summaries: Sequence[Summary]) -> Dict:
    boots = [record for record in records if record["kind"] == "boot"]
    host = next((record for record in records if record["kind"] == "host"), {})
    loads = [record["load"] for record in records if record["kind"] == "move"]
    versions = sorted({record["vmm"] for record in records if record.get("vmm")})
    guests = sorted({record["release"] for record in records if record["kind"] == "guest"})
    began = next((record.get("began") for record in records if record["kind"] == "request"), "")
    facts = {
        "schema": "continuo/compare-qemu/1", "began": began, "host": request.host,
        "host_kernel": host.get("release"), "host_cpus": host.get("cpus"), "tsc_khz": host.get("tsc_khz"),
        "host_boots": sum(record["kind"] == "host" for record in records), "guest_kernel": guests, "guest_cpus": request.cpus,
        "guest_memory_mib": request.memory_mib, "qemu": versions,
        "continuo": sorted({boot["continuo"] for boot in boots if "continuo" in boot}),
        "load_min": min(loads, default=None), "load_max": max(loads, default=None),
        "machine_cpus": boots[-1]["machine_cpus"] if boots else os.cpu_count(),
    }  # fmt: skip
    return {**facts, "about": _about(facts), "columns": [one.as_json() for one in summaries]}


def _about(facts: Dict) -> str:
    where = f"the emulated host {facts['host']}" if facts["host"] != "local" else "this machine"
    boots = "booted once" if facts["host_boots"] == 1 else f"booted {facts['host_boots']} times"
    load = ""
    if facts["load_min"] is not None:
        load = (f" The machine has {facts['machine_cpus']} CPUs, and its load was {facts['load_min']} to "
                f"{facts['load_max']} meanwhile.")  # fmt: skip
    return (
        f"Measured {facts['began']} UTC on {where} ({facts['host_kernel']}, {facts['host_cpus']} CPUs, "
        f"TSC at {facts['tsc_khz']} kHz), {boots}; the guest: "
        f"Linux {', '.join(facts['guest_kernel'])}, {facts['guest_cpus']} vCPUs, "
        f"{facts['guest_memory_mib']} MiB. Continuo: {', '.join(facts['continuo']) or 'none'}; QEMU: "
        f"{', '.join(facts['qemu']) or 'none'}.{load}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare-qemu", epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Moves one Linux guest to and fro by QEMU and by Continuo, on one host, and holds its "
        "clocks against one another as lines (docs/compare-qemu.md).",
    )  # fmt: skip
    hosts: List[str] = [name for name, host in HOSTS.items() if host.qemu == "qemu-system-x86_64"]
    parser.add_argument("--host", default="x86-svm", choices=[*hosts, "local"])
    parser.add_argument("--kernel", default=DEFAULT_KERNEL, help="of the host and the guest")
    parser.add_argument("--moves", type=int, default=_MOVES, metavar="N", help="of each column (30)")
    parser.add_argument("--only", action="append", choices=list(COLUMNS), help="this column; repeatable")
    parser.add_argument("--resume", default="", metavar="FILE", help="keep the records there, and go on")
    parser.add_argument("--evaluate", action="store_true", help="move nothing: what --resume has")
    parser.add_argument("--qemu", default="qemu-system-x86_64", metavar="PROGRAM")
    parser.add_argument("--continuo", default=str(ROOT / "build/continuo"), metavar="PROGRAM")
    parser.add_argument("--cpus", type=int, default=2, help="of the guest (2)")
    parser.add_argument("--memory", type=int, default=128, metavar="MIB", help="of the guest (128)")
    parser.add_argument("--host-memory", type=int, default=3072, metavar="MIB", help="(3072)")
    parser.add_argument("--write", action="store_true", help="the tables into docs/compare-qemu.md, and the picture")
    parser.add_argument("--html", default="", metavar="FILE", help="a page with charts")
    parser.add_argument("--json", action="store_true", help="continuo/compare-qemu/1, with all values")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser
