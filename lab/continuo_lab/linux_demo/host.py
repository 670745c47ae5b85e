"""What runs on the emulated host: the guest boots in one process, and moves live into a second and a third."""

import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

from ..errors import LabError
from ..json_documents import documents
from ..progress import Progress

POLICIES = ("advance-and-notify", "freeze-and-notify")

_PATIENCE_S = 240

# The words of `tell` go out at once, so that whoever waits sees how far it is.
_INSIDE = """
cd "$1" && export TMPDIR=$1
tell() {{ echo "demo: $*" >&2; }}
await() {{  # text, where, whose process
    waited=0
    while ! grep -q "$1" "$2"; do
        kill -0 "$3" || {{ sleep 2; exit 99; }}
        waited=$((waited + 1))
        [ $waited -lt {patience} ] || {{ tell "'$1' did not come"; sleep 2; exit 96; }}
        sleep 0.2
    done
}}
mkfifo typed1 typed2 typed3
touch printed1 printed2 printed3
# What the guest prints goes out as it comes, so that nothing is lost where the end does not come.
for each in 1 2 3; do tail -n +1 -f printed$each >&2 & done
tell "the guest boots: Debian's Linux, two CPUs, chronyd on the host's clock, continuo-agent, continuo watch"
{continuo} vm run --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 224M --input typed1 --control control1 --json \\
    --append "console=ttyS0 panic=-1 quiet{append}" >run.json 2>printed1 &
vm=$!
await 'guest: ready' printed1 $vm
number=1
for policy in {policies}; do
    to=$((number + 1))
    {continuo} vm receive --listen unix:migration$to --policy $policy --input typed$to --control control$to --json \\
        >receive$to.json 2>printed$to &
    vm=$!
    await 'listening' printed$to $vm
    tell "the guest moves live to another process: $policy"
    {continuo} vm send --control control$number --to unix:migration$to --json >send$to.json ||
        {{ sleep 2; exit 98; }}
    number=$to
    sleep {pause}
done
tell "the guest is asked what it saw"
echo off >typed3
wait $vm || {{ sleep 2; exit 97; }}
sleep 2
cat send2.json receive2.json send3.json receive3.json
"""


@dataclass(frozen=True)
class Outcome:
    """What the host and the guest printed."""

    documents: List[Dict]  # of each move: what `vm send`, then what `vm receive` printed
    printed: str


def script(continuo: Path, append: str, pause_s: int) -> str:
    return _INSIDE.format(continuo=continuo, policies=" ".join(POLICIES), pause=pause_s, patience=_PATIENCE_S * 5,
                          append=f" {append}" if append else "")  # fmt: skip


def run(lab: Path, kernel: str, files: Sequence[Path], folder: Path, timeout_s: int, progress: Progress) -> Outcome:
    command = [str(lab), "run", "--host", "x86-svm", "--kernel", kernel, "--quiet", "--timeout", str(timeout_s),
               *(word for file in files for word in ("--file", str(file))), "--",
               "sh", str(folder / "inside.sh"), str(folder)]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace") as process:  # fmt: skip
        printed: List[str] = []
        teller = threading.Thread(target=_relay, args=(process.stderr, printed, progress), daemon=True)
        teller.start()
        assert process.stdout is not None
        said = process.stdout.read()
        teller.join()
        code = process.wait()
    text = "".join(printed)
    if code != 0:
        raise LabError(code, f"the host's part ended with {code}:\n{text[-3000:]}")
    return Outcome(documents(said), text)


def _relay(lines, printed: List[str], progress: Progress) -> None:
    for line in lines:
        printed.append(line)
        if line.startswith("demo: "):
            progress.say(line[len("demo: "):].rstrip())
        else:
            progress.detail(line.rstrip())
