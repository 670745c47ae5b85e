"""Kernel modules of an unpacked package: find, decompress, read dependencies, put in order.

A Debian image package carries no modules.dep (depmod runs at installation), so the dependencies
come from the same place where depmod takes them: the `depends=` entry of each module's .modinfo.
"""

import lzma
import shutil
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterable, List

from .elf import Elf, strings_of
from .errors import FETCH_FAILED, MACHINE_LACKS, LabError


def module_name(file_name: str) -> str:
    """The name by which modules refer to each other: no folder, no suffix, `_` for `-`."""
    return file_name.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def dependencies_in(module: bytes) -> List[str]:
    """What the module's .modinfo says that it needs; `module` is the decompressed ELF file."""
    for entry in strings_of(Elf(module).section(b".modinfo") or b""):
        if entry.startswith(b"depends="):
            names = entry[len(b"depends="):].decode("ascii", "replace")
            return [module_name(name) for name in names.split(",") if name]
    return []


def insertion_order(wanted: Iterable[str], needs: Callable[[str], List[str]]) -> List[str]:
    """`wanted` and all that they need, each once and after everything that it needs itself."""
    order: List[str] = []
    on_the_way: List[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in on_the_way:
            loop = " -> ".join(on_the_way[on_the_way.index(name):] + [name])
            raise LabError(FETCH_FAILED, f"kernel modules need each other in a circle: {loop}")
        on_the_way.append(name)
        for other in needs(name):
            visit(other)
        on_the_way.pop()
        order.append(name)

    for name in wanted:
        visit(module_name(name))
    return order


class ModuleTree:
    """The modules below /lib/modules/<release> of an unpacked package."""

    def __init__(self, root: Path):
        self._files: Dict[str, Path] = {
            module_name(path.name): path for path in sorted(root.rglob("*.ko*")) if path.is_file()
        }
        builtin = root / "modules.builtin"
        lines = builtin.read_text().splitlines() if builtin.exists() else []
        self._builtin = {module_name(line) for line in lines}
        self._content: Dict[str, bytes] = {}

    def has(self, name: str) -> bool:
        return module_name(name) in self._files or self.is_builtin(name)

    def is_builtin(self, name: str) -> bool:
        return module_name(name) in self._builtin

    def content(self, name: str) -> bytes:
        """The decompressed ELF file."""
        name = module_name(name)
        if name not in self._content:
            if name not in self._files:
                raise LabError(FETCH_FAILED, f"the kernel package has no module {name}")
            self._content[name] = decompressed(self._files[name])
        return self._content[name]

    def load_list(self, wanted: Iterable[str]) -> List[str]:
        """Names to insert, in order; what is built into the kernel needs no insertion."""
        order = insertion_order(wanted, self.needs)
        return [name for name in order if not self.is_builtin(name)]

    def needs(self, name: str) -> List[str]:
        """What it needs directly; nothing if it is built into the kernel."""
        return [] if self.is_builtin(name) else dependencies_in(self.content(name))


def decompressed(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".zst":
        return _unzstd(raw, path)
    return raw


def _unzstd(raw: bytes, path: Path) -> bytes:
    if shutil.which("zstd") is None:
        raise LabError(
            MACHINE_LACKS,
            f"{path.name} is compressed with zstd, and the zstd program is missing",
            "install it: apt-get install zstd",
        )
    done = subprocess.run(["zstd", "-dc"], input=raw, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(FETCH_FAILED, f"zstd cannot read {path.name}: {done.stderr.decode()}")
    return done.stdout
