"""The guest: Debian's kernel as the lab has it, and an initramfs with busybox whose first process
says where the kernel keeps its clocks and starts the workload."""

import gzip
import io
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Sequence

from ..cpio import CpioWriter
from ..errors import MACHINE_LACKS, LabError

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
dmesg -n 1
clocks=/sys/devices/system/clocksource/clocksource0
echo "guest: linux $(uname -r)"
echo "guest: clocksource $(cat $clocks/current_clocksource)"
echo "guest: code $(sed -n 's/^ *\\([0-9a-f]*\\)-.* Kernel code$/\\1/p' /proc/iomem)"
grep -E ' (_stext|_vdso_data|hv_clock_boot)$' /proc/kallsyms | sed 's/^/guest: symbol /'
mkfifo /tmp/ask
clock_loop </tmp/ask &
exec 3>/tmp/ask
continuo watch --json --rate 100 >/tmp/watch.json 2>/tmp/watch.log &
watch=$!
{services}
echo "guest: ready"
while read -r line; do
    case $line in
    ask) echo ask >&3 ;;
    watched)
        kill -TERM $watch
        wait $watch
        awk -f /bin/watched.awk /tmp/watch.json
        echo "guest: watched"
        ;;
    esac
done
"""

# A serial line of nested emulation carries some kB a second: of what `continuo watch --json` writes, a key
# a line, this is what is compared.
_WATCHED = b"""BEGIN { FS = "\\"" }
{ value = $3; gsub(/[^-0-9]/, "", value) }
$2 == "clock" { clock = $4 }
$2 == "backward_within_cpu" || $2 == "backward_across_cpus" { print "guest: back", clock, value }
$2 == "events" { events = 1 }
$2 == "ntp" { events = 0 }
events && $2 == "counter_before" { before = value }
events && $2 == "counter_after" { after = value }
events && $2 == "seam_ns" { seam = value }
events && $2 == "bound_ns" && clock == "CLOCK_MONOTONIC" { print "guest: event", before, after, seam, value }
"""

_SERVICES = {
    "chronyd": """insmod /lib/ptp_kvm.ko
mkdir -p /run/chrony /var/lib/chrony /etc
echo 'root:x:0:0:root:/:/bin/sh' >/etc/passwd
chronyd -d -u root -f /etc/chrony.conf >/tmp/chronyd.log 2>&1 &
""",
    "agent": """continuo-agent >/tmp/agent.log 2>&1 &
""",
}

# What QEMU's and the distributions' guides ask of a KVM guest: the host's clock by ptp_kvm. Steps of
# any size and at any time, because otherwise only the first three updates may step.
CHRONY_CONF = b"""refclock PHC /dev/ptp0 poll 0 dpoll -2
makestep 0.1 -1
cmdport 0
"""


def compiled_clock_loop(source: Path, folder: Path) -> Path:
    """The workload: both vCPUs read MONOTONIC without pause and count steps back."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise LabError(MACHINE_LACKS, "a C compiler is missing", "install it: apt-get install gcc")
    program = folder / "clock_loop"
    command = [compiler, "-O2", "-static", "-pthread", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(MACHINE_LACKS, f"{source} does not compile:\n{done.stderr}")
    return program


def write_initrd(
    path: Path, busybox: Path, services: Sequence[str], files: Dict[str, Path], texts: Dict[str, bytes]
) -> None:
    """`files` and `texts` by their paths inside."""
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.character_device("/dev/console", 5, 1, 0o600)
    for folder in ("/proc", "/sys", "/bin", "/tmp", "/etc", "/run", "/var/lib"):
        archive.directory(folder)
    archive.file("/bin/busybox", busybox.read_bytes(), 0o755)
    for inside, source in sorted(files.items()):
        archive.file(inside, source.read_bytes(), 0o755)
    for inside, text in sorted(texts.items()):
        archive.file(inside, text)
    archive.file("/bin/watched.awk", _WATCHED)
    script = _INIT.replace("{services}", "".join(_SERVICES[name] for name in services))
    archive.file("/init", script.encode(), 0o755)
    archive.finish()
    path.write_bytes(gzip.compress(out.getvalue(), 6, mtime=0))
