"""What differs between the processors that are emulated: names, the console, the first process."""

import platform
from dataclasses import dataclass
from typing import Optional, Tuple

from . import kvm_holder


@dataclass(frozen=True)
class Architecture:
    debian: str  # as Debian's packages call it
    elf_machine: int  # e_machine of its programs
    uname_machine: str
    console: str  # the serial console's device
    kernel_line: str  # parameters that every kernel gets
    has_tsc: bool
    config: Tuple[str, ...]  # options without which a kernel cannot be used
    modules: Tuple[str, ...]  # in the base image, or built in: no use in a kernel without them
    more_modules: Tuple[str, ...]  # in the base image where the package has them
    build_folder: str  # of this repository: where its programs are, built by `make_target`
    make_target: str
    settle_clock: str  # shell lines of the first process, before any module of KVM
    settle: str  # and after the modules, before the program
    kvm_holder: Optional[bytes]  # a program that `settle` starts as /.lab/bin/hold-kvm

    def is_native(self) -> bool:
        return platform.machine() == self.uname_machine


_CONFIG = ("CONFIG_DEVTMPFS=y", "CONFIG_BLK_DEV_INITRD=y")
_MORE_MODULES = ("virtio_net", "ptp_kvm", "ptp_vmclock")

_SETTLE_CLOCK_X86 = r"""
# The kernel refines the TSC's frequency a second after boot, and only then switches to it for good:
# a program that measures clocks must not see that happen, nor must KVM: up to Linux 6.1 or so it
# computes its guests' clock pages from the frequency of the moment when it was loaded.
source=/sys/devices/system/clocksource/clocksource0/current_clocksource
while [ "$(cat $source)" != tsc ] && [ $tries -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
"""

_SETTLE_X86 = r"""
# Some VMs stay open as long as the host is up: kvm_holder.py says why.
mkfifo /.lab/held
/.lab/bin/hold-kvm >/.lab/held 3>&- &
holder=$!
read -r held </.lab/held
# Until here one CPU ran alone: modules and the first VM patch the kernel's code, and QEMU's TCG can
# lose that from the sight of another CPU, which kills the host.
for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do
    [ "$(cat "$cpu")" = 1 ] || echo 1 >"$cpu"
done
"""

AMD64 = Architecture(
    debian="amd64",
    elf_machine=62,  # EM_X86_64
    uname_machine="x86_64",
    console="ttyS0,115200",
    # The other CPUs are brought up by the first process.
    kernel_line="tsc=reliable clocksource=tsc maxcpus=1",
    has_tsc=True,
    config=("CONFIG_SERIAL_8250_CONSOLE=y", *_CONFIG),
    modules=("virtio_pci", "virtio_console", "kvm-amd", "kvm-intel"),
    more_modules=("msr", "cpuid", *_MORE_MODULES),
    build_folder="build",
    make_target="make build",
    settle_clock=_SETTLE_CLOCK_X86,
    settle=_SETTLE_X86,
    kvm_holder=kvm_holder.elf(),
)

ARM64 = Architecture(
    debian="arm64",
    elf_machine=183,  # EM_AARCH64
    uname_machine="aarch64",
    console="ttyAMA0",
    kernel_line="",
    has_tsc=False,
    config=("CONFIG_SERIAL_AMBA_PL011_CONSOLE=y", "CONFIG_KVM=y", *_CONFIG),
    modules=("virtio_pci", "virtio_console"),
    more_modules=_MORE_MODULES,
    build_folder="build-arm64",
    make_target="make arm64",
    settle_clock="",
    settle="",  # the architected counter has one frequency from the start, and KVM is built in
    kvm_holder=None,
)
