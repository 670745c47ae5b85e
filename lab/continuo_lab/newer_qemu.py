"""A QEMU that is newer than the machine's: from a Debian suite, unpacked into the cache and run
from there. It is not installed, and nothing of the machine's is replaced.

    <cache>/qemu/bookworm-backports -> qemu-system-arm_1%3A10.0.2+ds-2+deb13u1~bpo12+1
    <cache>/qemu/qemu-system-arm_…/usr/{bin, lib, share}
    <cache>/qemu/bookworm-backports.failed    why it could not be had

Of all that the package needs, what the machine has not got installed is unpacked beside it.
"""

import contextlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional
from urllib.parse import quote, unquote

from .cache import Cache, point
from .catalog import Host
from .errors import FETCH_FAILED, LabError
from .packages import Package, archive, is_installed, own_architecture, unpack
from .progress import Progress


@dataclass(frozen=True)
class Qemu:
    program: str
    environment: Dict[str, str]  # further variables that it needs
    version: str = ""  # of the package; empty for the machine's own


class NewerQemu:
    def __init__(self, cache: Cache, progress: Progress):
        self._cache = cache
        self._shelf = cache.root / "qemu"
        self._progress = progress

    def find(self, host: Host) -> Optional[Qemu]:
        assert host.qemu_from is not None
        with contextlib.suppress(OSError):
            folder = (self._shelf / host.qemu_from).resolve(strict=True)
            version = unquote(folder.name.split("_", 1)[1])
            return Qemu(str(folder / "usr/bin" / host.qemu), environment_for(folder), version)
        return None

    def why_not(self, host: Host) -> str:
        """Why the last fetch failed; empty if none did."""
        with contextlib.suppress(OSError):
            return self._failure_note(host).read_text().strip()
        return ""

    def find_or_fetch(self, host: Host) -> Qemu:
        return self.find(host) or self.fetch_newest(host)

    def fetch_newest(self, host: Host) -> Qemu:
        with self._cache.lock():
            try:
                self._fetch(host)
            except LabError as error:
                self._shelf.mkdir(parents=True, exist_ok=True)
                self._failure_note(host).write_text(f"{error}\n")
                raise LabError(
                    FETCH_FAILED,
                    f"{host.name} cannot be emulated: its QEMU ({host.qemu_package} of "
                    f"{host.qemu_from}) is not to be had: {error}",
                    f"check the network, then: continuo-lab fetch --host {host.name}",
                ) from error
            self._failure_note(host).unlink(missing_ok=True)
        found = self.find(host)
        assert found is not None
        return found

    def _failure_note(self, host: Host) -> Path:
        return self._shelf / f"{host.qemu_from}.failed"

    def _fetch(self, host: Host) -> None:
        suite = host.qemu_from or ""
        apt = archive(suite, own_architecture(), self._cache.root / "apt", self._progress)
        needed = apt.closure(host.qemu_package, suite)
        (qemu,) = [one for one in needed if one.name == host.qemu_package]
        # As apt's file names: a colon would end a folder's name in LD_LIBRARY_PATH.
        final = self._shelf / f"{qemu.name}_{quote(qemu.version, safe='+~')}"
        if not final.exists():
            self._shelf.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=self._shelf) as scratch:
                tree = Path(scratch, "tree")
                with self._progress.stage(f"fetching {qemu.name} {qemu.version} of {suite}"):
                    for deb in apt.download(to_unpack(needed, qemu), Path(scratch)):
                        unpack(deb, tree)
                _check(tree / "usr/bin" / host.qemu, tree)
                tree.rename(final)
        point(self._shelf / suite, final.name)


def to_unpack(needed: List[Package], qemu: Package) -> List[Package]:
    """QEMU with its data, and of the rest what is not installed. Never libc: a program gets that
    from where its loader is."""
    always = {qemu.name, "qemu-system-data"}
    return [
        one for one in needed
        if one.name in always or (one.name != "libc6" and not is_installed(one.name))
    ]  # fmt: skip


def environment_for(tree: Path) -> Dict[str, str]:
    """Where a program in `tree` finds the libraries that were unpacked with it."""
    found = (path.parent for lib in ("lib", "usr/lib") for path in (tree / lib).rglob("*.so.*"))
    folders = sorted({str(folder) for folder in found})
    return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


def _check(program: Path, tree: Path) -> None:
    done = subprocess.run(
        [str(program), "--version"],
        env={**os.environ, **environment_for(tree)},
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(FETCH_FAILED, f"it does not start: {done.stderr.strip()}")
