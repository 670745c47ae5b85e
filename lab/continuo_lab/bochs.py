"""The host with TSC scaling: Bochs emulates Intel's VMX with a 48-bit TSC multiplier, which QEMU's
TCG has for no processor.

The CPU interprets instruction by instruction, and the clock counts instructions: slow, and nearly
the same in every run. What else differs from QEMU is here: the kernel comes from a CD (iso.py), the
streams leave by serial ports, and there is one CPU, since Bochs interprets several in turn.
"""

import contextlib
import gzip
import os
import re
import threading
import tty
from pathlib import Path
from typing import Dict, List

from . import iso

# What the guest's kernel finds the TSC to count; an odd value shows what rounds kHz.
TSC_HZ = 3_499_912_000

_LOADER = Path("/usr/lib/ISOLINUX/isolinux.bin")
_LOADER_LIBRARY = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
_BIOS = Path("/usr/share/seabios/bios.bin")
_VGA_BIOS = Path("/usr/share/seabios/vgabios-isavga.bin")
_COMS = ("console", "stdout", "stderr", "status")  # COM1 to COM4

# Beside the program: what Bochs and the CD consist of.
FILES = (_LOADER, _LOADER_LIBRARY, _BIOS, _VGA_BIOS)
ENVIRONMENT = {"TERM": "vt100"}  # of the screen that nobody sees


class Prepared:
    """The command, and the files that it reads, in memory."""

    def __init__(self, command: List[str], descriptors: List[int]):
        self.command = command
        self.descriptors = descriptors

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def prepare(boot, kernel_line: str, ports: Dict[str, int]) -> Prepared:
    """`ports` are the descriptors of console, stdout, stderr and status."""
    disc = _in_memory("boot.iso", _disc(boot, kernel_line))
    configured = _in_memory("bochsrc", configuration(boot, ports, disc))
    go_on = _in_memory("debugger", b"c\n")  # Debian's Bochs stops in its debugger otherwise
    command = [boot.qemu, "-q", "-f", f"/dev/fd/{configured}", "-rc", f"/dev/fd/{go_on}"]
    return Prepared(command, [disc, configured, go_on])


def configuration(boot, ports: Dict[str, int], disc: int) -> bytes:
    """A bochsrc."""
    lines = [
        f"memory: guest={boot.memory_mib}, host={boot.memory_mib}",
        f"romimage: file={_BIOS}",
        f"vgaromimage: file={_VGA_BIOS}",
        # A kernel that panics restarts by a triple fault (the host's kernel parameters): that ends
        # Bochs, as -no-reboot ends QEMU.
        f"cpu: model=corei7_skylake_x, count=1, ips={TSC_HZ}, reset_on_triple_fault=0",
        "clock: sync=none, time0=utc",
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        f"ata0-master: type=cdrom, path=/dev/fd/{disc}, status=inserted",
        "boot: cdrom",
        "display_library: term",
        "log: /dev/null",
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        "debug: action=ignore",
        "sound: waveoutdrv=dummy",
    ]
    for number, name in enumerate(_COMS, start=1):
        lines.append(f"com{number}: enabled=1, mode=file, dev=/dev/fd/{ports[name]}")
    return "".join(f"{line}\n" for line in lines).encode()


def _disc(boot, kernel_line: str) -> bytes:
    menu = ("DEFAULT lab", "PROMPT 0", "LABEL lab", "LINUX /KERNEL", "INITRD /INITRD",
            f"APPEND {kernel_line}", "")  # fmt: skip
    boot.initramfs.seek(0)
    files = {
        "LDLINUX.C32": _LOADER_LIBRARY.read_bytes(),
        "ISOLINUX.CFG": "\n".join(menu).encode(),
        "KERNEL": boot.vmlinuz.read_bytes(),
        # Reading a MiB from the CD takes Bochs longer than unpacking two.
        "INITRD": gzip.compress(boot.initramfs.read(), compresslevel=1, mtime=0),
    }
    return iso.image(_LOADER.read_bytes(), files)


def _in_memory(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    with open(descriptor, "wb", closefd=False) as out:
        out.write(content)
    return descriptor


class Screen:
    """Reads the screen away: Bochs shows it in a terminal of its own, and would wait for ever for
    somebody to read it."""

    _ANNOUNCED = re.compile(rb'Bochs connected to screen "(/dev/pts/[0-9]+)"')

    def __init__(self) -> None:
        self._found = False

    def look(self, console: bytes) -> None:
        """Call it with all that Bochs has said, each time that it said more."""
        match = None if self._found else self._ANNOUNCED.search(console)
        if match is None:
            return
        self._found = True
        with contextlib.suppress(OSError):
            descriptor = os.open(os.fsdecode(match.group(1)), os.O_RDONLY | os.O_NOCTTY)
            tty.setraw(descriptor)  # without it, what is shown comes back as typed
            threading.Thread(target=_read_away, args=(descriptor,), daemon=True).start()


def _read_away(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # EIO: Bochs is gone
        while os.read(descriptor, 1 << 16):
            pass
    os.close(descriptor)
