"""Outside: packs what a host needs, boots it, and keeps every record that comes from it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

from ..cache import Cache, CachedKernel, cache_root
from ..catalog import HOSTS, kernel_named
from ..daemons import fetched
from ..errors import HOST_DIED, HOST_NEVER_UP, MACHINE_LACKS, NOT_EXECUTABLE, LabError
from ..payload import shared_libraries
from ..progress import Progress
from ..requirements import require_program
from . import guest
from .columns import COLUMNS, Column

ROOT = Path(__file__).resolve().parents[3]
_FIRMWARE = ("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/linuxboot_dma.bin",
             "/usr/share/qemu/kvmvapic.bin")  # fmt: skip
_BOOTS_MAX = 4  # of the host, for one call


@dataclass(frozen=True)
class Request:
    host: str
    kernel: str
    columns: Sequence[str]
    moves: int
    cpus: int
    memory_mib: int
    host_memory_mib: int
    qemu: str
    continuo: str


class Store:
    """The records so far, a line each; a column goes on where it ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: List[Dict] = []
        if path.exists():
            self.records = [json.loads(line) for line in path.read_text().splitlines() if line]

    def add(self, record: Dict) -> None:
        self.records.append(record)
        with open(self._path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")

    def moves_of(self, column: str) -> int:
        return sum(1 for one in self.records if one["kind"] == "move" and one["column"] == column)

    def failures_of(self, column: str) -> int:
        return sum(1 for one in self.records if one["kind"] == "failed" and one["column"] == column)


def moves_wanted(column: Column, moves: int) -> int:
    return min(moves, column.moves_max) if column.moves_max else moves


def missing(request: Request, store: Store) -> List[Dict]:
    """What the host is to do: columns with the number of their next move."""
    found = []
    for name in request.columns:
        wanted = moves_wanted(COLUMNS[name], request.moves)
        done = store.moves_of(name)
        if done < wanted and store.failures_of(name) < 3:
            found.append({"name": name, "first": done + 1, "moves": wanted})
    return found


def run(request: Request, store: Store, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="continuo-beside-qemu-") as scratch:
        pack = Pack(request, Path(scratch), progress)
        for _ in range(_BOOTS_MAX):
            work = missing(request, store)
            if not work:
                return
            code = _in_host(request, pack, work, store, progress)
            if code not in (0, HOST_DIED, HOST_NEVER_UP):
                raise LabError(code, f"the program in the host ended with {code}")
        if missing(request, store):
            raise LabError(HOST_DIED, "the emulated host died again and again",
                           "run the same command again: it goes on where it is")  # fmt: skip


def _in_host(request: Request, pack: "Pack", work: List[Dict], store: Store, progress: Progress) -> int:
    config = pack.config(work)
    inside = [sys.executable, "-I", "-S", "-B", str(pack.starter), str(config)]
    command = inside
    if request.host != "local":
        # With two CPUs TCG loses a guest's code patches now and then, and the guest hangs (docs/lab.md).
        command = [
            str(ROOT / "lab/continuo-lab"), "run", "--quiet", "--host", request.host, "--kernel",
            request.kernel, "--memory", str(request.host_memory_mib), "--smp", "1", "--timeout", "0",
            *(word for file in [*pack.files, config] for word in ("--file", str(file))), "--", *inside,
        ]  # fmt: skip
    store.add({"kind": "boot", "host": request.host, "load": list(os.getloadavg()),
               "machine_cpus": os.cpu_count(), "continuo": version_of(request.continuo)})  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        teller = threading.Thread(target=_relay, args=(process.stderr, progress), daemon=True)
        teller.start()
        assert process.stdout is not None
        for line in process.stdout:
            store.add({**json.loads(line), "load": round(os.getloadavg()[0], 1)})
        teller.join()
        return process.wait()


def version_of(continuo: str) -> str:
    done = subprocess.run([continuo, "version", "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(NOT_EXECUTABLE, f"{continuo} does not run: {done.stderr.strip()}")
    return json.loads(done.stdout)["version"]


def _relay(lines: Iterable[str], progress: Progress) -> None:
    for line in lines:
        progress.say(line.rstrip())


class Pack:
    """The files that the host is given, all at the paths that they have here."""

    def __init__(self, request: Request, scratch: Path, progress: Progress) -> None:
        self._request = request
        self._scratch = scratch
        self._progress = progress
        host = HOSTS["x86-svm" if request.host == "local" else request.host]
        cache = Cache(cache_root(), progress)
        self._kernel = cache.find_or_fetch(host, kernel_named(request.kernel))
        self._qemu = shutil.which(request.qemu) or require_program(
            request.qemu, "qemu-system-x86", progress
        )
        if not os.access(request.continuo, os.X_OK):
            raise LabError(MACHINE_LACKS, f"{request.continuo} is not there", "build it: make build")
        self._initrds = self._write_initrds()
        self.starter = scratch / "inside.py"
        self.starter.write_text(
            f"import sys\nsys.path.insert(0, {str(ROOT / 'lab')!r})\n"
            "from continuo_lab.beside_qemu import inside\nsys.exit(inside.main())\n"
        )
        self.files = [self.starter, Path(self._qemu), Path(request.continuo), self._kernel.vmlinuz,
                      *map(Path, self._initrds.values()), *map(Path, _FIRMWARE), *_python()]  # fmt: skip

    def config(self, work: List[Dict]) -> Path:
        path = self._scratch / "config.json"
        path.write_text(json.dumps({
            "folder": str(self._scratch / "work"), "qemu": self._qemu, "continuo": self._request.continuo,
            "kernel": str(self._kernel.vmlinuz), "initrds": self._initrds,
            "cpus": self._request.cpus, "memory_mib": self._request.memory_mib, "columns": work,
        }))  # fmt: skip
        return path

    def _write_initrds(self) -> Dict[str, str]:
        """One for each set of services."""
        loop = guest.compiled_clock_loop(ROOT / "tests/cli/clock_loop.c", self._scratch)
        busybox = Path(require_program("busybox", "busybox-static", self._progress))
        written: Dict[str, str] = {}
        for name in self._request.columns:
            services = COLUMNS[name].services
            key = "+".join(services)
            if key in written:
                continue
            files, texts = {"/bin/clock_loop": loop, "/bin/continuo": Path(self._request.continuo)}, {}
            for service in services:
                more_files, more_texts = _SERVICE_FILES[service](self._kernel, self._progress)
                files.update(more_files)
                texts.update(more_texts)
            path = self._scratch / f"initrd{'-' + key if key else ''}.gz"
            guest.write_initrd(path, busybox, services, files, texts)
            written[key] = str(path)
        return written


Files = Tuple[Dict[str, Path], Dict[str, bytes]]


def _chronyd(kernel: CachedKernel, progress: Progress) -> Files:
    program = fetched("chrony", progress) / "usr/sbin/chronyd"
    files = {"/bin/chronyd": program}
    for library in shared_libraries(program, HOSTS["x86-svm"]):
        files[library] = Path(library)
    module = cpio_member(kernel.base_cpio, ".lab/modules/ptp_kvm.ko")
    return files, {"/lib/ptp_kvm.ko": module, "/etc/chrony.conf": guest.CHRONY_CONF}


def _agent(_kernel: CachedKernel, _progress: Progress) -> Files:
    program = ROOT / "build/continuo-agent"
    if not program.exists():
        raise LabError(MACHINE_LACKS, f"{program} is not there", "build it: make build")
    return {"/bin/continuo-agent": program}, {}


_SERVICE_FILES = {"chronyd": _chronyd, "agent": _agent}


def cpio_member(archive: Path, name: str) -> bytes:
    """The content of one file of a newc archive."""
    data = archive.read_bytes()
    at = 0
    while data[at:at + 6] == b"070701":
        size, length = int(data[at + 54:at + 62], 16), int(data[at + 94:at + 102], 16)
        here = data[at + 110:at + 110 + length - 1].decode()
        content = (at + 110 + length + 3) & ~3
        if here == name:
            return data[content:content + size]
        at = (content + size + 3) & ~3
    raise LabError(MACHINE_LACKS, f"{archive} has no {name}", "fetch the kernel again")


def _python() -> List[Path]:
    """The interpreter that runs this, and the modules that the program inside imports."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'lab')!r})\n"
        "import continuo_lab.beside_qemu.inside, encodings.utf_8, encodings.ascii, encodings.latin_1\n"
        "import os\n"
        "for module in list(sys.modules.values()):\n"
        "    file = getattr(module, '__file__', None)\n"
        "    if file: print(os.path.realpath(file))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    return [Path(os.path.realpath(sys.executable)), *map(Path, sorted(set(done.stdout.split())))]
