"""The part of the initramfs that is the same in every run: busybox, modules, the first process.

All of it lives below /.lab, so that a run's own files may have any other path.
"""

import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO, Iterable, List, Optional, Tuple

from . import kvm_holder
from .cpio import CpioWriter
from .elf import Elf, NotElf
from .errors import FETCH_FAILED, LabError
from .packages import Apt, Package, candidate_version, unpack

RECIPE = 5  # raise it when what is written here or what the host loads changes

INIT = r"""#!/.lab/bin/sh
# The first process of an emulated host. Three virtio ports lead out: 1 is the program's stdout,
# 2 its stderr, 3 the status lines that the tool reads. A write into a port returns only when
# QEMU has taken the bytes, so nothing is lost at power-off.
export PATH=/.lab/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /tmp /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# The root is memory already, and a run's files may lie below /tmp: nothing is mounted there.
chmod 1777 /tmp /dev/shm
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
failed=
while read -r module; do
    insmod "/.lab/modules/$module.ko" || failed="$failed $module"
done </.lab/modules/order
ip link set lo up
hostname lab

tries=0
while ! [ -c /dev/vport0p3 ] && [ $tries -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
# The kernel refines the TSC's frequency a second after boot, and only then switches to it for good:
# a program that measures clocks must not see that happen.
source=/sys/devices/system/clocksource/clocksource0/current_clocksource
while [ "$(cat $source)" != tsc ] && [ $tries -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
# Without the port there is nobody to tell; what follows stands in the console's log.
exec 3>/dev/vport0p3 || { echo "lab: no status port"; poweroff -f; }
if ! [ -c /dev/kvm ]; then
    echo "fail /dev/kvm did not appear; modules that failed:${failed:- none}" >&3
    poweroff -f
fi
# Some VMs stay open as long as the host is up: kvm_holder.py says why.
mkfifo /.lab/held /.lab/stdout /.lab/stderr
/.lab/bin/hold-kvm >/.lab/held 3>&- &
holder=$!
read -r held </.lab/held
# Until here one CPU ran alone: modules and the first VM patch the kernel's code, and QEMU's TCG can
# lose that from the sight of another CPU, which kills the host.
for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
    [ "$(cat "$cpu")" = 1 ] || echo 1 >"$cpu"
done
cat /.lab/stdout 3>&- >/dev/vport0p1 &
relay_stdout=$!
cat /.lab/stderr 3>&- >/dev/vport0p2 &
relay_stderr=$!
# The last line before the program: where the tool did not get it, nothing was run.
read -r up idle </proc/uptime
echo "up $up" >&3
/.lab/bin/sh /.lab/program </dev/null >/.lab/stdout 2>/.lab/stderr 3>&-
code=$?
# What the program left running would hold its output open for ever.
for process in /proc/[0-9]*; do
    case ${process#/proc/} in
    1 | $relay_stdout | $relay_stderr | $holder) ;;
    *) kill -9 "${process#/proc/}" 2>/dev/null ;;
    esac
done
wait $relay_stdout $relay_stderr
echo "exit $code" >&3
poweroff -f
"""


def write_base(
    out: BinaryIO, modules: Iterable[Tuple[str, bytes]], apt: Apt, scratch: Path
) -> None:
    """`modules` in the order of their insertion; `scratch` is a folder for temporary files."""
    busybox = _system_busybox() or _downloaded_busybox(apt, scratch)
    archive = CpioWriter(out)
    archive.character_device("/dev/console", 5, 1, 0o600)
    for folder in ("/proc", "/sys", "/root", "/tmp", "/run", "/etc"):
        archive.directory(folder)
    archive.file("/.lab/bin/busybox", busybox.read_bytes(), 0o755)
    for applet in applets(busybox):
        archive.symlink(f"/.lab/bin/{applet}", "busybox")
    archive.symlink("/bin/sh", "/.lab/bin/sh")
    archive.symlink("/usr/bin/env", "/.lab/bin/env")
    archive.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("/etc/group", b"root:x:0:\n")
    archive.file("/etc/hosts", b"127.0.0.1 localhost lab\n::1 localhost\n")
    order = []
    for name, content in modules:
        archive.file(f"/.lab/modules/{name}.ko", content)
        order.append(name)
    archive.file("/.lab/modules/order", "".join(f"{name}\n" for name in order).encode())
    archive.file("/.lab/bin/hold-kvm", kvm_holder.elf(), 0o755)
    archive.file("/.lab/init", INIT.encode(), 0o755)
    archive.finish()


def applets(busybox: Path) -> List[str]:
    done = subprocess.run(
        [str(busybox), "--list"], capture_output=True, text=True, errors="replace", check=False
    )
    names = [name for name in done.stdout.split() if name != "busybox"]
    needed = {"sh", "mount", "insmod", "mkfifo", "cat", "poweroff", "ip", "sleep", "kill"}
    missing = sorted(needed - set(names) - {"kill"})  # kill is a part of sh
    if missing:
        raise LabError(FETCH_FAILED, f"{busybox} lacks {', '.join(missing)}")
    return names


def _system_busybox() -> Optional[Path]:
    """The machine's own, if it needs no shared libraries."""
    path = shutil.which("busybox")
    if path is None:
        return None
    try:
        elf = Elf(Path(path).read_bytes())
    except (NotElf, OSError):
        return None
    return Path(path) if elf.machine == 62 and not elf.is_dynamic() else None


def _downloaded_busybox(apt: Apt, scratch: Path) -> Path:
    """Unpacked, not installed: busybox-static would displace another busybox on the machine."""
    version = candidate_version(apt.show("busybox-static"))
    if version is None:
        raise LabError(FETCH_FAILED, "no busybox-static")
    tree = scratch / "busybox"
    unpack(apt.download(Package("busybox-static", version), scratch), tree)
    for path in (tree / "bin/busybox", tree / "usr/bin/busybox"):
        if path.exists():
            return path
    raise LabError(FETCH_FAILED, "busybox-static has no busybox in it")
