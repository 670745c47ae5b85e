"""A small Linux guest for tests: Debian's kernel as the lab has it, and an initramfs with busybox."""

import gzip
import io
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "lab"))

from continuo_lab.cache import cache_root  # noqa: E402
from continuo_lab.cpio import CpioWriter  # noqa: E402

HEAD = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
"""


def initrd(path, script, programs=()):
    """Writes an initramfs whose first process is busybox's shell with `script`; its console is ttyS0. `programs` are
    static ones, for /bin."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox: install Debian's busybox-static")
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.character_device("/dev/console", 5, 1, 0o600)
    for folder in ("/proc", "/sys", "/bin", "/tmp"):
        archive.directory(folder)
    archive.file("/bin/busybox", pathlib.Path(busybox).read_bytes(), 0o755)
    for program in programs:
        archive.file(f"/bin/{program.name}", program.read_bytes(), 0o755)
    archive.file("/init", HEAD + script.encode(), 0o755)
    archive.finish()
    path.write_bytes(gzip.compress(out.getvalue(), 6, mtime=0))


def compiled(source, program):
    """A static program of one C file."""
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", str(program), str(source)],
                   check=True)
    return program


def kernel(path, series="6.12"):
    """Copies the kernel's bzImage out of the lab's cache, into which it is fetched first where it is not there."""
    cached = cache_root() / "amd64" / series / "vmlinuz"
    if not cached.exists():
        subprocess.run([str(ROOT / "lab/continuo-lab"), "fetch", "--quiet", "--host", "x86-svm", "--kernel", series],
                       check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    shutil.copy(cached, path)
