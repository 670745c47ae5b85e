"""The part of the initramfs that is the same in every run: busybox, modules, the first process.

All of it lives below /.lab, so that a run's own files may have any other path.
"""

import shutil
from pathlib import Path
from typing import BinaryIO, Iterable, Optional, Tuple

from .architecture import Architecture
from .cpio import CpioWriter
from .elf import Elf, NotElf
from .errors import FETCH_FAILED, LabError
from .packages import Apt, Package, candidate_version, unpack

RECIPE = 7  # raise it when what is written here or what the host loads changes

INIT = r"""#!/.lab/bin/sh
# The first process of an emulated host. Three ports lead out: 1 is the program's stdout, 2 its
# stderr, 3 the status lines that the tool reads. Virtio ports, where a write returns only when QEMU
# has taken the bytes; or serial ones (lab_port on the kernel's command line), where closing waits
# for the last byte. So nothing is lost at power-off.
port=${lab_port:-/dev/vport0p}
unset lab_port
export PATH=/.lab/bin
mount -t proc proc /proc
busybox --install -s /.lab/bin 2>/dev/null  # but for those that are there
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /tmp /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# The root is memory already, and a run's files may lie below /tmp: nothing is mounted there.
chmod 1777 /tmp /dev/shm
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
tries=0
. /.lab/settle_clock
failed=
while read -r module; do
    insmod "/.lab/modules/$module.ko" || failed="$failed $module"
done </.lab/modules/order
ip link set lo up
hostname lab

tries=0
while ! [ -c ${port}3 ] && [ $tries -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
case $port in
*tty*) for number in 1 2 3; do stty -F $port$number raw 115200; done ;;
esac
# Without the port there is nobody to tell; what follows stands in the console's log.
exec 3>${port}3 || { echo "lab: no status port"; poweroff -f; }
if ! [ -c /dev/kvm ]; then
    echo "fail /dev/kvm did not appear; modules that failed:${failed:- none}" >&3
    poweroff -f
fi
holder=
. /.lab/settle
mkfifo /.lab/stdout /.lab/stderr
cat /.lab/stdout 3>&- >${port}1 &
relay_stdout=$!
cat /.lab/stderr 3>&- >${port}2 &
relay_stderr=$!
# The last line before the program: where the tool did not get it, nothing was run.
read -r up idle </proc/uptime
echo "up $up" >&3
/.lab/bin/sh /.lab/program </dev/null >/.lab/stdout 2>/.lab/stderr 3>&-
code=$?
# What the program left running would hold its output open for ever.
for process in /proc/[0-9]*; do
    case ${process#/proc/} in
    1 | $relay_stdout | $relay_stderr | ${holder:-1}) ;;
    *) kill -9 "${process#/proc/}" 2>/dev/null ;;
    esac
done
wait $relay_stdout $relay_stderr
echo "exit $code" >&3
exec 3>&-
poweroff -f
"""


def write_base(
    out: BinaryIO,
    architecture: Architecture,
    modules: Iterable[Tuple[str, bytes]],
    apt: Apt,
    scratch: Path,
) -> None:
    """`scratch` is a folder for temporary files. Which modules are inserted, and in which order,
    a run's own archive says in /.lab/modules/order."""
    busybox = _system_busybox(architecture) or _downloaded_busybox(apt, scratch)
    archive = CpioWriter(out)
    archive.character_device("/dev/console", 5, 1, 0o600)
    for folder in ("/proc", "/sys", "/root", "/tmp", "/run", "/etc"):
        archive.directory(folder)
    archive.file("/.lab/bin/busybox", busybox.read_bytes(), 0o755)
    for applet in ("sh", "mount"):  # until the first process has installed the others
        archive.symlink(f"/.lab/bin/{applet}", "busybox")
    archive.symlink("/bin/sh", "/.lab/bin/sh")
    archive.symlink("/usr/bin/env", "/.lab/bin/env")
    archive.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("/etc/group", b"root:x:0:\n")
    archive.file("/etc/hosts", b"127.0.0.1 localhost lab\n::1 localhost\n")
    for name, content in modules:
        archive.file(f"/.lab/modules/{name}.ko", content)
    if architecture.kvm_holder is not None:
        archive.file("/.lab/bin/hold-kvm", architecture.kvm_holder, 0o755)
    archive.file("/.lab/settle_clock", architecture.settle_clock.encode())
    archive.file("/.lab/settle", architecture.settle.encode())
    archive.file("/.lab/init", INIT.encode(), 0o755)
    archive.finish()


def _system_busybox(architecture: Architecture) -> Optional[Path]:
    """The machine's own, if it runs there and needs no shared libraries."""
    path = shutil.which("busybox")
    if path is None:
        return None
    try:
        elf = Elf(Path(path).read_bytes())
    except (NotElf, OSError):
        return None
    fits = elf.machine == architecture.elf_machine and not elf.is_dynamic()
    return Path(path) if fits else None


def _downloaded_busybox(apt: Apt, scratch: Path) -> Path:
    """Unpacked, not installed: busybox-static would displace another busybox on the machine."""
    version = candidate_version(apt.show("busybox-static"))
    if version is None:
        raise LabError(FETCH_FAILED, "no busybox-static")
    tree = scratch / "busybox"
    (deb,) = apt.download([Package("busybox-static", version)], scratch)
    unpack(deb, tree)
    for path in (tree / "bin/busybox", tree / "usr/bin/busybox"):
        if path.exists():
            return path
    raise LabError(FETCH_FAILED, "busybox-static has no busybox in it")
