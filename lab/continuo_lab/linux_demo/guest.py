"""The guest's initramfs: busybox, chronyd on the host's clock, continuo-agent, and continuo watch."""

import gzip
import io
from pathlib import Path
from typing import Dict

from ..beside_qemu.campaign import cpio_member
from ..cache import CachedKernel
from ..catalog import HOSTS
from ..cpio import CpioWriter
from ..daemons import fetched
from ..payload import shared_libraries
from ..progress import Progress
from ..requirements import require_program

# Says "guest: ..." for whoever drives it; its console has nothing of the kernel's, which could fall into the report.
# A busy emulator lets the guest stand still for a while again and again; only --hole of more is worth telling here.
_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
echo 0 >/proc/sys/kernel/printk
insmod /lib/ptp_kvm.ko
chmod 750 /run/chrony
chronyd -d -u root -f /etc/chrony.conf >/tmp/chronyd.log 2>&1 &
within() {  # seconds, what to await
    waited=0
    until eval "$2"; do
        sleep 0.2
        waited=$((waited + 1))
        [ $waited -lt $(($1 * 5)) ] || { echo "guest: $2: not within $1 s"; cat /tmp/*.log; poweroff -f; }
    done
}
within 30 '[ -S /run/chrony/chronyd.sock ]'
continuo-agent --metrics=/tmp/agent.prom >/tmp/agent.log 2>&1 &
echo "guest: linux $(uname -r), clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
within 90 'grep -q "Selected source" /tmp/chronyd.log'
sleep 2
continuo watch --rate 100 --hole 3s --json >/tmp/watch.json 2>/tmp/watch.log &
watch=$!
sleep 3
echo "guest: ready"
read -r line
kill -TERM $watch
wait $watch
for log in chronyd.log agent.log watch.log agent.prom; do
    sed "s/^/guest: $log: /" /tmp/$log
done
dmesg | grep -E 'BUG|WARNING|Unstable|unstable' | sed 's/^/guest: kernel: /'
echo "guest: begin"
gzip -c /tmp/watch.json | base64
echo "guest: end"
poweroff -f
"""

# The host's clock by ptp_kvm. Only the first update may step: what a move does to REALTIME is the agent's to repair.
_CHRONY_CONF = b"""refclock PHC /dev/ptp0 poll 0 dpoll -2
makestep 0.1 1
rtcsync
cmdport 0
"""


def write_initrd(path: Path, kernel: CachedKernel, continuo: Path, agent: Path, progress: Progress) -> None:
    chronyd = fetched("chrony", progress) / "usr/sbin/chronyd"
    programs: Dict[str, Path] = {
        "/bin/busybox": Path(require_program("busybox", "busybox-static", progress)),
        "/bin/continuo": continuo, "/bin/continuo-agent": agent, "/bin/chronyd": chronyd,
        **{library: Path(library) for library in shared_libraries(chronyd, HOSTS["x86-svm"])},
    }  # fmt: skip
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.character_device("/dev/console", 5, 1, 0o600)
    for folder in ("/proc", "/sys", "/bin", "/tmp", "/etc", "/run/chrony", "/var/lib/chrony"):
        archive.directory(folder)
    for inside, source in sorted(programs.items()):
        archive.file(inside, source.read_bytes(), 0o755)
    archive.file("/lib/ptp_kvm.ko", cpio_member(kernel.base_cpio, ".lab/modules/ptp_kvm.ko"))
    archive.file("/etc/chrony.conf", _CHRONY_CONF)
    archive.file("/etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    archive.file("/init", _INIT.encode(), 0o755)
    archive.finish()
    path.write_bytes(gzip.compress(out.getvalue(), 6, mtime=0))
