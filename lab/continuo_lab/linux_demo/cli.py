"""The command line of lab/linux-demo."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Sequence

from ..cache import Cache, cache_root
from ..catalog import HOSTS, kernel_named
from ..errors import MACHINE_LACKS, LabError
from ..progress import Progress
from . import guest, host, story

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lab/linux-demo", description="A Linux guest moves live, is told of it, and repairs its clocks.",
        epilog="exit codes: 0 all went well; 1 something that must not happen was seen, and is named; else as "
        "continuo-lab's")  # fmt: skip
    parser.add_argument("--html", metavar="FILE", default="build/linux-demo.html", help="the page (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures")
    parser.add_argument("--kernel", default="6.12", help="of host and guest (%(default)s)")
    parser.add_argument("--append", default="", help="more for the guest's kernel, as clocksource=tsc")
    parser.add_argument("--pause", type=int, default=4, metavar="S", help="seconds at each place (%(default)s)")
    parser.add_argument("--timeout", type=int, default=600, metavar="S", help="of the whole (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="also say what host and guest print")
    options = parser.parse_args(arguments)
    try:
        return _demo(options, Progress(verbose=options.verbose))
    except LabError as error:
        print(f"linux-demo: error: {error}", file=sys.stderr)
        return error.exit_code


def _demo(options: argparse.Namespace, progress: Progress) -> int:
    continuo, agent = (ROOT / "build" / name for name in ("continuo", "continuo-agent"))
    for program in (continuo, agent):
        if not program.exists():
            raise LabError(MACHINE_LACKS, f"{program} is not there", "build it: make build")
    with tempfile.TemporaryDirectory(prefix="continuo-linux-demo-") as scratch:
        folder = Path(scratch)
        kernel = Cache(cache_root(), progress).find_or_fetch(HOSTS["x86-svm"], kernel_named(options.kernel))
        (folder / "vmlinuz").write_bytes(kernel.vmlinuz.read_bytes())
        guest.write_initrd(folder / "initrd.gz", kernel, continuo, agent, progress)
        (folder / "inside.sh").write_text(host.script(continuo, options.append, options.pause))
        files = [folder / "vmlinuz", folder / "initrd.gz", folder / "inside.sh", continuo]
        progress.say("an emulated host starts: Linux with KVM, under QEMU")
        outcome = host.run(ROOT / "lab/continuo-lab", options.kernel, files, folder, options.timeout, progress)
        told = story.story_of(outcome)
        if options.json:
            Path(options.json).write_text(json.dumps(story.figures_of(told)))
        report = folder / "watch.json"
        report.write_text(json.dumps(story.page_of(told)))
        subprocess.run([str(continuo), "watch", "--from", str(report), "--html", options.html], check=True)
    sys.stdout.write(story.text_of(told))
    sys.stdout.write(f"\nThe page with all of it: {options.html}\n")
    wrong = story.failures(told)
    for what in wrong:
        print(f"linux-demo: {what}", file=sys.stderr)
    return 1 if wrong else 0
