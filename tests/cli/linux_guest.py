"""A small Linux guest for tests: Debian's kernel as the lab has it, and an initramfs with busybox."""

import dataclasses
import gzip
import io
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "lab"))

from continuo_lab.cache import cache_root  # noqa: E402
from continuo_lab.cpio import CpioWriter, members  # noqa: E402
from continuo_lab.json_documents import documents  # noqa: E402,F401

HEAD = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
"""


@dataclasses.dataclass(frozen=True)
class Guest:
    """An architecture that guests have: as the lab's cache names it, a host that has its kernels, its C compiler."""

    cache: str
    host: str
    compiler: str


AMD64 = Guest("amd64", "x86-svm", "gcc")
ARM64 = Guest("arm64", "arm64-vhe", "aarch64-linux-gnu-gcc")


def busybox(guest):
    """The bytes of a static busybox: this machine's, or that of the emulated hosts of another architecture."""
    if guest == AMD64:
        program = shutil.which("busybox")
        if program is None:
            raise FileNotFoundError("busybox: install Debian's busybox-static")
        return pathlib.Path(program).read_bytes()
    for name, content in members(cached(guest, "6.12", "base.cpio").read_bytes()).items():
        if name.endswith("/bin/busybox"):
            return content
    raise FileNotFoundError("busybox in the lab's base image")


def initrd(path, script, programs=(), guest=AMD64, files=None):
    """Writes an initramfs whose first process is busybox's shell with `script`; its console is ttyS0. `programs` are
    static ones, for /bin; `files` what else is wanted, by its path inside."""
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.character_device("/dev/console", 5, 1, 0o600)
    for folder in ("/proc", "/sys", "/bin", "/tmp"):
        archive.directory(folder)
    archive.file("/bin/busybox", busybox(guest), 0o755)
    for program in programs:
        archive.file(f"/bin/{program.name}", program.read_bytes(), 0o755)
    for inside, content in (files or {}).items():
        archive.file(inside, content, 0o755)
    archive.file("/init", HEAD + script.encode(), 0o755)
    archive.finish()
    path.write_bytes(gzip.compress(out.getvalue(), 6, mtime=0))


def compiled(source, program, guest=AMD64):
    """A static program of one C file."""
    subprocess.run([guest.compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", str(program), str(source)],
                   check=True)
    return program


def cached(guest, series, name):
    """A file of a kernel in the lab's cache, into which it is fetched first where it is not there."""
    path = cache_root() / guest.cache / series / name
    if not path.exists():
        subprocess.run([str(ROOT / "lab/continuo-lab"), "fetch", "--quiet", "--host", guest.host, "--kernel", series],
                       check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return path


def kernel(path, series="6.12", guest=AMD64):
    """Copies the kernel (a bzImage; arm64: an Image) out of the lab's cache."""
    shutil.copy(cached(guest, series, "vmlinuz"), path)
