"""Kernels that were fetched: each a folder that holds what booting needs and nothing else.

    <cache>/amd64/6.12 -> linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1~deb12u1.r5
    <cache>/amd64/linux-image-…/{vmlinuz, config, base.cpio, manifest.json}
    <cache>/amd64/6.12.failed    why the last fetch came to nothing; gone once one succeeds

All hosts of one architecture share them. A folder appears under its name by one rename when it is
complete, and the series' link is moved by another, so a reader needs no lock. Writers hold one.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from .architecture import Architecture
from .base_image import RECIPE, write_base
from .catalog import Host, Kernel
from .errors import FETCH_FAILED, LabError
from .modules import ModuleTree, insertion_order, module_name
from .packages import Apt, Package, newest_image, parts_of, series_of, sources, unpack
from .progress import Progress


@dataclass(frozen=True)
class Manifest:
    recipe: int
    package: str
    version: str
    release: str  # as uname -r prints it
    modules: Dict[str, List[str]]  # those in the base image, with what each needs of them


@dataclass(frozen=True)
class CachedKernel:
    folder: Path
    manifest: Manifest

    @property
    def vmlinuz(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def base_cpio(self) -> Path:
        return self.folder / "base.cpio"

    @property
    def series(self) -> str:
        return ".".join(self.manifest.release.split(".")[:2])

    @property
    def tick_hz(self) -> Optional[int]:
        """CONFIG_HZ; None where the configuration does not say."""
        config = (self.folder / "config").read_text(errors="replace")
        found = re.search(r"^CONFIG_HZ=([0-9]+)$", config, re.MULTILINE)
        return int(found.group(1)) if found else None

    def load_order(self, host: Host, further: Tuple[str, ...] = ()) -> List[str]:
        """The modules that `host` inserts, and `further` ones, each after what it needs; what
        this kernel has built in, or does not have, is left out."""
        here = self.manifest.modules
        wanted = [name for name in (*host.modules, *further) if module_name(name) in here]
        return insertion_order(wanted, here.__getitem__)


class Unsuitable(Exception):
    """The package lacks something that the host needs."""


def cache_root() -> Path:
    own = os.environ.get("CONTINUO_LAB_CACHE")
    if own:
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "continuo" / "lab"


class Cache:
    def __init__(self, root: Path, progress: Progress):
        self.root = root
        self._progress = progress

    def find(self, host: Host, kernel: Kernel) -> Optional[CachedKernel]:
        """None where it was not fetched, or by a version of the tool that made it otherwise."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            folder = (self._shelf(host) / kernel.series).resolve(strict=True)
            manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
            if manifest.recipe == RECIPE:
                return CachedKernel(folder, manifest)
        return None

    def why_not(self, host: Host, kernel: Kernel) -> str:
        """Why the last fetch failed; empty if none did."""
        with contextlib.suppress(OSError):
            return self._failure_note(host, kernel).read_text().strip()
        return ""

    def _shelf(self, host: Host) -> Path:
        return self.root / host.architecture.debian

    def _failure_note(self, host: Host, kernel: Kernel) -> Path:
        return self._shelf(host) / f"{kernel.series}.failed"

    def find_or_fetch(self, host: Host, kernel: Kernel) -> CachedKernel:
        found = self.find(host, kernel)
        if found is not None:
            return found
        with self.lock():
            return self.find(host, kernel) or self._fetch(host, kernel)

    def fetch_newest(self, host: Host, kernel: Kernel) -> CachedKernel:
        """Asks apt for the newest version even if an older one is cached."""
        with self.lock():
            return self._fetch(host, kernel)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by whoever writes into the cache."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = open(self.root / "lock", "w", encoding="ascii")
        except OSError as error:
            raise LabError(
                FETCH_FAILED,
                f"cannot write to the cache folder: {error}",
                "choose another: CONTINUO_LAB_CACHE=/some/folder continuo-lab ...",
            ) from error
        with lock:
            with self._progress.stage("waiting for another continuo-lab that fetches"):
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left_over in self.root.glob("*/.partial-*"):  # of a fetch that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            yield

    def _fetch(self, host: Host, kernel: Kernel) -> CachedKernel:
        """Under the lock."""
        reasons: List[str] = []
        architecture = host.architecture.debian
        try:
            for apt in sources(kernel.suite, architecture, self.root / "apt", self._progress):
                found = self._fetch_from(apt, host, kernel, reasons)
                if found is not None:
                    self._failure_note(host, kernel).unlink(missing_ok=True)
                    return found
        except LabError as why:
            reasons.append(str(why) + (f" ({why.next_step})" if why.next_step else ""))
        why_all = "\n  ".join(reasons)
        note = self._failure_note(host, kernel)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(why_all + "\n")
        raise LabError(
            FETCH_FAILED,
            f"no kernel {kernel.series} for {host.name}:\n  {why_all}",
            "check the network and the package sources (apt-get update), then: "
            f"continuo-lab fetch --host {host.name} --kernel {kernel.series}",
        )

    def _fetch_from(
        self, apt: Apt, host: Host, kernel: Kernel, reasons: List[str]
    ) -> Optional[CachedKernel]:
        series = None if kernel.any_series else kernel.series
        for meta in kernel.metas(host.architecture):
            image = newest_image(series, host.architecture.debian, apt.show(meta))
            if image is None:
                reasons.append(f"{apt.what}: no {meta} for Linux {kernel.series}")
                continue
            try:
                return self._fetch_image(apt, host, kernel, image)
            except Unsuitable as why:
                reasons.append(f"{image.name}: {why}")
            except LabError as why:  # stale lists, most often: the next place is newer
                reasons.append(f"{apt.what}: {why}")
                break
        return None

    def _fetch_image(self, apt: Apt, host: Host, kernel: Kernel, image: Package) -> CachedKernel:
        shelf = self._shelf(host)
        shelf.mkdir(parents=True, exist_ok=True)
        final = shelf / f"{image.name}_{image.version}.r{RECIPE}"
        if not (final / "manifest.json").exists():
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=shelf) as scratch:
                complete = self._assemble(apt, host.architecture, image, Path(scratch))
                if final.exists():
                    shutil.rmtree(final)
                complete.rename(final)
        for name in {kernel.series, series_of(image)}:
            point(shelf / name, final.name)
        found = self.find(host, kernel)
        if found is None:
            raise LabError(FETCH_FAILED, f"{final} was just made, but cannot be read back")
        return found

    def _assemble(
        self, apt: Apt, architecture: Architecture, image: Package, scratch: Path
    ) -> Path:
        parts = parts_of(image, apt.show(image.name))
        with self._progress.stage(f"fetching {image.name} {image.version}"):
            debs = apt.download(parts, scratch)
        with self._progress.stage(f"unpacking {image.name}"):
            tree = scratch / "tree"
            for deb in debs:
                unpack(deb, tree)
            return self._reduce(apt, architecture, image, tree, scratch)

    def _reduce(
        self, apt: Apt, architecture: Architecture, image: Package, tree: Path, scratch: Path
    ) -> Path:
        release = image.name[len("linux-image-"):]
        modules = ModuleTree(_module_folder(tree, release))
        config = _boot_file(tree, "config", release)
        _check_config(config.read_text(), architecture.config)
        wanted = [*architecture.modules, *architecture.more_modules]
        missing = [name for name in architecture.modules if not modules.has(name)]
        if missing:
            raise Unsuitable(f"it has no {', '.join(missing)}")
        order = modules.load_list([name for name in wanted if modules.has(name)])
        needs = {name: [one for one in modules.needs(name) if one in order] for name in order}

        complete = scratch / "complete"
        complete.mkdir()
        shutil.move(str(_boot_file(tree, "vmlinuz", release)), complete / "vmlinuz")
        shutil.move(str(config), complete / "config")
        contents = [(name, modules.content(name)) for name in order]
        with open(complete / "base.cpio", "wb") as out:
            write_base(out, architecture, contents, apt, scratch)
        manifest = Manifest(RECIPE, image.name, image.version, release, needs)
        (complete / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
        return complete


def _module_folder(tree: Path, release: str) -> Path:
    candidates = [tree / prefix / "modules" / release for prefix in ("lib", "usr/lib")]
    for folder in candidates:
        if (folder / "kernel").is_dir():
            return folder
    raise Unsuitable("it has no modules folder")


def _boot_file(tree: Path, name: str, release: str) -> Path:
    """In newer packages it lies beside the modules."""
    for path in (tree / f"boot/{name}-{release}", tree / f"usr/lib/modules/{release}/{name}"):
        if path.exists():
            return path
    raise Unsuitable(f"it has no {name}")


def _check_config(config: str, needed: Tuple[str, ...]) -> None:
    lines = set(config.splitlines())
    missing = [option for option in needed if option not in lines]
    if missing:
        raise Unsuitable(f"it is built without {', '.join(missing)}")


def point(link: Path, target: str) -> None:
    """Makes `link` lead to `target` in one step: there is no moment without a link."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)
